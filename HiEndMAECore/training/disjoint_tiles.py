"""Tiles without overlap, and the Dice of what a network predicts on them.

Previews and the performance estimate segment whole scans during training, where the overlapping sliding window of
inference would take eight times as long.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DisjointTile:
    """One tile of a scan.

    Attributes:
        input: Voxels of the scan that the network receives.
        own: Voxels of the scan that are predicted by this tile and by no other.
        own_in_input: The own voxels, counted from the first voxel of `input`.
    """

    input: tuple[slice, ...]
    own: tuple[slice, ...]
    own_in_input: tuple[slice, ...]


def disjoint_tiles(shape: Sequence[int], edges: Sequence[int]) -> Iterator[DisjointTile]:
    """Yield tiles that cover a grid, each voxel once.

    The last tile along an axis is moved back into the grid, and only the remaining voxels are its own.

    Args:
        shape: Shape of the grid (H, W, D); an axis that is shorter than a tile counts as long as the tile.
        edges: Edges of a tile in voxels.
    """
    axes = []
    for length, edge in zip(shape, edges):
        length = max(length, edge)
        firsts = range(0, length, edge)
        axes.append([(min(first, length - edge), first, min(first + edge, length)) for first in firsts])
    for spans in itertools.product(*axes):
        yield DisjointTile(
            tuple(slice(start, start + edge) for (start, _, _), edge in zip(spans, edges)),
            tuple(slice(first, end) for _, first, end in spans),
            tuple(slice(first - start, end - start) for start, first, end in spans),
        )


class DiceCounts:
    """Voxel counts of each class, from which the Dice is computed; counted tile by tile.

    Args:
        classes: Number of classes with the background.
    """

    def __init__(self, classes: int) -> None:
        self.common, self.reference, self.prediction = (torch.zeros(classes) for _ in range(3))

    def add(self, prediction: Tensor, reference: Tensor) -> None:
        """Count the voxels of two integer class maps of one shape; ignored voxels of the reference do not count."""
        reference = reference.long()
        judged = reference >= 0
        if not judged.all():
            prediction, reference = prediction[judged], reference[judged]
        self.common += count_classes(reference[prediction == reference], len(self.common))
        self.reference += count_classes(reference, len(self.reference))
        self.prediction += count_classes(prediction, len(self.prediction))

    def dice(self, value: int) -> float | None:
        """Return the Dice of one class, or None when the reference has no voxel of it."""
        if not self.reference[value]:
            return None
        return float(2 * self.common[value] / (self.reference[value] + self.prediction[value]))


def count_classes(classes: Tensor, count: int) -> Tensor:
    """Return the number of voxels (count,) of each class as float32 on the CPU; ignored voxels do not count."""
    classes = classes.flatten()
    if (classes < 0).any():
        classes = classes[classes >= 0]
    return torch.bincount(classes, minlength=count).float().cpu()
