"""Grids are compared by their voxels, and comparing objects that hold arrays raises nothing."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from HiEndMAECore.io.volume import Geometry, Volume
from HiEndMAECore.preprocessing.pipeline import NetworkGrid, PreprocessedScan

AFFINE = np.diag([-0.8, 0.8, 3.0, 1.0])


def translated(millimeters: float) -> Geometry:
    """Return a grid that is moved along the first axis."""
    affine = AFFINE.copy()
    affine[0, 3] = millimeters
    return Geometry((20, 18, 7), affine)


@pytest.mark.parametrize("kind", ["Geometry", "Volume", "NetworkGrid", "PreprocessedScan"])
def test_equality_of_objects_with_arrays_is_identity(kind: str) -> None:
    """`==` of a dataclass compares tuples of fields, which raises ValueError for arrays; hashing fails as well."""
    geometry = Geometry((20, 18, 7), AFFINE, np.zeros((7, 3)))
    array = np.zeros((1, 20, 18, 7), np.float32)
    one = {
        "Geometry": geometry,
        "Volume": Volume(array, geometry),
        "NetworkGrid": NetworkGrid(AFFINE, geometry),
        "PreprocessedScan": PreprocessedScan(AFFINE, geometry, array),
    }[kind]
    other = copy.deepcopy(one)
    assert one == one
    assert one != other
    assert len({one, other}) == 2
    assert one in [other, one]


def test_matches_of_an_equal_grid_is_true() -> None:
    assert translated(0.0).matches(copy.deepcopy(translated(0.0)))


def test_matches_of_a_grid_moved_within_the_tolerance_is_true() -> None:
    assert translated(0.0).matches(translated(0.0079))
    assert not translated(0.0).matches(translated(0.0081))
    assert translated(0.0).matches(translated(0.0081), tolerance=0.02)


def test_matches_of_another_shape_or_orientation_is_false() -> None:
    flipped = AFFINE @ np.array([[-1, 0, 0, 19], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    assert not translated(0.0).matches(Geometry((20, 18, 8), AFFINE))
    assert not translated(0.0).matches(Geometry((20, 18, 7), flipped))


def test_spacing_and_voxel_ml_of_an_oblique_grid_are_positive() -> None:
    angle = np.radians(20.0)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    geometry = Geometry((4, 4, 4), affine @ AFFINE)
    np.testing.assert_allclose(geometry.spacing, (0.8, 0.8, 3.0))
    assert geometry.voxel_ml == pytest.approx(0.8 * 0.8 * 3.0 / 1000.0)
