"""Propagate labels by ConvexAdam on MIND features (needs convexadam, the extra `bench`). Options: see `propagation`.

ConvexAdam (Siebert et al., IEEE TMI 2024) expects two scans on one grid that lie roughly on each other. Both are resampled
to the target's region at 3 mm, finer for small scans, with the centers of mass of the bodies on each other. The settings are
the defaults of the package: a search of +-24 voxels, then Adam.
"""

from __future__ import annotations

import argparse
import contextlib
import sys

import numpy as np
import propagation
import torch
from convexAdam.convex_adam_MIND import convex_adam_pt
from scipy import ndimage

from HiEndMAECore.io.volume import Geometry, Volume
from HiEndMAECore.preprocessing.orientation import regular_grid
from HiEndMAECore.preprocessing.resampling import antialias, resample_affine

SPACING_MM = 3.0
SMALL_EXTENT_MM = 120.0  # scans with a smaller middle extent get a finer grid, in proportion
MIN_VOXELS = 48  # of the working grid along each axis; the search takes cells of 6 voxels


def propagate(scan: Volume, labels: Volume, target: Volume, options: argparse.Namespace) -> np.ndarray:
    """Return the labels of the scan on the target's grid."""
    torch.set_num_threads(options.threads)
    fixed, moving = (propagation.without_air(volume, options.modality) for volume in (target, scan))
    grid = _working_grid(target.geometry)
    shift = _center_of_mass(moving) - _center_of_mass(fixed)
    to_moving = np.eye(4)
    to_moving[:3, 3] = shift
    images = [_resample(fixed, grid, np.eye(4)), _resample(moving, grid, to_moving)]
    with contextlib.redirect_stdout(sys.stderr):
        displacement = convex_adam_pt(*images, dtype=torch.float32, device=torch.device("cpu"))
    return _warp(labels, target.geometry, grid, displacement, to_moving)


def _working_grid(geometry: Geometry) -> Geometry:
    """Return a regular grid over a scan, with cubic voxels and enough of them along each axis."""
    middle = sorted(size * step for size, step in zip(geometry.shape, geometry.spacing))[1]
    edge = SPACING_MM * min(1.0, middle / SMALL_EXTENT_MM)
    affine, shape = regular_grid(geometry, (edge, edge, edge))
    missing = np.maximum(0, MIN_VOXELS - np.array(shape))
    before = missing // 2
    affine = affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ before
    x, y, z = (int(size) for size in np.array(shape) + missing)
    return Geometry((x, y, z), affine)


def _center_of_mass(scan: Volume) -> np.ndarray:
    """Return the center of mass of a scan without air in RAS mm."""
    return (scan.affine @ [*ndimage.center_of_mass(scan.array[0]), 1.0])[:3]


def _resample(scan: Volume, grid: Geometry, to_scan: np.ndarray) -> np.ndarray:
    """Return a scan on the working grid, scaled to [0, 1].

    Args:
        scan: The scan.
        grid: The working grid.
        to_scan: (4, 4) from RAS mm of the grid to RAS mm of the scan.
    """
    matrix = np.linalg.inv(scan.affine) @ to_scan @ grid.affine
    filtered = antialias(scan.array[0], np.linalg.norm(matrix[:3, :3], axis=1)).astype(np.float32, copy=False)
    return resample_affine(filtered, matrix, grid.shape) / max(1.0, float(scan.array.max()))


def _warp(
    labels: Volume, geometry: Geometry, grid: Geometry, displacement: np.ndarray, to_moving: np.ndarray
) -> np.ndarray:
    """Return the label map (X, Y, Z) at the positions that the displacement (X, Y, Z, 3) of the grid gives."""
    voxels = np.indices(geometry.shape).reshape(3, -1)
    in_grid = _transform(np.linalg.inv(grid.affine) @ geometry.affine, voxels)
    moved = in_grid + np.stack(
        [ndimage.map_coordinates(displacement[..., axis], in_grid, order=1, mode="nearest") for axis in range(3)]
    )
    positions = _transform(np.linalg.inv(labels.affine) @ to_moving @ grid.affine, moved)
    found = ndimage.map_coordinates(labels.array[0].astype(np.int32), positions, order=0, cval=0)
    return found.reshape(geometry.shape)


def _transform(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return points (3, N) through an affine map."""
    return matrix[:3, :3] @ points + matrix[:3, 3:]


if __name__ == "__main__":
    propagation.run(propagate, propagation.__doc__)
