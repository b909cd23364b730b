"""Search for the transform: starts along the body, a dense discrete search of displacements, and the affine map.

The discrete search follows Heinrich, Papież, Schnabel and Handels ("Non-parametric discrete registration with convex
optimisation", WBIR 2014): the cost of every displacement within a radius is computed for every cell of a coarse grid, then two
steps alternate: the best displacement of each cell under a quadratic penalty for leaving the smooth field, and the smoothing of
the field. The penalty's weight rises.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .features import Features, average_blocks
from .grids import Grid, inside, resize_field, sample, transform_points
from .transform import Transform, smooth_field

_COUPLING = (0.0003, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_OUTSIDE_COST = 1.0  # of a voxel where the moving scan does not reach, as a share of the cost by chance
_TRIMMED_SHARE = 0.4  # of the cells whose residual is largest is ignored by the affine map
_TRIMMING_ROUNDS = 5
_CHANCE_PAIRS = 20000


@dataclass(frozen=True)
class Level:
    """One discrete search.

    Attributes:
        pooling: The features are averaged over blocks of this many voxels; displacements are whole blocks.
        cell: Blocks along each axis of a cell with a common displacement.
        radius: Largest displacement along each axis, in blocks.
        coupling: Weight of the smoothness.
    """

    pooling: int
    cell: int
    radius: int
    coupling: float = 1.0


@dataclass(frozen=True, eq=False)
class Pair:
    """The features of both scans as the search compares them.

    Attributes:
        fixed, moving: Features in 32 bits, each channel multiplied by the square root of its weight.
        chance: Mean cost of random pairs of body voxels.
        coarser: The pairs on coarser grids that were made.
    """

    fixed: Features
    moving: Features
    chance: float
    coarser: dict[int, Pair] = field(default_factory=dict)

    @classmethod
    def of(cls, fixed: Features, moving: Features, weights: Tensor) -> Pair:
        """Return the pair of two scans whose channels have these weights (C,)."""
        fixed, moving = fixed.to_float(), moving.to_float()
        factors = (weights / weights.sum()).sqrt().to(fixed.channels.device)[:, None, None, None]
        fixed = Features(fixed.channels * factors, fixed.grid)
        moving = Features(moving.channels * factors, moving.grid)
        return cls(fixed, moving, _chance(fixed, moving))

    @property
    def device(self) -> torch.device:
        """Return the device of the features."""
        return self.fixed.channels.device

    def pooled(self, factor: int) -> Pair:
        """Return the pair on coarser grids, which is made once."""
        if factor == 1:
            return self
        if factor not in self.coarser:
            fixed, moving = self.fixed.pooled(factor), self.moving.pooled(factor)
            self.coarser[factor] = Pair(fixed, moving, _chance(fixed, moving))
        return self.coarser[factor]


def _chance(fixed: Features, moving: Features) -> float:
    """Return the mean cost of random pairs of body voxels."""
    generator = torch.Generator().manual_seed(0)
    chosen = []
    for features in (fixed, moving):
        flat = features.channels.flatten(1)
        body = torch.nonzero(flat[-1] > 0.5 * flat[-1].max()).flatten()
        chosen.append(flat[:, body[torch.randint(len(body), (_CHANCE_PAIRS,), generator=generator).to(body.device)]])
    return float((chosen[0] - chosen[1]).square().sum(0).mean())


def warp_features(moving: Features, transform: Transform, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return the moving features (C, X, Y, Z) on a grid in the fixed scan, and where the moving scan reaches."""
    voxels = transform_points(
        np.linalg.inv(moving.grid.affine), transform.map_points(grid.positions(moving.channels.device))
    )
    return sample(moving.channels, voxels), inside(voxels, moving.grid.shape)


def matching_cost(pair: Pair, transform: Transform) -> float:
    """Return the mean cost over both bodies as a share of the cost by chance."""
    warped, present = warp_features(pair.moving, transform, pair.fixed.grid)
    cost = (pair.fixed.channels - warped).square().sum(0) / pair.chance
    cost = torch.where(present, cost, _OUTSIDE_COST)
    weight = torch.maximum(pair.fixed.body, warped[-1] * present) / pair.fixed.body.amax()
    return float((cost * weight).sum() / weight.sum())


def discrete_search(pair: Pair, transform: Transform, level: Level) -> Transform:
    """Return the transform improved by a discrete search; `pair` is pooled already."""
    grid, radius = pair.fixed.grid, level.radius
    warped, present = warp_features(pair.moving, transform, grid.padded(radius))
    offsets = _offsets(radius)
    costs = _cell_costs(pair.fixed.channels, warped, present, offsets, level, outside=_OUTSIDE_COST * pair.chance)
    field = _coupled_convex(costs / pair.chance, offsets.to(costs.device), level)
    steps = torch.as_tensor(grid.affine[:3, :3], dtype=torch.float32, device=costs.device)
    movement = torch.einsum("ij,jxyz->ixyz", steps, field)
    return compose_movement(transform, movement, grid.pooled(level.cell))


def compose_movement(transform: Transform, movement: Tensor, cells: Grid) -> Transform:
    """Return the transform after a movement (3, x, y, z) of the positions in mm, given on a grid of cells."""
    grid = transform.grid
    points = grid.positions(movement.device)
    moved = points + resize_field(movement, cells, grid)
    return Transform(transform.affine, transform.map_points(moved) - transform_points(transform.affine, points), grid)


def _offsets(radius: int) -> Tensor:
    """Return all displacements within a cube, (D, 3), the smallest first: it is taken where costs are equal."""
    steps = torch.arange(-radius, radius + 1, dtype=torch.float32)
    offsets = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    return offsets[offsets.square().sum(1).argsort(stable=True)]


