"""Regular grids in RAS mm: positions, linear sampling, and resampling between grids with the same axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, eq=False)
class Grid:
    """A regular grid.

    Attributes:
        shape: Voxels along each axis.
        affine: (4, 4), from voxel index to RAS mm.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def spacing(self) -> np.ndarray:
        """Return the distance of neighboring voxels in mm, (3,)."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def extent(self) -> np.ndarray:
        """Return the length along each axis in mm with the outer halves of the outermost voxels, (3,)."""
        return self.spacing * self.shape

    @property
    def center(self) -> np.ndarray:
        """Return the middle in RAS mm, (3,)."""
        return self.affine[:3, :3] @ ((np.asarray(self.shape) - 1) / 2) + self.affine[:3, 3]

    def with_spacing(self, spacing: float) -> Grid:
        """Return the grid of the same axes and middle with another spacing; it covers at least as much."""
        shape = np.maximum(1, np.ceil(self.extent / spacing - 1e-6)).astype(int)
        affine = np.eye(4)
        affine[:3, :3] = self.affine[:3, :3] / self.spacing * spacing
        affine[:3, 3] = self.center - affine[:3, :3] @ ((shape - 1) / 2)
        return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)

    def pooled(self, factor: int) -> Grid:
        """Return the grid of the blocks of `factor` voxels along each axis; blocks at the end may be incomplete."""
        if factor == 1:
            return self
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ np.full(3, (factor - 1) / 2)
        affine[:3, :3] *= factor
        x, y, z = (math.ceil(n / factor) for n in self.shape)
        return Grid((x, y, z), affine)

    def padded(self, margin: int) -> Grid:
        """Return the grid with `margin` more voxels at each end."""
        affine = self.affine.copy()
        affine[:3, 3] -= affine[:3, :3] @ np.full(3, margin)
        x, y, z = (n + 2 * margin for n in self.shape)
        return Grid((x, y, z), affine)

    def positions(self, device: torch.device, planes: slice = slice(None)) -> Tensor:
        """Return the positions of the voxels in RAS mm, (3, X, Y, Z); of some planes of the first axis if asked."""
        axes = [torch.arange(n, device=device, dtype=torch.float32) for n in self.shape]
        axes[0] = axes[0][planes]
        return transform_points(self.affine, torch.stack(torch.meshgrid(*axes, indexing="ij")))


def transform_points(matrix: np.ndarray, points: Tensor) -> Tensor:
    """Return the points (3, ...) moved by an affine map (4, 4)."""
    linear = torch.as_tensor(matrix[:3, :3], dtype=points.dtype, device=points.device)
    shift = torch.as_tensor(matrix[:3, 3], dtype=points.dtype, device=points.device)
    return (linear @ points.reshape(3, -1) + shift[:, None]).reshape(points.shape)


def sample(volume: Tensor, voxels: Tensor) -> Tensor:
    """Return the linear interpolation (C, ...) of a volume (C, X, Y, Z) at voxel positions (3, ...).

    Outside of the volume the nearest border value is taken.
    """
    sizes = torch.tensor(volume.shape[1:], dtype=voxels.dtype, device=voxels.device)
    last = (sizes - 1).clamp(min=1).reshape(3, *[1] * (voxels.ndim - 1))
    scaled = (2 * voxels / last - 1).reshape(3, -1).flip(0).T
    sampled = functional.grid_sample(
        volume[None], scaled[None, :, None, None], mode="bilinear", padding_mode="border", align_corners=True
    )
    return sampled.reshape(len(volume), *voxels.shape[1:])


def inside(voxels: Tensor, shape: Sequence[int]) -> Tensor:
    """Return which voxel positions (3, ...) lie within a grid and its outer half voxels, boolean (...)."""
    result = torch.ones(voxels.shape[1:], dtype=torch.bool, device=voxels.device)
    for position, size in zip(voxels, shape):
        result &= (position >= -0.5) & (position <= size - 0.5)
    return result


def resample_parallel(image: Tensor, source: Grid, target: Grid) -> Tensor:
    """Resample an image (X, Y, Z) to a grid with the same axes.

    The kernel along each axis is linear interpolation, widened to the target's spacing where that is the larger one.
    """
    output_to_input = np.linalg.inv(source.affine) @ target.affine
    for axis in range(3):
        step, start = output_to_input[axis, axis], output_to_input[axis, 3]
        points = torch.arange(target.shape[axis], dtype=torch.float32, device=image.device) * step + start
        points = points.clamp(0, source.shape[axis] - 1)
        inputs = torch.arange(source.shape[axis], dtype=torch.float32, device=image.device)
        weights = (1 - (points[:, None] - inputs).abs() / max(1.0, abs(step))).clamp(min=0)
        weights = weights / weights.sum(1, keepdim=True)
        image = torch.tensordot(weights, image, dims=([1], [axis])).movedim(0, axis)
    return image.contiguous()


def resize_field(field: Tensor, source: Grid, target: Grid) -> Tensor:
    """Return a field (C, X, Y, Z) interpolated linearly on another grid, constant beyond its border."""
    voxels = transform_points(np.linalg.inv(source.affine), target.positions(field.device))
    return sample(field, voxels)
