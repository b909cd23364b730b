"""Shifted copies: parameters are plain and repeatable, and what a copy shows lies where the geometry says."""

from __future__ import annotations

import json

import numpy as np
import pytest

from HiEndMAECore.data.phantom import make_patient
from HiEndMAECore.evaluation.metrics import dice
from HiEndMAECore.experiments.shifted_copies import (
    draw_copies,
    find_slice_axis,
    retained_shares,
    shift_labels,
    shift_scan,
)
from HiEndMAECore.io.volume import Geometry, Volume

FLIPPED = np.array([[-1.0, 0, 0, 60.0], [0, -1, 0, 80], [0, 0, 1, -20], [0, 0, 0, 1]])  # LPS


def balls(shape: tuple[int, int, int] = (60, 64, 130), affine: np.ndarray = FLIPPED) -> tuple[Volume, Volume]:
    """Return a scan with two balls, and their label map."""
    labels = np.zeros(shape, np.uint8)
    grid = np.indices(shape)
    for value, share in ((1, (0.35, 0.4, 0.4)), (2, (0.7, 0.6, 0.65))):
        center = np.array(share)[:, None, None, None] * np.array(shape)[:, None, None, None]
        steps = np.linalg.norm(affine[:3, :3], axis=0)[:, None, None, None]
        labels[(((grid - center) * steps) ** 2).sum(axis=0) < 9**2] = value
    geometry = Geometry(shape, affine)
    scan = np.float32([-1000.0, 50.0, 150.0])[labels]
    return Volume(scan[None], geometry, "ball"), Volume(labels[None], geometry, "ball")


def center_mm(labels: Volume, value: int) -> np.ndarray:
    return (labels.affine @ [*np.argwhere(labels.array[0] == value).mean(axis=0), 1.0])[:3]


def test_draw_copies_is_plain_json_and_depends_on_seed_and_case_alone() -> None:
    scan, labels = balls()
    drawn = draw_copies(scan, labels, seed=1)
    assert list(drawn) == ["intensity", "noise", "tilt", "crop", "slab", "thick_slices"]
    assert json.loads(json.dumps(drawn)) == drawn == draw_copies(scan, labels, seed=1)
    assert draw_copies(scan, labels, seed=2) != drawn
    assert draw_copies(Volume(scan.array, scan.geometry, "other"), labels, seed=1) != drawn


def test_shallow_scans_and_thick_slices_get_no_slab_and_no_thick_slices() -> None:
    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    drawn = draw_copies(*balls((40, 40, 20), affine), seed=0)
    assert list(drawn) == ["intensity", "noise", "tilt", "crop"]


def test_slice_axis_is_the_coarsest_or_superior() -> None:
    assert find_slice_axis(Geometry((10, 10, 10), np.diag([4.0, 1.0, 1.0, 1.0]))) == 0
    permuted = np.array([[0, 1.0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])  # the first axis is superior
    assert find_slice_axis(Geometry((10, 10, 10), permuted)) == 0


def test_intensities_change_and_labels_do_not() -> None:
    scan, labels = balls()
    drawn = draw_copies(scan, labels, seed=3)
    copy = shift_scan(scan, drawn["intensity"])
    range_hu = np.subtract(*np.percentile(scan.array, [99, 1]))
    gain, offset = drawn["intensity"]["gain"], drawn["intensity"]["offset_share"] * range_hu
    assert 0.05 <= abs(gain - 1) <= 0.1
    np.testing.assert_allclose(copy.array, -1000 + gain * (scan.array + 1000) + offset, atol=1e-2)
    noise = shift_scan(scan, drawn["noise"]).array - scan.array
    assert noise.std() == pytest.approx(drawn["noise"]["share"] * range_hu, rel=0.02)
    assert shift_labels(labels, drawn["noise"]) is labels


@pytest.mark.parametrize("name", ["tilt", "crop", "slab", "thick_slices"])
def test_scan_and_labels_of_a_copy_lie_on_each_other(name: str) -> None:
    scan, labels = balls()
    drawn = draw_copies(scan, labels, seed=4)[name]
    copy, copied = shift_scan(scan, drawn), shift_labels(labels, drawn)
    assert copy.geometry.matches(copied.geometry)
    body = copy.array[0] > -475
    assert dice(body, copied.array[0] > 0) > 0.97


@pytest.mark.parametrize("name", ["crop", "slab", "thick_slices"])
def test_parts_and_thick_slices_keep_positions_in_the_world(name: str) -> None:
    scan, labels = balls()
    drawn = {**draw_copies(scan, labels, seed=5)[name]}
    copied = shift_labels(labels, drawn)
    for value, share in retained_shares(labels, copied).items():
        if share > 0.95:
            np.testing.assert_allclose(center_mm(copied, value), center_mm(labels, value), atol=0.6)
    if name == "slab":
        assert copied.shape[2] == 40
    elif name == "thick_slices":
        assert copied.spacing == pytest.approx((1.0, 1.0, 5.0))
    else:
        assert all(0.69 < n / whole < 0.81 for n, whole in zip(copied.shape[:2], labels.shape[:2]))


@pytest.mark.parametrize("degrees", [15.0, -15.0])
def test_tilt_turns_about_the_left_right_axis_by_its_angle(degrees: float) -> None:
    _, labels = balls()
    copied = shift_labels(labels, {"degrees": degrees})
    before, after = (center_mm(volume, 2) - center_mm(volume, 1) for volume in (labels, copied))
    assert after[0] == pytest.approx(before[0], abs=0.3)  # right
    angles = [np.degrees(np.arctan2(vector[2], vector[1])) for vector in (before, after)]
    assert abs(angles[1] - angles[0]) == pytest.approx(15.0, abs=0.7)
    assert np.linalg.norm(after) == pytest.approx(np.linalg.norm(before), abs=0.3)
    middle = (labels.affine @ [*((np.array(labels.shape) - 1) / 2), 1.0])[:3]
    for value in (1, 2):  # the center of the scan stays in its place
        assert np.linalg.norm(center_mm(copied, value) - middle) == pytest.approx(
            np.linalg.norm(center_mm(labels, value) - middle), abs=0.3
        )
    back = shift_labels(copied, {"degrees": -degrees})
    assert dice(back.array == 1, labels.array == 1) > 0.95


def test_slab_shows_structures_and_retained_shares_are_of_volumes() -> None:
    _, labels = make_patient(1, shape=(42, 36, 36), spacing=(8.0, 8.0, 8.0))
    scan = Volume(np.zeros(labels.array.shape, np.float32), labels.geometry, "p")
    for seed in range(5):
        copied = shift_labels(labels, draw_copies(scan, labels, seed=seed)["slab"])
        shares = retained_shares(labels, copied)
        assert copied.array.any()
        assert all(0 <= share <= 1 for share in shares.values())
        assert min(shares.values()) < 0.5
    assert set(retained_shares(labels, labels).values()) == {1.0}
