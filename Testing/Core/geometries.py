"""Grids of scans, regular and irregular, for the tests of preprocessing."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from HiEndMAECore.io.volume import Geometry

ORIENTATIONS = [
    np.eye(3)[:, list(order)] * signs
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
few = settings(max_examples=25, deadline=None)


@st.composite
def geometries(draw: st.DrawFn, *, shear: bool = True, angle: float = 0.6) -> Geometry:
    """Draw a grid of any of the 48 orientations, rotated, stretched, sheared and translated."""
    orientation = ORIENTATIONS[draw(st.integers(0, 47))]
    angles = [draw(st.floats(-angle, angle)) for _ in range(3)]
    spacing = [draw(st.floats(0.5, 4.0)) for _ in range(3)]
    slant = np.eye(3)
    if shear:
        slant[0, 2], slant[1, 2] = draw(st.floats(-0.4, 0.4)), draw(st.floats(-0.4, 0.4))
    matrix = nib.eulerangles.euler2mat(*angles) @ orientation @ slant @ np.diag(spacing)
    shape = tuple(draw(st.integers(6, 16)) for _ in range(3))
    offset = [draw(st.floats(-200, 200)) for _ in range(3)]
    return Geometry(shape, nib.affines.from_matvec(matrix, offset))


def irregular(tilt: float, gaps: list[float], shape: tuple[int, int] = (40, 36), spacing: float = 1.5) -> Geometry:
    """Return an axial stack with a tilt (degrees) and given gaps along the bed (mm), right-handed in LPS."""
    angle = np.radians(tilt)
    row, column = np.array([-1.0, 0, 0]), np.array([0, -np.cos(angle), -np.sin(angle)])
    normal = np.cross(row, column)
    origins = np.array([30.0, 25.0, -40.0]) + np.concatenate([[0], np.cumsum(gaps)])[:, None] * np.array([0, 0, 1.0])
    affine = nib.affines.from_matvec(
        np.column_stack([row * spacing, column * spacing, normal * np.mean(gaps)]), origins[0]
    )
    return Geometry((*shape, len(origins)), affine, origins)


def world_of_voxels(geometry: Geometry) -> np.ndarray:
    """Return the center of each voxel in RAS mm (X, Y, Z, 3), at the true positions of slices."""
    index = np.stack(np.meshgrid(*map(np.arange, geometry.shape), indexing="ij"), axis=-1).astype(float)
    if geometry.slice_origins is None:
        return index @ geometry.affine[:3, :3].T + geometry.affine[:3, 3]
    return index[..., :2] @ geometry.affine[:3, :2].T + geometry.slice_origins[None, None]


def balls(geometry: Geometry) -> np.ndarray:
    """Return the two halves of an ellipsoid, 1 and 2, that fills most of the scan."""
    size = np.array(geometry.shape)
    index = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1) - (size - 1) / 2
    inside = np.linalg.norm(index / (0.35 * size), axis=-1) < 1
    return np.where(inside, np.where(index[..., 0] > 0, 1, 2), 0).astype(np.uint8)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Return the Dice of two masks."""
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


def world_of_grid(affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Return the center of each voxel of a regular grid in RAS mm (X, Y, Z, 3)."""
    return world_of_voxels(Geometry(shape, affine))
