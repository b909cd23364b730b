"""Maps between grids: every orientation, oblique, anisotropic, sheared, irregular; labels, images, aliasing."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from HiEndMAECore.io.volume import Geometry
from HiEndMAECore.preprocessing.orientation import ras_axes, regular_grid, regular_runs
from HiEndMAECore.preprocessing.resampling import (
    antialias,
    resample_affine,
    resample_from_stack,
    resample_label_map,
    resample_to_stack,
)

ORIENTATIONS = [
    np.eye(3)[:, list(order)] * signs
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
few = settings(max_examples=25, deadline=None)


@st.composite
def geometries(draw: st.DrawFn, *, shear: bool = True, angle: float = 0.6) -> Geometry:
    """Any of the 48 orientations, turned, stretched, sheared and moved."""
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
    """An axial stack with a tilt (degrees) and given gaps along the bed (mm), right-handed in LPS."""
    angle = np.radians(tilt)
    row, column = np.array([-1.0, 0, 0]), np.array([0, -np.cos(angle), -np.sin(angle)])
    normal = np.cross(row, column)
    origins = np.array([30.0, 25.0, -40.0]) + np.concatenate([[0], np.cumsum(gaps)])[:, None] * np.array([0, 0, 1.0])
    affine = nib.affines.from_matvec(
        np.column_stack([row * spacing, column * spacing, normal * np.mean(gaps)]), origins[0]
    )
    return Geometry((*shape, len(origins)), affine, origins)


def world_of_voxels(geometry: Geometry) -> np.ndarray:
    """(X, Y, Z, 3) RAS mm of every voxel centre, true slice positions included."""
    index = np.stack(np.meshgrid(*map(np.arange, geometry.shape), indexing="ij"), axis=-1).astype(float)
    if geometry.slice_origins is None:
        return index @ geometry.affine[:3, :3].T + geometry.affine[:3, 3]
    return index[..., :2] @ geometry.affine[:3, :2].T + geometry.slice_origins[None, None]


def world_of_grid(affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    return world_of_voxels(Geometry(shape, affine))


# -- the primitive -----------------------------------------------------------------------------------------------


@given(geometries(), st.booleans(), st.booleans())
@few
def test_sample_agrees_with_scipy(geometry: Geometry, fortran: bool, nearest: bool) -> None:
    rng = np.random.default_rng(0)
    array = np.asarray(rng.normal(size=(9, 8, 7)).astype(np.float32), order="F" if fortran else "C")
    matrix = np.linalg.inv(geometry.affine)
    matrix[:3, 3] = [4.1, 3.2, 2.7] - matrix[:3, :3] @ [2, 3, 1]
    ours = resample_affine(array, matrix, (5, 6, 4), nearest=nearest, outside=-7.0)
    theirs = ndimage.affine_transform(
        array, matrix[:3, :3], matrix[:3, 3], (5, 6, 4), order=0 if nearest else 1, cval=np.nan, mode="constant"
    )
    inside = np.isfinite(theirs)
    assert ours.shape == (5, 6, 4)
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=1e-4)
    index = np.stack(np.meshgrid(*map(np.arange, (5, 6, 4)), indexing="ij"), axis=-1) @ matrix[:3, :3].T + matrix[:3, 3]
    far = ((index < -0.6) | (index > np.array(array.shape) - 0.4)).any(axis=-1)
    assert (ours[far] == -7.0).all()


def test_sample_identity_keeps_every_type() -> None:
    for kind in (np.uint8, np.uint16, np.int16, np.float32):
        array = np.arange(60).reshape(3, 4, 5).astype(kind)
        for same in (array, np.asfortranarray(array), array[:, ::1], np.repeat(array, 2, axis=1)[:, ::2]):
            result = resample_affine(same, np.eye(4), array.shape)
            assert result.dtype == kind
            np.testing.assert_array_equal(result, array)


# -- grids -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_becomes_ras(orientation: np.ndarray) -> None:
    turned = nib.eulerangles.euler2mat(0.2, -0.1, 0.15)
    geometry = Geometry((10, 8, 6), nib.affines.from_matvec(turned @ orientation @ np.diag([1.0, 2.0, 3.0])))
    affine, _ = regular_grid(geometry, (2.0, 2.0, 2.0))
    assert nib.aff2axcodes(affine) == ("R", "A", "S")
    np.testing.assert_allclose(affine[:3, :3], turned * 2.0, atol=1e-9)  # its own directions, not the scanner's


@given(geometries(), st.tuples(*[st.floats(0.7, 5.0)] * 3))
@few
def test_grid_is_orthogonal_and_covers(geometry: Geometry, spacing: tuple[float, float, float]) -> None:
    axes = ras_axes(geometry.affine)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    affine, shape = regular_grid(geometry, spacing)
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), spacing)
    index = (world_of_voxels(geometry) - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    assert index.min() >= -0.51
    assert (index.max(axis=(0, 1, 2)) <= np.array(shape) - 0.49).all()
    assert min(shape) >= 1


def test_same_spacing_means_the_same_voxels() -> None:
    geometry = Geometry((7, 6, 5), np.diag([-2.0, -2.0, 3.0, 1.0]))
    affine, shape = regular_grid(geometry, (2.0, 2.0, 3.0))
    assert shape == geometry.shape
    np.testing.assert_allclose(np.linalg.inv(geometry.affine) @ affine @ [0, 0, 0, 1], [6, 5, 0, 1], atol=1e-9)


def test_runs_of_slices() -> None:
    geometry = irregular(18.5, [4.0, 4.0, 4.0, 1.0, 7.0, 7.0])
    assert [(run.first, run.last) for run in regular_runs(geometry)] == [(0, 3), (3, 4), (4, 6)]
    for run in regular_runs(geometry):
        for z in range(run.first, run.last + 1):
            np.testing.assert_allclose((run.affine @ [0, 0, z - run.first, 1])[:3], geometry.slice_origins[z])
    assert len(regular_runs(Geometry((4, 4, 4), np.eye(4)))) == 1


# -- positions survive -------------------------------------------------------------------------------------------


@given(geometries(), st.data())
@few
def test_a_bright_point_stays_where_it_is(geometry: Geometry, data: st.DataObject) -> None:
    place = [data.draw(st.integers(2, n - 3)) for n in geometry.shape]
    array = np.zeros(geometry.shape, np.float32)
    array[tuple(place)] = 1000.0
    there = (geometry.affine @ [*place, 1])[:3]
    spacing = (min(geometry.spacing) / 2,) * 3
    affine, shape = regular_grid(geometry, spacing)
    result = resample_from_stack(array, geometry, affine, shape, resample_affine)
    found = (result[..., None] * world_of_grid(affine, shape)).sum(axis=(0, 1, 2)) / result.sum()
    assert np.linalg.norm(found - there) <= 0.5 * max(geometry.spacing)


@pytest.mark.parametrize("tilt", [0.0, 18.5, -25.0])
@pytest.mark.parametrize("gaps", [[3.0] * 9, [1.1, 4.2, 4.2, 4.2, 7.4, 7.4, 2.0, 3.0]], ids=["even", "uneven"])
@pytest.mark.parametrize("spacing", [1.0, 2.3])
def test_true_positions_of_slices(tilt: float, gaps: list[float], spacing: float) -> None:
    """Linear interpolation at true positions reproduces a linear function of the patient's millimetres, both ways."""
    geometry = irregular(tilt, gaps)

    def ramp(world: np.ndarray) -> np.ndarray:
        return (world @ np.array([0.3, -0.7, 1.1]) + 20.0).astype(np.float32)

    array = ramp(world_of_voxels(geometry))
    affine, shape = regular_grid(geometry, (spacing,) * 3)

    def sampler(part: np.ndarray, matrix: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
        return resample_affine(part, matrix, size, outside=np.nan)

    network = resample_from_stack(array, geometry, affine, shape, sampler)
    expected = ramp(world_of_grid(affine, shape))
    known = ndimage.binary_erosion(np.isfinite(network), iterations=2)
    assert known.mean() > 0.2
    # Beyond the first and last slice centre the nearest slice is repeated; inside, the ramp is exact.
    along = world_of_grid(affine, shape) @ np.cross(geometry.affine[:3, 0], geometry.affine[:3, 1])
    ends = sorted(geometry.slice_origins[[0, -1]] @ np.cross(geometry.affine[:3, 0], geometry.affine[:3, 1]))
    known &= (along > ends[0]) & (along < ends[1])
    np.testing.assert_allclose(network[known], expected[known], atol=2e-3)

    home = resample_to_stack(expected, affine, geometry, sampler)
    assert home.shape == geometry.shape
    known = ndimage.binary_erosion(np.isfinite(home), np.ones((3, 3, 1)))
    known[:, :, [0, -1]] = False
    assert known.mean() > 0.3
    np.testing.assert_allclose(home[known], array[known], atol=2e-3)


# -- labels ------------------------------------------------------------------------------------------------------


def balls(geometry: Geometry) -> np.ndarray:
    """Two touching halves of an ellipsoid, 1 and 2, over most of the scan."""
    size = np.array(geometry.shape)
    index = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1) - (size - 1) / 2
    inside = np.linalg.norm(index / (0.35 * size), axis=-1) < 1
    return np.where(inside, np.where(index[..., 0] > 0, 1, 2), 0).astype(np.uint8)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


