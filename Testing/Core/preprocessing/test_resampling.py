"""Images and label maps are resampled to the true positions of their voxels."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from geometries import balls, dice, few, geometries, irregular, world_of_grid, world_of_voxels
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from HiEndMAECore.io.volume import Geometry
from HiEndMAECore.preprocessing.orientation import regular_grid
from HiEndMAECore.preprocessing.resampling import (
    antialias,
    resample_affine,
    resample_from_stack,
    resample_label_map,
    resample_to_stack,
)


@given(geometries(), st.booleans(), st.booleans())
@few
def test_resample_affine_agrees_with_scipy(geometry: Geometry, fortran: bool, nearest: bool) -> None:
    rng = np.random.default_rng(0)
    array = np.asarray(rng.normal(size=(9, 8, 7)).astype(np.float32), order="F" if fortran else "C")
    matrix = np.linalg.inv(geometry.affine)
    matrix[:3, 3] = [4.1, 3.2, 2.7] - matrix[:3, :3] @ [2, 3, 1]
    result = resample_affine(array, matrix, (5, 6, 4), nearest=nearest, outside=-7.0)
    expected = ndimage.affine_transform(
        array, matrix[:3, :3], matrix[:3, 3], (5, 6, 4), order=0 if nearest else 1, cval=np.nan, mode="constant"
    )
    inside = np.isfinite(expected)
    assert result.shape == (5, 6, 4)
    np.testing.assert_allclose(result[inside], expected[inside], atol=1e-4)
    index = np.stack(np.meshgrid(*map(np.arange, (5, 6, 4)), indexing="ij"), axis=-1) @ matrix[:3, :3].T + matrix[:3, 3]
    far = ((index < -0.6) | (index > np.array(array.shape) - 0.4)).any(axis=-1)
    assert (result[far] == -7.0).all()


def test_resample_affine_by_the_identity_keeps_the_type() -> None:
    for kind in (np.uint8, np.uint16, np.int16, np.float32):
        array = np.arange(60).reshape(3, 4, 5).astype(kind)
        for same in (array, np.asfortranarray(array), array[:, ::1], np.repeat(array, 2, axis=1)[:, ::2]):
            result = resample_affine(same, np.eye(4), array.shape)
            assert result.dtype == kind
            np.testing.assert_array_equal(result, array)


@given(geometries(), st.data())
@few
def test_resample_from_stack_keeps_a_point_in_place(geometry: Geometry, data: st.DataObject) -> None:
    voxel = [data.draw(st.integers(2, n - 3)) for n in geometry.shape]
    array = np.zeros(geometry.shape, np.float32)
    array[tuple(voxel)] = 1000.0
    expected_mm = (geometry.affine @ [*voxel, 1])[:3]
    spacing = (min(geometry.spacing) / 2,) * 3
    affine, shape = regular_grid(geometry, spacing)
    result = resample_from_stack(array, geometry, affine, shape, resample_affine)
    center_mm = (result[..., None] * world_of_grid(affine, shape)).sum(axis=(0, 1, 2)) / result.sum()
    assert np.linalg.norm(center_mm - expected_mm) <= 0.5 * max(geometry.spacing)


@pytest.mark.parametrize("tilt", [0.0, 18.5, -25.0])
@pytest.mark.parametrize("gaps", [[3.0] * 9, [1.1, 4.2, 4.2, 4.2, 7.4, 7.4, 2.0, 3.0]], ids=["even", "uneven"])
@pytest.mark.parametrize("spacing", [1.0, 2.3])
def test_resample_from_stack_uses_true_slice_positions(tilt: float, gaps: list[float], spacing: float) -> None:
    """Linear interpolation at true positions reproduces a linear function of position in both directions."""
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
    # Beyond the first and last slice center the nearest slice is repeated; inside, the ramp is exact.
    along = world_of_grid(affine, shape) @ np.cross(geometry.affine[:3, 0], geometry.affine[:3, 1])
    ends = sorted(geometry.slice_origins[[0, -1]] @ np.cross(geometry.affine[:3, 0], geometry.affine[:3, 1]))
    known &= (along > ends[0]) & (along < ends[1])
    np.testing.assert_allclose(network[known], expected[known], atol=2e-3)

    returned = resample_to_stack(expected, affine, geometry, sampler)
    assert returned.shape == geometry.shape
    known = ndimage.binary_erosion(np.isfinite(returned), np.ones((3, 3, 1)))
    known[:, :, [0, -1]] = False
    assert known.mean() > 0.3
    np.testing.assert_allclose(returned[known], array[known], atol=2e-3)


@given(geometries())
@few
def test_resample_to_stack_recovers_a_label_map(geometry: Geometry) -> None:
    labels = balls(geometry)
    affine, shape = regular_grid(geometry, (min(geometry.spacing) / 1.6,) * 3)
    resampled = resample_from_stack(labels, geometry, affine, shape, resample_label_map)
    result = resample_to_stack(resampled, affine, geometry, resample_label_map)
    assert result.shape == geometry.shape
    assert result.dtype == labels.dtype
    assert set(np.unique(result)) <= set(np.unique(labels))
    for value in (1, 2):
        if (labels == value).sum() > 60:
            assert dice(result == value, labels == value) > 0.9


def test_resample_label_map_on_the_same_grid_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    for highest, kind in ((3, np.uint8), (61, np.uint8), (900, np.uint16), (70000, np.uint32)):
        labels = (rng.integers(0, highest + 1, (9, 8, 7)) * (rng.random((9, 8, 7)) < 0.5)).astype(kind)
        result = resample_label_map(labels, np.eye(4), labels.shape)
        assert result.dtype == kind
        np.testing.assert_array_equal(result, labels)


def test_resample_label_map_takes_the_largest_share() -> None:
    rng = np.random.default_rng(1)
    labels = ndimage.zoom(rng.integers(0, 6, (5, 5, 5)), 4, order=0).astype(np.uint8)
    labels[:6] = 0
    matrix = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2, 0.1, -0.3) @ np.diag([0.7, 1.4, -0.9]), [3, -2, 19])
    shape = (22, 17, 20)
    shares = np.stack(
        [resample_affine((labels == v).astype(np.float32), matrix, shape, outside=float(v == 0)) for v in range(6)]
    )
    result = resample_label_map(labels, matrix, shape)
    chosen = np.take_along_axis(shares, result[None].astype(int), axis=0)[0]
    np.testing.assert_allclose(chosen, shares.max(axis=0), atol=1e-5)


def test_resample_label_map_is_closer_than_nearest_neighbor() -> None:
    """Linear shares of a coarse label map of a ball come closer to the fine ball than nearest-neighbor interpolation."""
    fine, coarse = Geometry((60, 60, 60), np.eye(4)), np.diag([4.0, 4.0, 4.0, 1.0])
    coarse[:3, 3] = 1.5
    reference = np.linalg.norm(world_of_voxels(fine) - 29.5, axis=-1) < 22
    labels = (np.linalg.norm(world_of_grid(coarse, (15, 15, 15)) - 29.5, axis=-1) < 22).astype(np.uint8)
    matrix = np.linalg.inv(coarse)
    linear = resample_label_map(labels, matrix, (60, 60, 60)) == 1
    nearest = resample_affine(labels, matrix, (60, 60, 60), nearest=True) == 1
    assert dice(linear, reference) > dice(nearest, reference) + 0.01


def test_resample_label_map_without_labels_is_background() -> None:
    empty = np.zeros((4, 4, 4), np.uint8)
    assert not resample_label_map(empty, np.eye(4), (9, 9, 9)).any()
    distant = np.eye(4)
    distant[:3, 3] = 100
    assert not resample_label_map(empty + 1, distant, (5, 5, 5)).any()


def test_antialias_removes_noise_and_keeps_the_mean() -> None:
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
    expected = 3.0 / (8 * np.log(2)) + 0.25  # the variance of the filter, and that of np.gradient
    np.testing.assert_allclose(variance, expected, atol=0.02)
