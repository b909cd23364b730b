"""Grids are oriented to R, A and S, and irregular stacks are divided into regular runs."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from geometries import ORIENTATIONS, few, geometries, irregular, world_of_voxels
from hypothesis import given
from hypothesis import strategies as st

from HiEndMAECore.io.volume import Geometry
from HiEndMAECore.preprocessing.orientation import is_parallel, parallel_positions, ras_axes, regular_grid, regular_runs


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_ras_axes_of_every_orientation_are_ras(orientation: np.ndarray) -> None:
    turned = nib.eulerangles.euler2mat(0.2, -0.1, 0.15)
    geometry = Geometry((10, 8, 6), nib.affines.from_matvec(turned @ orientation @ np.diag([1.0, 2.0, 3.0])))
    affine, _ = regular_grid(geometry, (2.0, 2.0, 2.0))
    assert nib.aff2axcodes(affine) == ("R", "A", "S")
    np.testing.assert_allclose(affine[:3, :3], turned * 2.0, atol=1e-9)  # its own directions, not the scanner's


@given(geometries(), st.tuples(*[st.floats(0.7, 5.0)] * 3))
@few
def test_regular_grid_is_orthogonal_and_covers_the_scan(
    geometry: Geometry, spacing: tuple[float, float, float]
) -> None:
    axes = ras_axes(geometry.affine)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    affine, shape = regular_grid(geometry, spacing)
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), spacing)
    index = (world_of_voxels(geometry) - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    assert index.min() >= -0.51
    assert (index.max(axis=(0, 1, 2)) <= np.array(shape) - 0.49).all()
    assert min(shape) >= 1


def test_regular_grid_at_the_same_spacing_has_the_same_voxels() -> None:
    geometry = Geometry((7, 6, 5), np.diag([-2.0, -2.0, 3.0, 1.0]))
    affine, shape = regular_grid(geometry, (2.0, 2.0, 3.0))
    assert shape == geometry.shape
    np.testing.assert_allclose(np.linalg.inv(geometry.affine) @ affine @ [0, 0, 0, 1], [6, 5, 0, 1], atol=1e-9)


def test_regular_runs_of_an_irregular_stack() -> None:
    geometry = irregular(18.5, [4.0, 4.0, 4.0, 1.0, 7.0, 7.0])
    assert [(run.first, run.last) for run in regular_runs(geometry)] == [(0, 3), (3, 4), (4, 6)]
    for run in regular_runs(geometry):
        for z in range(run.first, run.last + 1):
            np.testing.assert_allclose((run.affine @ [0, 0, z - run.first, 1])[:3], geometry.slice_origins[z])
    assert len(regular_runs(Geometry((4, 4, 4), np.eye(4)))) == 1


def test_is_parallel_permits_rounding_and_refuses_rotation_and_shear() -> None:
    matrix = np.diag([0.5, -2.0, 3.0, 1.0])[[1, 2, 0, 3]]
    matrix[:3, 3] = 4.0, -7.0, 0.2
    assert is_parallel(matrix, (100, 100, 100))
    matrix[0, 2] = 1e-6
    assert is_parallel(matrix, (100, 100, 100))
    matrix[0, 2] = 1e-3
    assert not is_parallel(matrix, (100, 100, 100))
    angle = 0.5
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    assert not is_parallel(turn, (3, 3, 3))


def test_parallel_positions_are_those_of_the_map() -> None:
    matrix = np.diag([0.5, -2.0, 3.0, 1.0])[[1, 2, 0, 3]]
    matrix[:3, 3] = 4.0, -7.0, 0.2
    shape = (4, 5, 6)
    sources, positions = parallel_positions(matrix, shape)
    for voxel in np.ndindex(shape):
        mapped = (matrix @ [*voxel, 1])[:3]
        for axis, source in enumerate(sources):
            np.testing.assert_allclose(positions[axis][voxel[axis]], mapped[source], atol=1e-12)
