"""Propagated labels as a prior: how likely each structure is in each voxel of a scan, by the label maps of registered atlases.

The share of a structure in a voxel is the linear interpolation of its mask at the registered position, averaged over the
atlases. Where no atlas reaches, the network decides alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .grids import Grid, inside, transform_points
from .transform import Transform

Region = tuple[slice, ...]
_BLOCK_VOXELS = 2**19  # that are worked on at once: 128 MB for 61 structures
_MIN_PROBABILITY = 1e-6
_CERTAIN = 0.9


@dataclass(frozen=True, eq=False)
class PropagatedLabels:
    """The label map of one atlas and its transform to a scan.

    Attributes:
        labels: Integers (X, Y, Z): 0 for background and i + 1 for the model's structure i.
        grid: Grid of the labels.
        transform: From positions in the scan to positions in the atlas, in RAS mm.
    """

    labels: Tensor
    grid: Grid
    transform: Transform

    def add_shares(self, shares: Tensor, points: Tensor, weight: float) -> None:
        """Add the weighted share of each class to a sum; nothing where the atlas does not reach.

        The time and the memory beside the sum do not grow with the number of classes.

        Args:
            shares: The sum, float32 (classes, h, w, d), contiguous.
            points: Positions in the scan in RAS mm, (3, h, w, d).
            weight: Of these labels; it is what the shares of a voxel that they reach sum to.
        """
        voxels = transform_points(np.linalg.inv(self.grid.affine), self.transform.map_points(points)).reshape(3, -1)
        reached = inside(voxels, self.labels.shape)
        lower = voxels.floor()
        fractions = voxels - lower
        flat, total = self.labels.reshape(-1), shares.view(len(shares), -1)
        for corner in itertools.product((0, 1), repeat=3):
            index = torch.zeros_like(reached, dtype=torch.int64)
            part = weight * reached
            for axis, step in enumerate(corner):
                size = self.labels.shape[axis]
                index = index * size + (lower[axis].long() + step).clamp(0, size - 1)
                part = part * (fractions[axis] if step else 1 - fractions[axis])
            total.scatter_add_(0, flat[index].long()[None], part[None])


@dataclass(frozen=True, eq=False)
class LabelPrior:
    """The prior of a scan from one or several atlases.

    Attributes:
        propagated: The labels of each atlas.
        grid: The network's grid of the scan.
        weight: Of the prior in the mean with the network's probabilities where all atlases reach, from 0 to 1. A mean and
            not a product, so that a network that knows little yet does not erase what the registration found.
        weight_where_certain: The same where the network gives a structure (not the background) more than 0.9; below a half,
            it then decides. None: `weight`.
    """

    propagated: tuple[PropagatedLabels, ...]
    grid: Grid
    weight: float
    weight_where_certain: float | None = None

    @torch.inference_mode()
    def shares(self, classes: int, region: Sequence[slice]) -> Tensor:
        """Return the share of each class in a region of the grid.

        Args:
            classes: Structures of the model and the background.
            region: First and end voxels of the region.

        Returns:
            float32 (classes, h, w, d); they sum to the share of the atlases that reach the voxel, so to 1 or less.
        """
        affine = self.grid.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ np.array([part.start for part in region], dtype=np.float64)
        h, w, d = (part.stop - part.start for part in region)
        device = self.propagated[0].labels.device
        points = Grid((h, w, d), affine).positions(device)
        shares = torch.zeros((classes, h, w, d), device=device)
        for labels in self.propagated:
            labels.add_shares(shares, points, 1 / len(self.propagated))
        return shares

    @torch.inference_mode()
    def combine(self, logits: Tensor, region: Sequence[slice]) -> Tensor:
        """Return logits whose softmax is the weighted mean of the network's probabilities and the prior.

        Args:
            logits: The network's (classes, h, w, d) of a region of the grid.
            region: Its first and end voxels.
        """
        shares = self.shares(len(logits), region).to(logits.device)
        probabilities = logits.float().softmax(0)
        weight: float | Tensor = self.weight
        if self.weight_where_certain is not None:
            certain = probabilities[1:].amax(0) > _CERTAIN
            weight = torch.where(certain, self.weight_where_certain, self.weight)
        shares *= weight
        probabilities.mul_(1 - shares.sum(0)).add_(shares)
        return probabilities.clamp_(min=_MIN_PROBABILITY).log_()

    def combine_blocks(self, blocks: Iterable[tuple[Region, Tensor]]) -> Iterator[tuple[Region, Tensor]]:
        """Yield (region of the grid, `combine` of its logits) for each block of logits, some planes at a time.

        Args:
            blocks: (region of the grid, the network's logits (classes, h, w, d)).
        """
        for region, logits in blocks:
            first = region[0].start
            for part in _planes(region):
                planes = slice(part[0].start - first, part[0].stop - first)
                yield part, self.combine(logits[:, planes], part)
            del logits  # otherwise it stays in memory beside the next block

    @torch.inference_mode()
    def blocks(self, classes: int) -> Iterator[tuple[Region, Tensor]]:
        """Yield (region of the grid, logarithm of the prior (classes, h, w, d)), some planes at a time."""
        for region in _planes([slice(0, size) for size in self.grid.shape]):
            shares = self.shares(classes, region)
            shares[0] += 1 - shares.sum(0)  # without a network the rest is background
            yield region, shares.clamp_(min=_MIN_PROBABILITY).log_()


def _planes(region: Sequence[slice]) -> Iterator[Region]:
    """Yield the parts of a region, cut along its first axis, of about `_BLOCK_VOXELS` voxels."""
    rows, columns, slices = region
    step = max(1, _BLOCK_VOXELS // max(1, (columns.stop - columns.start) * (slices.stop - slices.start)))
    for first in range(rows.start, rows.stop, step):
        yield slice(first, min(first + step, rows.stop)), columns, slices
