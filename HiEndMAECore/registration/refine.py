"""Continuous refinement of a displacement by Adam, with a diffusion regularizer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .grids import inside, resize_field, sample, transform_points
from .search import Pair
from .transform import Transform, smooth_field

_BODY_SHARE = 0.1
_BETAS = (0.9, 0.999)


def refine(
    pair: Pair,
    transform: Transform,
    *,
    steps: int = 30,
    factor: int = 2,
    learning_rate: float = 1.0,
    regularization: float = 1.0,
    subset: int = 4,
    on_step: Callable[[], None] = lambda: None,
) -> Transform:
    """Return the transform after some steps of Adam.

    The movement lives on a grid that is `factor` times coarser than the features and is smoothed before it is used. Each
    step compares every `subset`-th body voxel.

    Args:
        pair: The features.
        transform: The transform to start from.
        steps: Steps of Adam.
        factor: Coarseness of the grid of control points.
        learning_rate: In voxels of the features.
        regularization: Weight of the mean squared difference of neighboring control points, in voxels of the features.
        subset: Number of interleaved subsets of voxels.
        on_step: Called after each step.
    """
    grid = pair.fixed.grid
    control = grid.pooled(factor)
    device = pair.fixed.channels.device
    spacing = float(grid.spacing.mean())
    points = grid.positions(device)
    selected = torch.nonzero((pair.fixed.body > _BODY_SHARE * pair.fixed.body.max()).flatten()).flatten()
    flat_points, flat_fixed = points.flatten(1), pair.fixed.channels.flatten(1)
    to_voxels = np.linalg.inv(pair.moving.grid.affine)
    control_voxels = transform_points(np.linalg.inv(control.affine), points).flatten(1)
    movement = torch.zeros((3, *control.shape), device=device, requires_grad=True)
    base = resize_field(transform.displacement, transform.grid, control)
    optimizer = _Adam(movement, learning_rate)
    for step in range(steps):
        chosen = selected[step % subset :: subset]
        smooth = smooth_field(movement)
        at = flat_points[:, chosen]
        shift = sample(smooth, control_voxels[:, chosen]) * spacing
        mapped = transform_points(transform.affine, at) + transform.displacement_at(at) + shift
        voxels = transform_points(to_voxels, mapped)
        present = inside(voxels.detach(), pair.moving.grid.shape)
        cost = (flat_fixed[:, chosen] - sample(pair.moving.channels, voxels)).square().sum(0) / pair.chance
        loss = (cost * present).mean() + regularization * _roughness(smooth + base / spacing)
        (gradient,) = torch.autograd.grad(loss, movement)
        optimizer.step(gradient)
        on_step()
    with torch.no_grad():
        final = smooth_field(movement) * spacing
        displacement = transform.displacement + resize_field(final, control, transform.grid)
    return Transform(transform.affine, displacement, transform.grid)


class _Adam:
    """Adam (Kingma and Ba 2015) for one tensor. torch.optim needs two seconds to import its compiler."""

    def __init__(self, parameter: Tensor, learning_rate: float) -> None:
        self._parameter, self._learning_rate = parameter, learning_rate
        self._mean, self._square = torch.zeros_like(parameter), torch.zeros_like(parameter)
        self._steps = 0

    def step(self, gradient: Tensor) -> None:
        """Change the parameter by one step."""
        self._steps += 1
        with torch.no_grad():
            self._mean.lerp_(gradient, 1 - _BETAS[0])
            self._square.lerp_(gradient.square(), 1 - _BETAS[1])
            mean = self._mean / (1 - _BETAS[0] ** self._steps)
            square = self._square / (1 - _BETAS[1] ** self._steps)
            self._parameter -= self._learning_rate * mean / (square.sqrt() + 1e-8)


def _roughness(field: Tensor) -> Tensor:
    """Return the mean squared difference of neighboring control points, summed over the axes."""
    return sum((field.diff(dim=axis).square().mean() for axis in (1, 2, 3)), start=field.new_zeros(()))
