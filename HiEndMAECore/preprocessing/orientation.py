"""Orientation: the axes of a grid next to R, A and S, regular grids, and the regular runs of an irregular stack.

Affines map voxel indices to RAS mm. A stack of slices that is not a regular grid (gantry tilt, uneven gaps) is divided into
runs of equally spaced slices; the map of a run is affine (a shear where there is tilt).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from HiEndMAECore.io.volume import Geometry

_MAX_SHIFT = 1e-3  # input voxels by which the other axes may move a position; header values are rounded
_RUN_TOLERANCE_MM = 0.01  # a slice may lie this far off the straight line of its run


@dataclass(frozen=True)
class RegularRun:
    """Equally spaced slices of a stack.

    Attributes:
        first: The first slice.
        last: The last slice, which belongs to the run.
        affine: (4, 4), from (x, y, z - first) to RAS mm.
    """

    first: int
    last: int
    affine: np.ndarray


def regular_runs(geometry: Geometry) -> list[RegularRun]:
    """Divide a stack into regular runs.

    Args:
        geometry: The stack.

    Returns:
        The runs in order; neighbors share their border slice. A regular grid is one run.
    """
    origins, count = geometry.slice_origins, geometry.shape[2]
    if origins is None or count == 1:
        return [RegularRun(0, count - 1, geometry.affine)]
    pieces, first = [], 0
    while first < count - 1:
        last, step = first + 1, origins[first + 1] - origins[first]
        while last + 1 < count:
            off = origins[last + 1] - origins[first] - (last + 1 - first) * step
            if np.linalg.norm(off) > _RUN_TOLERANCE_MM:
                break
            last += 1
        affine = geometry.affine.copy()
        affine[:3, 2] = (origins[last] - origins[first]) / (last - first)
        affine[:3, 3] = origins[first]
        pieces.append(RegularRun(first, last, affine))
        first = last
    return pieces


def translate_affine(affine: np.ndarray, start: Sequence[float]) -> np.ndarray:
    """Return the affine of the part of a grid that begins at voxel `start`."""
    moved = np.array(affine, dtype=np.float64)
    moved[:3, 3] = affine[:3, :3] @ np.asarray(start, dtype=np.float64) + affine[:3, 3]
    return moved


def ras_axes(affine: np.ndarray) -> np.ndarray:
    """Return the orthonormal directions of a grid in the order and sign closest to R, A and S.

    A sheared grid keeps its first axis (the rows) and the plane of its first two; the third becomes their normal.

    Args:
        affine: (4, 4), from voxel index to RAS mm.

    Returns:
        (3, 3), a direction in each column.
    """
    directions, upper = np.linalg.qr(affine[:3, :3])
    directions = directions * np.sign(np.diag(upper))
    orientation = nib.orientations.io_orientation(nib.affines.from_matvec(directions))
    axes = np.empty((3, 3))
    for column, (axis, sign) in enumerate(orientation):
        axes[:, int(axis)] = directions[:, column] * sign
    return axes


def grid_corners(geometry: Geometry, box: Sequence[tuple[int, int]] | None = None) -> np.ndarray:
    """Return the corners of a grid in RAS mm.

    Args:
        geometry: The grid.
        box: First and end voxel along each axis, for the corners of a part; None for all.

    Returns:
        (N, 3), the outer edges of the outermost voxels; eight for each regular run.
    """
    (x0, x1), (y0, y1), (z0, z1) = box or [(0, n) for n in geometry.shape]
    points = []
    for run in regular_runs(geometry):
        low, high = max(z0, run.first), min(z1 - 1, run.last)
        if low > high:
            continue
        for z in (low - 0.5 - run.first, high + 0.5 - run.first):
            points += [(run.affine @ (x, y, z, 1))[:3] for x in (x0 - 0.5, x1 - 0.5) for y in (y0 - 0.5, y1 - 0.5)]
    return np.array(points)


def regular_grid(
    geometry: Geometry, spacing: Sequence[float], *, box: Sequence[tuple[int, int]] | None = None
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Return the orthogonal grid closest to R, A and S over a scan or a part of it.

    The grid is centered on what it covers, has at least one voxel along each axis, and the centers of its outermost voxels
    lie inside.

    Args:
        geometry: The scan's own grid.
        spacing: Spacing in mm along R, A and S.
        box: First and end voxel along each stored axis of the part to cover; None for all.

    Returns:
        Its affine (4, 4), from voxel index to RAS mm, and its shape.
    """
    axes, step = ras_axes(geometry.affine), np.asarray(spacing, dtype=np.float64)
    along = grid_corners(geometry, box) @ axes
    low, high = along.min(axis=0), along.max(axis=0)
    shape = np.maximum(1, np.ceil((high - low) / step - 0.01)).astype(int)
    first = (low + high) / 2 - (shape - 1) / 2 * step
    affine = nib.affines.from_matvec(axes * step, axes @ first)
    return affine, (int(shape[0]), int(shape[1]), int(shape[2]))


def is_parallel(output_to_input: np.ndarray, output_shape: Sequence[int]) -> bool:
    """Return whether an affine map permutes, flips, scales and shifts the axes, but does not rotate or shear them.

    Args:
        output_to_input: (4, 4), from output voxel to input voxel.
        output_shape: Voxels of the output along each axis.
    """
    matrix = np.abs(output_to_input[:3, :3])
    sources = matrix.argmax(axis=0)
    if sorted(sources) != [0, 1, 2]:
        return False
    shifts = matrix * np.asarray(output_shape)
    shifts[sources, range(3)] = 0.0
    return bool(shifts.sum(axis=1).max() < _MAX_SHIFT)


def parallel_positions(
    output_to_input: np.ndarray, output_shape: Sequence[int]
) -> tuple[tuple[int, int, int], list[np.ndarray]]:
    """Return where the voxels of a grid lie along the parallel axes of another one (`is_parallel`).

    Args:
        output_to_input: (4, 4), from output voxel to input voxel.
        output_shape: Voxels of the output along each axis.

    Returns:
        For each output axis the input axis that is parallel to it, and the positions along it in input voxels.
    """
    a, b, c = (int(source) for source in np.abs(output_to_input[:3, :3]).argmax(axis=0))
    middle = (np.asarray(output_shape) - 1) / 2  # the other axes move a position only by rounding
    positions = []
    for axis, source in enumerate((a, b, c)):
        row = output_to_input[source]
        shift = row[3] + row[:3] @ middle - row[axis] * middle[axis]
        positions.append(row[axis] * np.arange(output_shape[axis]) + shift)
    return (a, b, c), positions
