"""Resampling of label maps between grids with parallel axes, by the largest share of linear interpolation.

The centers of eight neighboring input voxels are the corners of a cell. Every output voxel in a cell whose corners agree gets
their label; shares are computed in the other cells alone, which lie at the borders of structures. This gives the labels of
`resampling.resample_label_map`, one order of magnitude faster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .orientation import parallel_positions

_SLAB_CELLS = 2**21  # cells that are compared at once
_CHUNK_VOXELS = 2**15  # output voxels whose shares are in memory at once


@dataclass(frozen=True, eq=False)
class _AxisCells:
    """The cells along one axis that hold output voxels, in the order of the output.

    Attributes:
        span: First and end output voxel inside of the input.
        lower, upper: (N,) the input voxels at both ends of each cell; beyond the input's border they are the same.
        first, count: (N,) the first output voxel of each cell, and the number of them.
        voxels: (largest count, N) the output voxels of each cell, the last one repeated.
        fractions: (largest count, N) their positions between `lower` (0) and `upper` (1).
    """

    span: tuple[int, int]
    lower: np.ndarray
    upper: np.ndarray
    first: np.ndarray
    count: np.ndarray
    voxels: np.ndarray
    fractions: np.ndarray

    @classmethod
    def along(cls, positions: np.ndarray, length: int) -> _AxisCells | None:
        """Return the cells of output voxels at `positions` (monotonic, in input voxels); None if all lie outside."""
        inside = np.flatnonzero((positions >= -0.5) & (positions < length - 0.5))
        if not len(inside):
            return None
        start, end = int(inside[0]), int(inside[-1]) + 1
        floors = np.floor(positions[start:end]).astype(int)
        first = np.flatnonzero(np.diff(floors, prepend=floors[0] - 1))
        count = np.diff(first, append=end - start)
        cells = floors[first]
        voxels = first + np.minimum(np.arange(count.max())[:, None], count - 1)
        fractions = (positions[start:end] - floors)[voxels]
        lower, upper = np.clip(cells, 0, length - 1), np.clip(cells + 1, 0, length - 1)
        return cls((start, end), lower, upper, first + start, count, voxels + start, fractions)

    def part(self, begin: int, end: int) -> _AxisCells:
        """Return the cells from `begin` to `end`."""
        rest = (self.lower, self.upper, self.first, self.count, self.voxels, self.fractions)
        return _AxisCells(self.span, *(values[..., begin:end] for values in rest))


def resample_parallel_label_map(
    labels: np.ndarray, output_to_input: np.ndarray, output_shape: Sequence[int], *, order: Literal["C", "F"] = "C"
) -> np.ndarray:
    """Resample a label map as `resampling.resample_label_map` does, to a grid with parallel axes (`orientation.is_parallel`).

    Args:
        labels: Label map (X, Y, Z) of an integer type.
        output_to_input: (4, 4), from output voxel to input voxel.
        output_shape: Voxels of the output along each axis.
        order: Memory layout of the result.
    """
    outputs = [0, 1, 2] if order == "C" else [2, 1, 0]  # slowest axis of the result first
    result = np.zeros([int(output_shape[axis]) for axis in outputs], labels.dtype)
    sources, positions = parallel_positions(output_to_input, output_shape)
    inputs, cells = [sources[axis] for axis in outputs], []
    for axis, source in zip(outputs, inputs):
        found = _AxisCells.along(positions[axis], labels.shape[source])
        if found is None:
            return result.transpose(outputs)
        cells.append(found)
    labels = labels.transpose(inputs)
    slow, middle, fast = cells
    rows = max(1, _SLAB_CELLS // (len(middle.lower) * len(fast.lower)))
    for begin in range(0, len(slow.lower), rows):
        _fill_slab(result, labels, (slow.part(begin, begin + rows), middle, fast))
    return result.transpose(outputs)


def _fill_slab(result: np.ndarray, labels: np.ndarray, cells: tuple[_AxisCells, _AxisCells, _AxisCells]) -> None:
    """Fill the output voxels in some cells: first all with the label of one corner, then the cells at borders."""
    slow, middle, fast = cells
    corners = [
        labels[np.ix_(x, y, z)]
        for x in (slow.lower, slow.upper)
        for y in (middle.lower, middle.upper)
        for z in (fast.lower, fast.upper)
    ]
    rows = corners[0].repeat(fast.count, axis=2).repeat(middle.count, axis=1)
    target = result[:, slice(*middle.span), slice(*fast.span)]
    for plane, first, count in zip(rows, slow.first, slow.count):
        target[first : first + count] = plane
    is_border = np.zeros(corners[0].shape, bool)
    for corner in corners[1:]:
        is_border |= corner != corners[0]
    values = np.stack([corner[is_border] for corner in corners])
    _fill_border_cells(result, values, np.nonzero(is_border), cells)


def _fill_border_cells(
    result: np.ndarray, corners: np.ndarray, places: Sequence[np.ndarray], cells: Sequence[_AxisCells]
) -> None:
    """Fill the output voxels in cells whose corners (8, N) have different labels; `places` are their indices in `cells`."""
    ranked = np.sort(corners, axis=0)
    is_first = np.ones(ranked.shape, bool)
    np.not_equal(ranked[1:], ranked[:-1], out=is_first[1:])
    counts = is_first.sum(axis=0)
    step = max(1, _CHUNK_VOXELS // math.prod(len(axis.voxels) for axis in cells))
    flat, (_, height, depth) = result.reshape(-1), result.shape
    for count in range(2, 9):  # cells with the same number of labels together
        rows = np.flatnonzero(counts == count)
        for begin in range(0, len(rows), step):
            part = rows[begin : begin + step]
            # `take` keeps the cells contiguous, on which the speed depends; an index would not.
            labels = ranked.take(part, axis=1).T[is_first.take(part, axis=1).T].reshape(-1, count).T.copy()
            chosen = [place[part] for place in places]
            fractions = [axis.fractions.take(place, axis=1) for axis, place in zip(cells, chosen)]
            x, y, z = (axis.voxels.take(place, axis=1) for axis, place in zip(cells, chosen))
            index = ((x * height)[:, None] + y)[:, :, None] * depth + z
            flat[index] = _largest_shares(corners.take(part, axis=1), labels, fractions)


def _largest_shares(corners: np.ndarray, labels: np.ndarray, fractions: Sequence[np.ndarray]) -> np.ndarray:
    """Return the labels with the largest shares inside of cells.

    Args:
        corners: (8, N), labels of the corners of each cell.
        labels: (K, N), the different ones among them, in rising order.
        fractions: (a, N), (b, N) and (c, N), positions of the cell's output voxels along each axis.

    Returns:
        (a, b, c, N); the lower label where shares are equal.
    """
    share = _shares(corners == labels[0], fractions)
    rest = 1.0 - share  # shares of the labels that follow
    # Compared in 32 bits: shares that differ by rounding alone are equal.
    best = share.astype(np.float32)
    result = np.broadcast_to(labels[0], best.shape).copy()
    for rank, label in enumerate(labels[1:], start=2):
        is_last = rank == len(labels)
        share = rest if is_last else _shares(corners == label, fractions)
        rounded = share.astype(np.float32)
        np.maximum(result, label * (rounded > best), out=result)  # labels rise, and this is faster than a masked copy
        if not is_last:
            rest -= share
            np.maximum(best, rounded, out=best)
    return result


def _shares(indicator: np.ndarray, fractions: Sequence[np.ndarray]) -> np.ndarray:
    """Return the linear interpolation (a, b, c, N) of an indicator (8, N) of the corners inside of cells."""
    x, y, z = fractions
    low, high = indicator.reshape(2, 4, -1).astype(np.float64)
    values = low[None] + (high - low)[None] * x[:, None]  # (a, 4, N)
    low, high = values[:, None, :2], values[:, None, 2:]
    values = low + (high - low) * y[:, None]  # (a, b, 2, N)
    low, high = values[:, :, :1], values[:, :, 1:]
    shares: np.ndarray = (high - low) * z
    shares += low
    return shares
