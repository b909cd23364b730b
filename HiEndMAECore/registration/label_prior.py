"""Propagated labels as a prior: how likely each structure is in each voxel of a scan, from the label maps of registered atlases.

The share of a structure in a voxel is the linear interpolation of its smoothed mask at the registered position, averaged over the
atlases. Voxels that no atlas reaches are background.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .grids import Grid, inside, sample, transform_points
from .transform import Transform, bounding_box

_BLOCK_VOXELS = 2**19  # that are worked on at once


@dataclass(eq=False)
class PropagatedLabels:
    """The label map of one atlas and its transform to a scan.

    Attributes:
        labels: Integers (X, Y, Z): 0 for background and i + 1 for the model's structure i.
        grid: Grid of the labels.
        transform: From positions in the scan to positions in the atlas, in RAS mm.
        smoothing: Times that the masks are averaged over 3 x 3 x 3 voxels.
    """

    labels: Tensor
    grid: Grid
    transform: Transform
    smoothing: int = 0
    _masks: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def shares_at(self, voxels: Tensor, structure: int) -> Tensor | None:
        """Return the share of a structure at positions in voxels of the labels; None where it is nowhere near.

        Args:
            voxels: (3, ...), as `voxels_of` returns them.
            structure: 1 to K.

        Returns:
            float32 (...), from 0 to 1.
        """
        if structure not in self._masks:
            self._masks[structure] = self._smoothed_mask(structure)
        mask, start = self._masks[structure]
        end = start + torch.tensor(mask.shape, dtype=voxels.dtype, device=voxels.device)
        shape = (3, *[1] * (voxels.ndim - 1))
        near = ((voxels > start.view(shape) - 1) & (voxels < end.view(shape))).all(0)
        near &= inside(voxels, self.labels.shape)
        if not bool(near.any()):
            return None
        shares = voxels.new_zeros(voxels.shape[1:])
        shares[near] = sample(mask[None], voxels[:, near] - start[:, None])[0]
        return shares

    def voxels_of(self, grid: Grid, region: Sequence[slice]) -> Tensor:
        """Return the positions (3, h, w, d) of a region of a grid of the scan, in voxels of the labels."""
        affine = grid.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ np.array([part.start for part in region], dtype=np.float64)
        h, w, d = (part.stop - part.start for part in region)
        points = Grid((h, w, d), affine).positions(self.labels.device)
        return transform_points(np.linalg.inv(self.grid.affine), self.transform.map_points(points))

    def _smoothed_mask(self, structure: int) -> tuple[Tensor, Tensor]:
        """Return the mask of a structure in its box, which ends in zeros unless the scan does, and the box's first voxel."""
        mask = self.labels == structure
        if not bool(mask.any()):
            return mask.new_zeros((1, 1, 1), dtype=torch.float32), torch.zeros(3, device=mask.device)
        box = [
            slice(max(0, part.start - self.smoothing), min(length, part.stop + self.smoothing))
            for part, length in zip(bounding_box(mask), mask.shape)
        ]
        part = mask[tuple(box)].float()[None]
        for _ in range(self.smoothing):
            part = functional.avg_pool3d(functional.pad(part[None], [1] * 6, mode="replicate"), 3, stride=1)[0]
        start = torch.tensor([part.start for part in box], dtype=torch.float32, device=mask.device)
        return part[0], start


@dataclass(frozen=True, eq=False)
class LabelPrior:
    """The prior of a scan from one or several atlases.

    Attributes:
        propagated: The labels of each atlas.
        grid: The network's grid of the scan.
        weight: Exponent of the prior.
        floor: Share that every class has everywhere, so that the network can find what the prior misses.
    """

    propagated: tuple[PropagatedLabels, ...]
    grid: Grid
    weight: float
    floor: float

    @torch.inference_mode()
    def add_to(self, logits: Tensor, region: Sequence[slice]) -> Tensor:
        """Add the logarithm of the prior to logits, in place.

        Args:
            logits: (K + 1, h, w, d) of a region of the grid.
            region: Its first and end voxels.

        Returns:
            The logits.
        """
        voxels = [labels.voxels_of(self.grid, region) for labels in self.propagated]
        background = torch.ones(logits.shape[1:], device=voxels[0].device)
        for structure in range(1, len(logits)):
            total = torch.zeros_like(background)
            for labels, positions in zip(self.propagated, voxels):
                shares = labels.shares_at(positions, structure)
                if shares is not None:
                    total += shares / len(self.propagated)
            background -= total
            logits[structure] += (self.weight * (total + self.floor).log()).to(logits)
        logits[0] += (self.weight * (background.clamp_(min=0) + self.floor).log()).to(logits)
        return logits

    def blocks(self, classes: int) -> Iterator[tuple[tuple[slice, slice, slice], Tensor]]:
        """Yield (region of the grid, logarithm of the prior (classes, h, w, d)), some planes at a time."""
        height, width, depth = self.grid.shape
        planes = max(1, _BLOCK_VOXELS // (width * depth))
        for first in range(0, height, planes):
            region = (slice(first, min(first + planes, height)), slice(0, width), slice(0, depth))
            shape = (classes, region[0].stop - first, width, depth)
            yield region, self.add_to(torch.zeros(shape, device=self.propagated[0].labels.device), region)
