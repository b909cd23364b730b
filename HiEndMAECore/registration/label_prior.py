"""Propagated labels as a prior: how likely each structure is in each voxel of a scan, by the label maps of registered atlases.

The share of a structure in a voxel is the linear interpolation of its mask at the registered position, averaged over the
atlases. Voxels that no atlas reaches are background.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .grids import Grid, inside, sample, transform_points
from .transform import Transform, bounding_box

_BLOCK_VOXELS = 2**19  # that are worked on at once
_MIN_PROBABILITY = 1e-6


@dataclass(eq=False)
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
            self._masks[structure] = self._boxed_mask(structure)
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

    def _boxed_mask(self, structure: int) -> tuple[Tensor, Tensor]:
        """Return the mask of a structure in its box, which ends in zeros unless the scan does, and the box's first voxel."""
        mask = self.labels == structure
        if not bool(mask.any()):
            return mask.new_zeros((1, 1, 1), dtype=torch.float32), torch.zeros(3, device=mask.device)
        box = bounding_box(mask)
        start = torch.tensor([part.start for part in box], dtype=torch.float32, device=mask.device)
        return mask[box].float(), start


@dataclass(frozen=True, eq=False)
class LabelPrior:
    """The prior of a scan from one or several atlases.

    Attributes:
        propagated: The labels of each atlas.
        grid: The network's grid of the scan.
        weight: Of the prior in the mean with the network's probabilities, from 0 to 1. A mean and not a product, so that a
            network that knows little yet does not erase what the registration found.
    """

    propagated: tuple[PropagatedLabels, ...]
    grid: Grid
    weight: float

    @torch.inference_mode()
    def shares(self, classes: int, region: Sequence[slice]) -> Tensor:
        """Return the share of each class, float32 (classes, h, w, d), in a region of the grid."""
        positions = [labels.voxels_of(self.grid, region) for labels in self.propagated]
        shares = torch.zeros((classes, *positions[0].shape[1:]), device=positions[0].device)
        for labels, voxels in zip(self.propagated, positions):
            for structure in range(1, classes):
                part = labels.shares_at(voxels, structure)
                if part is not None:
                    shares[structure] += part / len(self.propagated)
        torch.sub(1, shares[1:].sum(0), out=shares[0])
        return shares.clamp_(min=0)

    @torch.inference_mode()
    def combine(self, logits: Tensor, region: Sequence[slice]) -> Tensor:
        """Return logits whose softmax is the weighted mean of the network's probabilities and the prior.

        Args:
            logits: The network's (classes, h, w, d) of a region of the grid.
            region: Its first and end voxels.
        """
        probabilities = logits.float().softmax(0).mul_(1 - self.weight)
        probabilities += self.weight * self.shares(len(logits), region).to(probabilities.device)
        return probabilities.clamp_(min=_MIN_PROBABILITY).log_()

    def blocks(self, classes: int) -> Iterator[tuple[tuple[slice, slice, slice], Tensor]]:
        """Yield (region of the grid, logarithm of the prior (classes, h, w, d)), some planes at a time."""
        height, width, depth = self.grid.shape
        planes = max(1, _BLOCK_VOXELS // (width * depth))
        for first in range(0, height, planes):
            region = (slice(first, min(first + planes, height)), slice(0, width), slice(0, depth))
            # Not in place: this runs outside of the inference mode that made the shares.
            yield region, self.shares(classes, region).clamp(min=_MIN_PROBABILITY).log_()
