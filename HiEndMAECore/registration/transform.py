"""The transform from the fixed scan to the moving scan: an affine map and a displacement on a grid, in RAS mm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .grids import Grid, inside, resize_field, sample, transform_points

_BLOCK_VOXELS = 2**20  # output voxels that are worked on at once
_INVERSE_STEPS = 20


@dataclass(frozen=True, eq=False)
class Transform:
    """A map of positions p of the fixed scan to positions of the moving one: affine(p) + displacement(p).

    Beyond its grid the displacement goes on as at the nearest border.

    Attributes:
        affine: (4, 4), RAS mm to RAS mm.
        displacement: float32 (3, X, Y, Z) in mm.
        grid: The grid of the displacement, in the fixed scan.
    """

    affine: np.ndarray
    displacement: Tensor
    grid: Grid

    @classmethod
    def of_affine(cls, affine: np.ndarray, grid: Grid, device: torch.device) -> Transform:
        """Return the transform without a displacement."""
        return cls(affine, torch.zeros((3, *grid.shape), device=device), grid)

    def displacement_at(self, points: Tensor) -> Tensor:
        """Return the displacement at positions (3, ...) in mm."""
        return sample(self.displacement, transform_points(np.linalg.inv(self.grid.affine), points))

    def map_points(self, points: Tensor) -> Tensor:
        """Return where positions (3, ...) in mm lie in the moving scan."""
        return transform_points(self.affine, points) + self.displacement_at(points)

    def compose(self, outer: Transform) -> Transform:
        """Return the transform that applies this one first and `outer` to the result."""
        affine = outer.affine @ self.affine
        points = self.grid.positions(self.displacement.device)
        displacement = outer.map_points(self.map_points(points)) - transform_points(affine, points)
        return Transform(affine, displacement, self.grid)

    def inverse(self, grid: Grid) -> Transform:
        """Return the inverse by fixed-point iteration.

        Args:
            grid: Grid in the moving scan on which the displacement of the inverse is held.
        """
        back = np.linalg.inv(self.affine)
        goal = grid.positions(self.displacement.device)
        start = transform_points(back, goal)
        linear = back.copy()
        linear[:3, 3] = 0.0
        points = start
        for _ in range(_INVERSE_STEPS):
            points = start - transform_points(linear, self.displacement_at(points))
        return Transform(back, points - start, grid)

    def warp_image(self, image: Tensor, source: Grid, target: Grid, *, outside: float = 0.0) -> Tensor:
        """Return an image of the moving scan on a grid of the fixed one.

        Args:
            image: (C, X, Y, Z) on `source`.
            source: Grid of the moving scan.
            target: Grid of the fixed scan.
            outside: Value where the moving scan does not reach.

        Returns:
            float32 (C, ...) on `target`.
        """
        image = image.float()
        result = torch.empty((len(image), *target.shape), device=image.device)
        for planes, voxels, present in self._blocks(source, target):
            result[:, planes] = torch.where(present, sample(image, voxels), outside)
        return result

    def warp_labels(self, labels: Tensor, source: Grid, target: Grid) -> Tensor:
        """Return a label map of the moving scan on a grid of the fixed one.

        Each label has a share in each voxel, the linear interpolation of its mask; the largest share wins. One label is
        worked on at a time, so that the memory does not grow with their number.

        Args:
            labels: Label map (X, Y, Z) of an integer type on `source`.
            source: Grid of the moving scan.
            target: Grid of the fixed scan.

        Returns:
            The label map on `target`, of the same type; background where the moving scan does not reach.
        """
        values = torch.unique(labels)
        result = torch.zeros(target.shape, dtype=labels.dtype, device=labels.device)
        boxes = {int(value): bounding_box(labels == value) for value in values if int(value) != 0}
        background = (labels == 0).float()[None]
        for planes, voxels, present in self._blocks(source, target):
            best = sample(background, voxels)[0]
            part = result[planes]
            for value, box in boxes.items():
                low = torch.tensor([b.start for b in box], dtype=torch.float32, device=labels.device)
                high = torch.tensor([b.stop - 1 for b in box], dtype=torch.float32, device=labels.device)
                shape = [-1] + [1] * 3
                near = ((voxels > low.reshape(shape) - 1) & (voxels < high.reshape(shape) + 1)).all(0) & present
                if not near.any():
                    continue
                mask = (labels[box] == value).float()[None]
                share = sample(mask, voxels[:, near] - low[:, None])[0]
                wins = share > best[near]
                best[near] = torch.where(wins, share, best[near])
                part[near] = torch.where(wins, torch.full_like(part[near], value), part[near])
        return result

    def folded_share(self) -> float:
        """Return the share of the grid's voxels in which the transform folds (the Jacobian determinant is not positive)."""
        step = torch.as_tensor(self.grid.affine[:3, :3], dtype=torch.float32, device=self.displacement.device)
        mapped = self.map_points(self.grid.positions(self.displacement.device))
        if min(self.grid.shape) < 2:
            return 0.0
        x, y, z = (mapped.diff(dim=axis) for axis in (1, 2, 3))
        jacobian = torch.stack([x[:, :, :-1, :-1], y[:, :-1, :, :-1], z[:, :-1, :-1, :]])  # (axis, component, ...)
        determinant = torch.linalg.det(jacobian.permute(2, 3, 4, 0, 1)) * torch.linalg.det(step).sign()
        return float((determinant <= 0).float().mean())

    def _blocks(self, source: Grid, target: Grid) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield planes of the target grid, their positions in voxels of the source, and which of them lie inside."""
        device = self.displacement.device
        to_voxels = np.linalg.inv(source.affine)
        step = max(1, _BLOCK_VOXELS // (target.shape[1] * target.shape[2]))
        for first in range(0, target.shape[0], step):
            planes = slice(first, min(first + step, target.shape[0]))
            voxels = transform_points(to_voxels, self.map_points(target.positions(device, planes)))
            yield planes, voxels, inside(voxels, source.shape)

    def on_grid(self, grid: Grid) -> Transform:
        """Return the transform with its displacement on another grid."""
        return Transform(self.affine, resize_field(self.displacement, self.grid, grid), grid)


def bounding_box(mask: Tensor) -> tuple[slice, slice, slice]:
    """Return the bounding box of a mask with a margin of one voxel, within the array."""
    parts = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        found = torch.nonzero(mask.any(others[1]).any(others[0])).flatten()
        parts.append(slice(max(0, int(found[0]) - 1), min(mask.shape[axis], int(found[-1]) + 2)))
    return parts[0], parts[1], parts[2]


def smooth_field(field: Tensor, repeats: int = 2) -> Tensor:
    """Return a field (C, X, Y, Z) averaged over 3 x 3 x 3 voxels, several times."""
    for _ in range(repeats):
        field = functional.avg_pool3d(functional.pad(field[None], [1] * 6, mode="replicate"), 3, stride=1)[0]
    return field
