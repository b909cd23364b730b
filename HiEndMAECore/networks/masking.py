"""Mask sampling of masked-image pretraining: which patches of a crop stay visible. The only place that draws masks.

A mask is a permutation of the patches of a crop: its first `num_visible_patches` entries are the visible patches, the
rest are the masked ones. Keeping the order makes the reconstruction of `reconstruct_images` a gather and a scatter.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def num_visible_patches(patches: int, mask_ratio: float) -> int:
    """Return how many of `patches` stay visible: floor(L (1 - r)).

    Exact where floating-point numbers are not: L = 1000 and r = 0.9 give 100.

    Raises:
        ValueError: If no patch would be visible, or none masked.
    """
    visible = math.floor(round(patches * (1.0 - mask_ratio), 6))
    if not 1 <= visible < patches:
        raise ValueError(
            f"a mask ratio of {mask_ratio} leaves {visible} of {patches} patches visible; "
            "one at least must be visible, and one masked"
        )
    return visible


def random_masking(batch: int, patches: int, *, rng: np.random.Generator | torch.Generator | None = None) -> Tensor:
    """Draw a random permutation of the patches for each crop, on the CPU.

    Args:
        batch: Number of crops B.
        patches: Patches of one crop L.
        rng: NumPy generator (data loading keys one by seed and sample), torch generator, or None for torch's default.

    Returns:
        (B, L) long: indices of patches, the visible ones first.
    """
    if isinstance(rng, np.random.Generator):
        return torch.from_numpy(rng.random((batch, patches)).argsort(axis=1))
    return torch.rand(batch, patches, generator=rng).argsort(dim=1)


def split_patches(permutation: Tensor, visible: int) -> tuple[Tensor, Tensor]:
    """Split a permutation (B, L) into the indices of visible (B, S) and masked (B, M) patches."""
    return permutation[:, :visible], permutation[:, visible:]