def _cell_costs(
    fixed: Tensor, warped: Tensor, present: Tensor, offsets: Tensor, level: Level, *, outside: float
) -> Tensor:
    """Return the cost of each displacement in each cell, (D, x, y, z).

    Args:
        fixed: (C, X, Y, Z).
        warped: Moving features with a margin of the level's radius.
        present: Where the moving scan reaches, with the same margin.
        offsets: (D, 3).
        level: The level.
        outside: Cost where the moving scan does not reach.
    """
    costs = []
    everywhere = bool(present.all())
    difference = torch.empty_like(fixed)
    for offset in (offsets + level.radius).int().tolist():
        part = tuple(slice(o, o + n) for o, n in zip(offset, fixed.shape[1:]))
        torch.sub(fixed, warped[(slice(None), *part)], out=difference)
        cost = difference.square_().sum(0)
        if not everywhere:
            cost = torch.where(present[part], cost, outside)
        costs.append(average_blocks(cost[None], level.cell)[0])
    return torch.stack(costs)


def _coupled_convex(costs: Tensor, offsets: Tensor, level: Level) -> Tensor:
    """Return a smooth field of displacements in blocks, (3, x, y, z), from the costs (D, x, y, z)."""
    shape = costs.shape[1:]
    flat = costs.flatten(1)
    field = torch.zeros((3, *shape), device=costs.device)
    squares = offsets.square().sum(1, keepdim=True)
    for weight in _COUPLING:
        weight *= level.coupling
        # The cell's own |field|^2 is the same for every displacement and left out.
        total = torch.addmm(flat, offsets, field.flatten(1), alpha=-2 * weight).add_(squares, alpha=weight)
        best = offsets[total.argmin(0)].T.reshape(3, *shape)
        field = smooth_field(best)
    return field


def fit_affine(transform: Transform, weight: Tensor) -> np.ndarray:
    """Return the affine map (4, 4) closest to a transform by least squares; the worst residuals are ignored.

    Args:
        transform: The transform.
        weight: (X, Y, Z) on its grid; positions with 0.5 or more take part.
    """
    points = transform.grid.positions(weight.device)
    used = weight >= 0.5 * weight.max()
    source = points[:, used].T.cpu().numpy().astype(np.float64)
    goal = transform.map_points(points)[:, used].T.cpu().numpy().astype(np.float64)
    middle = source.mean(0)
    design = np.concatenate([source - middle, np.ones((len(source), 1))], axis=1)
    retained = np.ones(len(source), bool)
    for _ in range(_TRIMMING_ROUNDS):
        solution = np.linalg.lstsq(design[retained], goal[retained], rcond=None)[0]
        residual = np.linalg.norm(design @ solution - goal, axis=1)
        retained = residual <= np.quantile(residual, 1 - _TRIMMED_SHARE)
    affine = np.eye(4)
    affine[:3, :3] = solution[:3].T
    affine[:3, 3] = solution[3] - affine[:3, :3] @ middle
    return affine


def starts_along_body(fixed: Features, moving: Features, *, step: float) -> Iterator[np.ndarray]:
    """Yield affine maps to start from: the bodies' middles and widths agree, at shifts along the body.

    Args:
        fixed: Features of the fixed scan, coarse.
        moving: Features of the moving scan, coarse.
        step: Distance of the shifts in mm.
    """
    outlines = [_outlines(features) for features in (fixed, moving)]
    extents = [features.grid.extent[2] for features in (fixed, moving)]
    centers = [float(features.grid.center[2]) for features in (fixed, moving)]
    reach = (extents[0] + extents[1]) / 2 - 0.5 * min(extents)
    count = int(reach // step)
    for number in sorted(range(-count, count + 1), key=abs):
        shift = centers[1] - centers[0] + number * step
        yield _start_at(outlines[0], outlines[1], shift)


def _outlines(features: Features) -> np.ndarray:
    """Return for each axial slice with body its height, middle (R, A) and width (R, A) in mm, (N, 5)."""
    body, grid = features.body.cpu().numpy(), features.grid
    rows = []
    for plane in range(body.shape[2]):
        mask = body[:, :, plane] > 0.5 * body.max()
        if not mask.any():
            continue
        low_high = [np.flatnonzero(mask.any(1 - axis))[[0, -1]] for axis in (0, 1)]
        middle = [(low + high) / 2 for low, high in low_high]
        position = grid.affine[:3, :3] @ [middle[0], middle[1], plane] + grid.affine[:3, 3]
        width = [(high - low + 1) * grid.spacing[axis] for axis, (low, high) in enumerate(low_high)]
        rows.append([position[2], position[0], position[1], *width])
    return np.array(rows)


def _start_at(fixed: np.ndarray, moving: np.ndarray, shift: float) -> np.ndarray:
    """Return the affine map that moves by `shift` mm along S and fits the outlines of the slices that meet."""
    moving_rows = np.abs(moving[:, 0] - (fixed[:, :1] + shift)).argmin(1)
    gap = np.abs(moving[moving_rows, 0] - fixed[:, 0] - shift)
    meets = gap <= max(gap.min(), 1.5 * float(np.median(np.diff(moving[:, 0]))) if len(moving) > 1 else gap.min())
    pairs = fixed[meets], moving[moving_rows[meets]]
    scale = np.clip(np.median(pairs[1][:, 3:] / pairs[0][:, 3:], axis=0), 0.6, 1.6)
    middles = [np.median(rows[:, 1:3], axis=0) for rows in pairs]
    affine = np.eye(4)
    affine[[0, 1], [0, 1]] = scale
    affine[:2, 3] = middles[1] - scale * middles[0]
    affine[2, 3] = shift
    return affine