@given(geometries())
@few
def test_labels_there_and_back(geometry: Geometry) -> None:
    labels = balls(geometry)
    affine, shape = regular_grid(geometry, (min(geometry.spacing) / 1.6,) * 3)
    there = resample_from_stack(labels, geometry, affine, shape, resample_label_map)
    back = resample_to_stack(there, affine, geometry, resample_label_map)
    assert back.shape == geometry.shape
    assert back.dtype == labels.dtype
    assert set(np.unique(back)) <= set(np.unique(labels))
    for value in (1, 2):
        if (labels == value).sum() > 60:
            assert dice(back == value, labels == value) > 0.9


def test_labels_on_the_same_grid_are_untouched() -> None:
    rng = np.random.default_rng(0)
    for highest, kind in ((3, np.uint8), (61, np.uint8), (900, np.uint16), (70000, np.uint32)):
        labels = (rng.integers(0, highest + 1, (9, 8, 7)) * (rng.random((9, 8, 7)) < 0.5)).astype(kind)
        result = resample_label_map(labels, np.eye(4), labels.shape)
        assert result.dtype == kind
        np.testing.assert_array_equal(result, labels)


def test_labels_are_the_argmax_of_linear_shares() -> None:
    rng = np.random.default_rng(1)
    labels = ndimage.zoom(rng.integers(0, 6, (5, 5, 5)), 4, order=0).astype(np.uint8)
    labels[:6] = 0
    matrix = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2, 0.1, -0.3) @ np.diag([0.7, 1.4, -0.9]), [3, -2, 19])
    shape = (22, 17, 20)
    shares = np.stack(
        [resample_affine((labels == v).astype(np.float32), matrix, shape, outside=float(v == 0)) for v in range(6)]
    )
    ours = resample_label_map(labels, matrix, shape)
    chosen = np.take_along_axis(shares, ours[None].astype(int), axis=0)[0]
    np.testing.assert_allclose(chosen, shares.max(axis=0), atol=1e-5)


