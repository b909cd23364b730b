"""A segmentation on the network's grid and on the original grid, and its computation from blocks of logits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from .memory_fallback import summarize_logits_within_memory


@dataclass(frozen=True, eq=False)
class NetworkSegmentation:
    """A result on the network's grid.

    Args:
        labels: Label map (H, W, D) in the model's values.
        entropy: Normalized entropy (H, W, D), float16, from 0 (certain) to 1 (all classes equally likely).
        confidence: {value of a structure: mean maximum probability of its voxels}, of the structures that were found.
        engine: The engine that computed all tiles, "torch" or "openvino".
    """

    labels: np.ndarray
    entropy: np.ndarray
    confidence: dict[int, float]
    engine: str = "torch"


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A result on the scan's original grid.

    Args:
        labels: Label map (X, Y, Z) in the model's values.
        entropy: Normalized entropy (X, Y, Z), float32, from 0 (certain) to 1 (all classes equally likely), or None.
        confidence: As in `NetworkSegmentation`.
        review_slices: Stored slices (last axis, from 0) to review first, in falling order of uncertainty.
    """

    labels: np.ndarray
    entropy: np.ndarray | None = None
    confidence: dict[int, float] = field(default_factory=dict)
    review_slices: list[int] = field(default_factory=list)


def summarize_blocks(
    blocks: Iterable[tuple[tuple[slice, ...], Tensor]], values: np.ndarray, shape: Sequence[int], *, engine: str
) -> NetworkSegmentation:
    """Return labels, entropy and confidence from blocks of logits, which are released one after the other.

    Args:
        blocks: (region of the grid, its logits (classes, h, w, d)); together they cover the grid.
        values: Label value of each class.
        shape: Shape (H, W, D) of the grid.
        engine: What computed the logits.
    """
    labels, entropy = np.empty(shape, values.dtype), np.empty(shape, np.float16)
    sums, counts = np.zeros(len(values)), np.zeros(len(values))
    for region, logits in blocks:
        classes, max_probability, block_entropy = (
            part.cpu().numpy() for part in summarize_logits_within_memory(logits)
        )
        labels[region], entropy[region] = values[classes], block_entropy
        counts += np.bincount(classes.ravel(), minlength=len(values))
        sums += np.bincount(classes.ravel(), weights=max_probability.ravel(), minlength=len(values))
        del logits
    confidence = {int(v): round(float(s / n), 4) for v, s, n in zip(values[1:], sums[1:], counts[1:]) if n}
    return NetworkSegmentation(labels, entropy, confidence, engine)
