"""What the network sees, and the way home."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_series import write_series
from hypothesis import given, settings
from hypothesis import strategies as st
from test_geometry import balls, dice, geometries, irregular, world_of_grid, world_of_voxels

from HiEndMAECore.io.readers import read_volume
from HiEndMAECore.io.volume import Geometry, Volume
from HiEndMAECore.preprocessing.cropping import body_bounding_box
from HiEndMAECore.preprocessing.intensity import IntensityNormalization, suggest_normalization
from HiEndMAECore.preprocessing.pipeline import (
    NetworkGrid,
    PreprocessingPlan,
    preprocess,
    preprocess_labels,
    resample_labels_to_original,
    resample_scalar_to_original,
)

few = settings(max_examples=25, deadline=None)
rng = np.random.default_rng(0)


def body(geometry: Geometry, *, air: float = -1000.0) -> Volume:
    """Air around a ball of soft tissue."""
    return Volume(np.where(balls(geometry)[None] > 0, 50.0, air).astype(np.float32), geometry)


# -- intensities -------------------------------------------------------------------------------------------------


def test_window() -> None:
    array = np.array([-3024.0, -175.0, 37.5, 250.0, 3000.0], np.float32).reshape(1, 5, 1, 1)
    result = IntensityNormalization().apply(array)
    np.testing.assert_allclose(result.ravel(), [0, 0, 0.5, 1, 1])
    assert result.dtype == np.float32
    assert array[0, 0] == -3024.0  # not in place


def test_percentiles_do_not_depend_on_the_air() -> None:
    tissue = rng.normal(500, 100, (1, 20, 20, 20)).astype(np.float32)
    little, much = (np.pad(tissue, ((0, 0), *[(n, n)] * 3)) for n in (3, 15))
    one, other = (IntensityNormalization.percentiles().limits(array)[0] for array in (little, much))
    np.testing.assert_allclose(one, other, rtol=0.02)
    result = IntensityNormalization.percentiles().apply(np.concatenate([little, little * 7 + 3]))
    np.testing.assert_allclose(result[0], result[1], atol=1e-4)
    assert result.min() == 0.0
    assert result.max() == 1.0


@pytest.mark.parametrize("kind", [IntensityNormalization(), IntensityNormalization.percentiles()])
def test_constant_scan(kind: IntensityNormalization) -> None:
    result = kind.apply(np.full((1, 3, 3, 3), -2000.0, np.float32))
    assert (result == 0).all()


def test_json_round_trip() -> None:
    plan = PreprocessingPlan((1.0, 1.5, 3.0), IntensityNormalization.percentiles(1, 99))
    assert PreprocessingPlan.from_json(plan.to_json()) == plan
    assert (
        PreprocessingPlan.from_json(
            {"spacing": [1, 1, 1], "normalisation": IntensityNormalization().to_json()}
        ).spacing[0]
        == 1
    )


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
def test_json_refused(change: dict) -> None:
    with pytest.raises(ValueError, match=r"spacing|normalisation"):
        PreprocessingPlan.from_json(PreprocessingPlan().to_json() | change)


def test_suggested_normalisation() -> None:
    geometry = Geometry((24, 24, 24), np.eye(4))
    ct = body(geometry)
    padded = Volume(np.where(ct.array < 0, -3024.0, ct.array) - (rng.random(ct.array.shape) < 0.05) * 150, geometry)
    for scan in (ct, padded):
        assert suggest_normalization(scan).kind == "window"
    signal = np.abs(rng.normal(0, 300, (1, 24, 24, 24))).astype(np.float32)
    phases = rng.uniform(-4096, 4095, (1, 24, 24, 24)).astype(np.float32)
    for array in (signal, signal - 60, (signal - 200) / 300, phases, np.zeros((1, 4, 4, 4), np.float32)):
        assert suggest_normalization(Volume(array, geometry)).kind == "percentiles"


# -- there -------------------------------------------------------------------------------------------------------


@given(geometries(), st.booleans())
@few
def test_prepared_scan_shows_the_body_where_it_is(geometry: Geometry, crop: bool) -> None:
    volume = body(geometry)
    prepared = preprocess(volume, PreprocessingPlan((1.0, 1.2, 0.9)), crop=crop)
    assert prepared.array.dtype == np.float32
    assert prepared.array.shape == (1, *prepared.shape)
    assert 0.0 <= prepared.array.min() <= prepared.array.max() <= 1.0
    assert nib.aff2axcodes(prepared.affine) == ("R", "A", "S")
    seen = world_of_grid(prepared.affine, prepared.shape)
    weight = prepared.array[0]
    found = (weight[..., None] * seen).sum(axis=(0, 1, 2)) / weight.sum()
    there = world_of_voxels(geometry)[volume.array[0] > 0].mean(axis=0)
    assert np.linalg.norm(found - there) < 0.5 * max(geometry.spacing)


@given(geometries(), st.booleans())
@few
def test_labels_come_home(geometry: Geometry, crop: bool) -> None:
    labels = Volume(balls(geometry)[None], geometry)
    prepared = preprocess(body(geometry), PreprocessingPlan((min(geometry.spacing) * 0.7,) * 3), crop=crop)
    there = preprocess_labels(labels, prepared)
    assert there.shape == prepared.shape
    assert there.dtype == np.uint8
    home = resample_labels_to_original(there, NetworkGrid(prepared.affine, prepared.original))
    assert home.shape == geometry.shape
    if (labels.array > 0).sum() > 100:
        assert dice(home > 0, labels.array[0] > 0) > 0.9


def test_crop_takes_the_air_and_keeps_the_body() -> None:
    array = np.full((1, 100, 90, 80), -1000.0, np.float32)
    array[:, 40:60, 30:50, 20:60] = 40.0
    array[:, 2:6, 2:6] = 100.0  # a rail of the table
    volume = Volume(array, Geometry((100, 90, 80), np.diag([-1.0, -1.0, 1.0, 1.0])))
    cropped, whole = (preprocess(volume, PreprocessingPlan((1.0,) * 3), crop=crop) for crop in (True, False))
    assert whole.array.shape == (1, 100, 90, 80)
    assert cropped.array[0].size < 0.25 * whole.array[0].size
    assert (cropped.array > 0.5).sum() == 20 * 20 * 40


@pytest.mark.parametrize("value", [-1000.0, 0.0, 40.0])
@pytest.mark.parametrize("kind", [IntensityNormalization(), IntensityNormalization.percentiles()])
def test_never_cropped_to_nothing(value: float, kind: IntensityNormalization) -> None:
    volume = Volume(np.full((1, 9, 8, 7), value, np.float32), Geometry((9, 8, 7), np.eye(4)))
    prepared = preprocess(volume, PreprocessingPlan((1.0,) * 3, kind))
    assert prepared.array.shape == (1, 9, 8, 7)


@pytest.mark.parametrize("shape", [(20, 20, 1), (1, 20, 20), (2, 2, 2), (1, 1, 1)])
def test_thin_scans(shape: tuple[int, int, int]) -> None:
    geometry = Geometry(shape, nib.affines.from_matvec(np.diag([-0.8, -0.8, 0.9]), [3, 4, 5]))
    volume = Volume(np.full((1, *shape), 250.0, np.float32), geometry)
    prepared = preprocess(volume, PreprocessingPlan((3.0, 3.0, 3.0)))
    assert min(prepared.shape) >= 1
    np.testing.assert_allclose(prepared.array, 1.0, atol=1e-5)
    labels = Volume(np.ones((1, *shape), np.uint8), geometry)
    assert (resample_labels_to_original(preprocess_labels(labels, prepared), prepared) == 1).all()
    assert (resample_scalar_to_original(np.ones(prepared.shape, np.float32), prepared, outside=-1.0) == 1).all()


def test_channels_share_the_grid() -> None:
    geometry = Geometry((12, 12, 12), np.eye(4))
    array = rng.random((3, 12, 12, 12)).astype(np.float32)
    prepared = preprocess(Volume(array, geometry), PreprocessingPlan((1.0,) * 3, IntensityNormalization.percentiles()))
    assert prepared.array.shape[0] == 3
    single = preprocess(
        Volume(array[1:2], geometry), PreprocessingPlan((1.0,) * 3, IntensityNormalization.percentiles())
    )
    np.testing.assert_array_equal(prepared.array[1], single.array[0])


def test_noise_does_not_alias() -> None:
    """At three times the spacing, noise is averaged, not picked: its spread falls to less than a third."""
    array = rng.normal(37.5, 60.0, (1, 48, 48, 48)).astype(np.float32)
    prepared = preprocess(Volume(array, Geometry((48, 48, 48), np.eye(4))), PreprocessingPlan((3.0,) * 3), crop=False)
    assert prepared.array.shape == (1, 16, 16, 16)
    assert prepared.array.std() < 0.33 * IntensityNormalization().apply(array).std()


def test_padding_does_not_bleed_into_tissue() -> None:
    """Intensities are clipped before they are interpolated: -3024 beside tissue is no darker than air."""
    array = np.full((1, 30, 30, 30), 250.0, np.float32)
    padded, airy = array.copy(), array.copy()
    padded[:, :10], airy[:, :10] = -3024.0, -1000.0
    geometry = Geometry((30, 30, 30), np.eye(4))
    plan = PreprocessingPlan((1.7,) * 3)
    one, other = (preprocess(Volume(a, geometry), plan, crop=False).array for a in (padded, airy))
    np.testing.assert_array_equal(one, other)


# -- labels ------------------------------------------------------------------------------------------------------


def test_only_the_values_asked_for() -> None:
    geometry = Geometry((8, 8, 8), np.eye(4))
    array = np.zeros((8, 8, 8), np.uint16)
    array[:3], array[3:6], array[6:] = 5, 300, 7
    prepared = preprocess(Volume(np.zeros((1, 8, 8, 8), np.float32), geometry), PreprocessingPlan((1.0,) * 3))
    everything = preprocess_labels(Volume(array[None], geometry), prepared)
    assert everything.dtype == np.uint16
    np.testing.assert_array_equal(everything, array)
    some = preprocess_labels(Volume(array[None], geometry), prepared, values=[5, 7, 9])
    assert some.dtype == np.uint8
    np.testing.assert_array_equal(np.unique(some), [0, 5, 7])


def test_labels_may_be_stored_otherwise() -> None:
    geometry = Geometry((14, 12, 10), np.diag([-1.0, -1.0, 2.0, 1.0]))
    labels = balls(geometry)
    prepared = preprocess(body(geometry), PreprocessingPlan((1.0,) * 3), crop=False)
    turned = Volume(
        labels[:, ::-1][None],
        Geometry(
            (14, 12, 10), geometry.affine @ np.array([[1, 0, 0, 0], [0, -1, 0, 11], [0, 0, 1, 0], [0, 0, 0, 1.0]])
        ),
    )
    one, other = preprocess_labels(Volume(labels[None], geometry), prepared), preprocess_labels(turned, prepared)
    np.testing.assert_array_equal(one, other)


# -- irregular stacks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tilt", [0.0, 18.5, -20.0])
@pytest.mark.parametrize("gaps", [[4.0] * 12, [2.0] * 4 + [6.0, 1.1] + [4.0] * 7], ids=["even", "uneven"])
def test_irregular_labels_come_home(tilt: float, gaps: list[float]) -> None:
    geometry = irregular(tilt, gaps)
    truth = balls(geometry)
    prepared = preprocess(body(geometry), PreprocessingPlan((1.5,) * 3))
    stored = Volume(truth[None], Geometry(geometry.shape, geometry.affine))  # a file knows no slice origins
    there = preprocess_labels(stored, prepared)
    center = world_of_grid(prepared.affine, prepared.shape)[there > 0].mean(axis=0)
    thickness = np.gradient(geometry.slice_origins[:, 2])[np.nonzero(truth)[2]]
    expected = np.average(world_of_voxels(geometry)[truth > 0], axis=0, weights=thickness)
    assert np.linalg.norm(center - expected) < 0.7
    home = resample_labels_to_original(there, prepared)
    assert home.shape == geometry.shape
    assert dice(home > 0, truth > 0) > 0.93


@pytest.mark.parametrize("tilt", [20.0, -20.0])
def test_tilted_dicom_shows_a_ball_as_a_ball(tmp_path: Path, tilt: float) -> None:
    """A ball in the patient, cut by tilted and uneven slices, is a ball again and lies where it truly is."""
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
    prepared = preprocess(volume, PreprocessingPlan((1.0, 1.0, 1.0)))
    ball = prepared.array[0] > 0.5
    points = world_of_grid(prepared.affine, prepared.shape)[ball]
    np.testing.assert_allclose(points.mean(axis=0), center * [-1, -1, 1], atol=0.5)
    np.testing.assert_allclose(ball.sum(), 4 / 3 * np.pi * 17**3, rtol=0.04)
    np.testing.assert_allclose(np.sqrt(np.linalg.eigvalsh(np.cov(points.T)) * 5), 17.0, rtol=0.04)  # round
    home = resample_labels_to_original(ball.astype(np.uint8), prepared)
    assert dice(home > 0, volume.array[0] > 0) > 0.95


@pytest.mark.parametrize("shape", [(40, 41, 42), (43, 44, 45)])
@pytest.mark.parametrize("hounsfield", [True, False])
def test_the_box_of_a_flipped_scan_is_the_flipped_box(shape: tuple[int, int, int], hounsfield: bool) -> None:
    """At 1 mm every fourth voxel is looked at: from both ends alike."""
    array = np.full((1, *shape), -1000.0, np.float32)
    array[:, 9:31, 7:24, 14:38] = 40.0
    box = body_bounding_box(Volume(array, Geometry(shape, np.eye(4))), hounsfield=hounsfield)
    assert box != [(0, n) for n in shape]
    flipped = body_bounding_box(Volume(array[:, ::-1, ::-1, ::-1], Geometry(shape, np.eye(4))), hounsfield=hounsfield)
    assert flipped == [(n - high, n - low) for (low, high), n in zip(box, shape)]
