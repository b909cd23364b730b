"""Scans are resampled to the network's grid, and results to the original grid."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bodies import body, rng
from dicom_series import write_series
from geometries import balls, dice, few, geometries, irregular, world_of_grid, world_of_voxels
from hypothesis import given
from hypothesis import strategies as st

from HiEndMAECore.io.readers import read_volume
from HiEndMAECore.io.volume import Geometry, Volume
from HiEndMAECore.preprocessing.intensity import IntensityNormalization
from HiEndMAECore.preprocessing.pipeline import (
    NetworkGrid,
    PreprocessingPlan,
    preprocess,
    preprocess_labels,
    resample_labels_to_original,
    resample_scalar_to_original,
)


def test_plan_from_its_json_is_equal() -> None:
    plan = PreprocessingPlan((1.0, 1.5, 3.0), IntensityNormalization.percentiles(1, 99))
    assert PreprocessingPlan.from_json(plan.to_json()) == plan
    integers = {"spacing": [1, 1, 1], "normalisation": IntensityNormalization().to_json()}
    assert PreprocessingPlan.from_json(integers).spacing == (1.0, 1.0, 1.0)


def test_plan_to_json_has_the_stored_keys() -> None:
    """model.json and the manifest of a store hold these keys and values."""
    window = {"kind": "window", "low": -175.0, "high": 250.0}
    assert PreprocessingPlan().to_json() == {"spacing": [1.5, 1.5, 1.5], "normalisation": window}
    assert IntensityNormalization.percentiles().to_json() == {"kind": "percentiles", "low": 0.5, "high": 99.5}


@pytest.mark.parametrize(
    "change",
    [
        {"spacing": [1, 1]},
        {"spacing": [1, 1, 0]},
        {"spacing": [1, 1, float("nan")]},
        {"spacing": ["1", 1, 1]},
        {"spacing": "111"},
        {"more": 1},
        {"normalisation": {"kind": "window", "low": 3, "high": 1}},
        {"normalisation": {"kind": "zscore", "low": 0, "high": 1}},
        {"normalisation": {"kind": "percentiles", "low": 0, "high": 101}},
        {"normalisation": {"kind": "window", "low": None, "high": 1}},
        {"normalisation": None},
    ],
)
def test_plan_from_other_json_is_refused(change: dict) -> None:
    with pytest.raises(ValueError, match=r"spacing|normalisation"):
        PreprocessingPlan.from_json(PreprocessingPlan().to_json() | change)


@given(geometries(), st.booleans())
@few
def test_preprocess_keeps_the_body_in_place(geometry: Geometry, crop: bool) -> None:
    volume = body(geometry)
    scan = preprocess(volume, PreprocessingPlan((1.0, 1.2, 0.9)), crop=crop)
    assert scan.array.dtype == np.float32
    assert scan.array.shape == (1, *scan.shape)
    assert 0.0 <= scan.array.min() <= scan.array.max() <= 1.0
    assert nib.aff2axcodes(scan.affine) == ("R", "A", "S")
    weight = scan.array[0]
    points = world_of_grid(scan.affine, scan.shape)
    center = (weight[..., None] * points).sum(axis=(0, 1, 2)) / weight.sum()
    expected = world_of_voxels(geometry)[volume.array[0] > 0].mean(axis=0)
    assert np.linalg.norm(center - expected) < 0.5 * max(geometry.spacing)


@given(geometries(), st.booleans())
@few
def test_resample_labels_to_original_recovers_the_labels(geometry: Geometry, crop: bool) -> None:
    labels = Volume(balls(geometry)[None], geometry)
    scan = preprocess(body(geometry), PreprocessingPlan((min(geometry.spacing) * 0.7,) * 3), crop=crop)
    resampled = preprocess_labels(labels, scan)
    assert resampled.shape == scan.shape
    assert resampled.dtype == np.uint8
    result = resample_labels_to_original(resampled, NetworkGrid(scan.affine, scan.original))
    assert result.shape == geometry.shape
    if (labels.array > 0).sum() > 100:
        assert dice(result > 0, labels.array[0] > 0) > 0.9


@pytest.mark.parametrize("shape", [(20, 20, 1), (1, 20, 20), (2, 2, 2), (1, 1, 1)])
def test_preprocess_of_thin_scans_repeats_their_voxels(shape: tuple[int, int, int]) -> None:
    geometry = Geometry(shape, nib.affines.from_matvec(np.diag([-0.8, -0.8, 0.9]), [3, 4, 5]))
    volume = Volume(np.full((1, *shape), 250.0, np.float32), geometry)
    scan = preprocess(volume, PreprocessingPlan((3.0, 3.0, 3.0)))
    assert min(scan.shape) >= 1
    np.testing.assert_allclose(scan.array, 1.0, atol=1e-5)
    labels = Volume(np.ones((1, *shape), np.uint8), geometry)
    assert (resample_labels_to_original(preprocess_labels(labels, scan), scan) == 1).all()
    assert (resample_scalar_to_original(np.ones(scan.shape, np.float32), scan, outside=-1.0) == 1).all()


def test_preprocess_puts_channels_on_one_grid() -> None:
    geometry = Geometry((12, 12, 12), np.eye(4))
    array = rng.random((3, 12, 12, 12)).astype(np.float32)
    scan = preprocess(Volume(array, geometry), PreprocessingPlan((1.0,) * 3, IntensityNormalization.percentiles()))
    assert scan.array.shape[0] == 3
    single = preprocess(
        Volume(array[1:2], geometry), PreprocessingPlan((1.0,) * 3, IntensityNormalization.percentiles())
    )
    np.testing.assert_array_equal(scan.array[1], single.array[0])


def test_preprocess_at_coarse_spacing_averages_noise() -> None:
    """At three times the spacing, noise is averaged: its standard deviation falls to less than a third."""
    array = rng.normal(37.5, 60.0, (1, 48, 48, 48)).astype(np.float32)
    scan = preprocess(Volume(array, Geometry((48, 48, 48), np.eye(4))), PreprocessingPlan((3.0,) * 3), crop=False)
    assert scan.array.shape == (1, 16, 16, 16)
    assert scan.array.std() < 0.33 * IntensityNormalization().apply(array).std()


@pytest.mark.parametrize("normalization", [IntensityNormalization(), IntensityNormalization.percentiles()])
@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int8])
def test_preprocess_of_integers_equals_that_of_floats(normalization: IntensityNormalization, dtype: type) -> None:
    array = np.random.default_rng(0).integers(0, 120, (1, 30, 28, 26)).astype(dtype)
    plan = PreprocessingPlan((2.0, 2.0, 2.0), normalization)
    geometry = Geometry((30, 28, 26), np.diag([0.9, 1.1, 2.5, 1.0]))
    integers, floats = (preprocess(Volume(a, geometry), plan).array for a in (array, array.astype(np.float32)))
    np.testing.assert_array_equal(integers, floats)


def test_preprocess_limits_intensities_before_filtering() -> None:
    """Intensities are clipped before they are interpolated, so that padding of -3024 HU gives the same result as air."""
    array = np.full((1, 30, 30, 30), 250.0, np.float32)
    padded, airy = array.copy(), array.copy()
    padded[:, :10], airy[:, :10] = -3024.0, -1000.0
    geometry = Geometry((30, 30, 30), np.eye(4))
    plan = PreprocessingPlan((1.7,) * 3)
    one, other = (preprocess(Volume(a, geometry), plan, crop=False).array for a in (padded, airy))
    np.testing.assert_array_equal(one, other)


def test_preprocess_labels_retains_chosen_values() -> None:
    geometry = Geometry((8, 8, 8), np.eye(4))
    array = np.zeros((8, 8, 8), np.uint16)
    array[:3], array[3:6], array[6:] = 5, 300, 7
    scan = preprocess(Volume(np.zeros((1, 8, 8, 8), np.float32), geometry), PreprocessingPlan((1.0,) * 3))
    all_values = preprocess_labels(Volume(array[None], geometry), scan)
    assert all_values.dtype == np.uint16
    np.testing.assert_array_equal(all_values, array)
    chosen_values = preprocess_labels(Volume(array[None], geometry), scan, values=[5, 7, 9])
    assert chosen_values.dtype == np.uint8
    np.testing.assert_array_equal(np.unique(chosen_values), [0, 5, 7])


def test_preprocess_labels_accepts_another_orientation() -> None:
    geometry = Geometry((14, 12, 10), np.diag([-1.0, -1.0, 2.0, 1.0]))
    labels = balls(geometry)
    scan = preprocess(body(geometry), PreprocessingPlan((1.0,) * 3), crop=False)
    flip = np.array([[1, 0, 0, 0], [0, -1, 0, 11], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    flipped = Volume(labels[:, ::-1][None], Geometry((14, 12, 10), geometry.affine @ flip))
    expected = preprocess_labels(Volume(labels[None], geometry), scan)
    np.testing.assert_array_equal(preprocess_labels(flipped, scan), expected)


@pytest.mark.parametrize("tilt", [0.0, 18.5, -20.0])
@pytest.mark.parametrize("gaps", [[4.0] * 12, [2.0] * 4 + [6.0, 1.1] + [4.0] * 7], ids=["even", "uneven"])
def test_resample_labels_to_original_recovers_labels_of_an_irregular_stack(tilt: float, gaps: list[float]) -> None:
    geometry = irregular(tilt, gaps)
    reference = balls(geometry)
    scan = preprocess(body(geometry), PreprocessingPlan((1.5,) * 3))
    # A label file holds no positions of slices.
    labels = Volume(reference[None], Geometry(geometry.shape, geometry.affine))
    resampled = preprocess_labels(labels, scan)
    center = world_of_grid(scan.affine, scan.shape)[resampled > 0].mean(axis=0)
    thickness = np.gradient(geometry.slice_origins[:, 2])[np.nonzero(reference)[2]]
    expected = np.average(world_of_voxels(geometry)[reference > 0], axis=0, weights=thickness)
    assert np.linalg.norm(center - expected) < 0.7
    result = resample_labels_to_original(resampled, scan)
    assert result.shape == geometry.shape
    assert dice(result > 0, reference > 0) > 0.93


@pytest.mark.parametrize("tilt", [20.0, -20.0])
def test_preprocess_straightens_a_tilted_series(tmp_path: Path, tilt: float) -> None:
    """A ball that is imaged by tilted and uneven slices is a ball at its true position on the network's grid."""
    angle, center = np.radians(tilt), np.array([5.0, 12.0, 55.0])  # LPS
    heights = np.concatenate([np.arange(0, 40, 2.0), [41.0], np.arange(44, 84, 4.0)])
    write_series(
        tmp_path / "ball",
        np.array([[-35.0, -28.0, 15.0 - 12 * np.sin(angle) * 1.0]]) + heights[:, None] * np.array([0, 0, 1.0]),
        column=(0.0, float(np.cos(angle)), float(np.sin(angle))),
        size=(80, 90),
        value=lambda p: np.where(np.linalg.norm(p - center, axis=-1) < 17.0, 250, -1000),
    )
    volume = read_volume(tmp_path / "ball")
    assert {note["code"] for note in volume.notes} == {"gantry_tilt", "uneven_slices"}
    scan = preprocess(volume, PreprocessingPlan((1.0, 1.0, 1.0)))
    ball = scan.array[0] > 0.5
    points = world_of_grid(scan.affine, scan.shape)[ball]
    np.testing.assert_allclose(points.mean(axis=0), center * [-1, -1, 1], atol=0.5)
    np.testing.assert_allclose(ball.sum(), 4 / 3 * np.pi * 17**3, rtol=0.04)
    np.testing.assert_allclose(np.sqrt(np.linalg.eigvalsh(np.cov(points.T)) * 5), 17.0, rtol=0.04)  # round
    result = resample_labels_to_original(ball.astype(np.uint8), scan)
    assert dice(result > 0, volume.array[0] > 0) > 0.95