def test_label_borders_are_better_than_nearest() -> None:
    """A fine ball seen through a coarse label map: linear shares come closer to it than nearest neighbour."""
    fine, coarse = Geometry((60, 60, 60), np.eye(4)), np.diag([4.0, 4.0, 4.0, 1.0])
    coarse[:3, 3] = 1.5
    truth = np.linalg.norm(world_of_voxels(fine) - 29.5, axis=-1) < 22
    seen = (np.linalg.norm(world_of_grid(coarse, (15, 15, 15)) - 29.5, axis=-1) < 22).astype(np.uint8)
    matrix = np.linalg.inv(coarse)
    linear = resample_label_map(seen, matrix, (60, 60, 60)) == 1
    nearest = resample_affine(seen, matrix, (60, 60, 60), nearest=True) == 1
    assert dice(linear, truth) > dice(nearest, truth) + 0.01


def test_no_labels() -> None:
    empty = np.zeros((4, 4, 4), np.uint8)
    assert not resample_label_map(empty, np.eye(4), (9, 9, 9)).any()
    away = np.eye(4)
    away[:3, 3] = 100
    assert not resample_label_map(empty + 1, away, (5, 5, 5)).any()


# -- aliasing ----------------------------------------------------------------------------------------------------


def test_smoothing_takes_noise_and_leaves_the_rest() -> None:
    noise = np.random.default_rng(0).normal(size=(48, 48, 48)).astype(np.float32)
    smoothed = antialias(noise, (3.0, 3.0, 1.0))
    assert smoothed.dtype == np.float32
    assert smoothed.std() < 0.35 * noise.std()
    np.testing.assert_array_equal(antialias(noise, (1.0, 0.5, 1.0)), noise)
    step = np.zeros((40, 5, 5), np.float32)
    step[20:] = 1.0
    edge = antialias(step, (2.0, 2.0, 2.0))[:, 2, 2]
    np.testing.assert_allclose(edge + edge[::-1], 1.0, atol=1e-6)  # the border does not move
    variance = np.sum(np.gradient(edge) / np.sum(np.gradient(edge)) * (np.arange(40) - 19.5) ** 2)
    np.testing.assert_allclose(
        variance, 3.0 / (8 * np.log(2)) + 0.25, atol=0.02
    )  # sigma squared, and np.gradient's own
