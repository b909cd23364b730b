"""Metrics agree with their definitions, computed by brute force, and with MONAI."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

from HiEndMAECore.evaluation import metrics

SPACINGS = [(1.0, 1.0, 1.0), (0.7, 0.7, 3.0), (2.0, 0.5, 1.3)]


def blobs(seed: int, shape: tuple[int, int, int] = (11, 13, 9)) -> tuple[np.ndarray, np.ndarray]:
    """Return two overlapping ragged masks, some of which touch the border of the volume."""
    rng = np.random.default_rng(seed)
    smooth = rng.normal(size=shape)
    for axis in range(3):
        smooth = smooth + np.roll(smooth, 1, axis) + np.roll(smooth, -1, axis)
    other = smooth + rng.normal(size=shape) * 2
    return smooth > 1.0, other > 1.0


def brute_force_surface(mask: np.ndarray) -> list[tuple[int, ...]]:
    """Return the voxels with one of six neighbors outside the mask or outside the volume."""
    found = []
    for voxel in zip(*np.nonzero(mask)):
        for axis, step in itertools.product(range(3), (-1, 1)):
            neighbor = list(voxel)
            neighbor[axis] += step
            if not 0 <= neighbor[axis] < mask.shape[axis] or not mask[tuple(neighbor)]:
                found.append(voxel)
                break
    return found


def brute_force_scores(prediction: np.ndarray, reference: np.ndarray, matrix: np.ndarray) -> tuple[float, float, float]:
    """Return (Dice, HD95, NSD at 2 mm) from all pairs of surface voxels."""
    one, other = (np.array(brute_force_surface(mask)) @ matrix.T for mask in (prediction, reference))
    apart = np.sqrt(((one[:, None] - other[None]) ** 2).sum(-1))
    forward, backward = apart.min(1), apart.min(0)
    overlap = 2 * np.sum(prediction * reference) / (prediction.sum() + reference.sum())
    within = (forward <= 2.0).sum() + (backward <= 2.0).sum()
    return (
        overlap,
        max(np.quantile(forward, 0.95), np.quantile(backward, 0.95)),
        within / (len(forward) + len(backward)),
    )


def score_one(prediction: np.ndarray, reference: np.ndarray, matrix: np.ndarray) -> metrics.StructureScore:
    affine = np.eye(4)
    affine[:3, :3] = matrix
    return metrics.score_case(prediction.astype(np.uint8), reference.astype(np.uint8), affine=affine)[1]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(4))
def test_score_case_matches_brute_force_and_monai(seed: int, spacing: tuple[float, float, float]) -> None:
    prediction, reference = blobs(seed)
    found = score_one(prediction, reference, np.diag(spacing))
    expected = brute_force_scores(prediction, reference, np.diag(spacing))
    np.testing.assert_allclose((found.dice, found.hd95_mm, found.nsd), expected, rtol=1e-12)

    one, other = (torch.from_numpy(mask)[None, None].float() for mask in (prediction, reference))
    settings = {"include_background": True, "spacing": list(spacing)}
    of_monai = (
        compute_dice(one, other),
        compute_hausdorff_distance(one, other, percentile=95, **settings),
        compute_surface_dice(one, other, class_thresholds=[2.0], **settings),
    )
    # MONAI computes distances in float32.
    np.testing.assert_allclose((found.dice, found.hd95_mm, found.nsd), [float(score) for score in of_monai], rtol=1e-5)


def test_score_case_on_a_sheared_and_rotated_grid_matches_brute_force() -> None:
    prediction, reference = blobs(7)
    matrix = np.array([[0.6, -0.5, 0.1], [0.5, 0.6, 0.9], [0.0, 0.0, 2.5]])
    found = score_one(prediction, reference, matrix)
    expected = brute_force_scores(prediction, reference, matrix)
    np.testing.assert_allclose((found.dice, found.hd95_mm, found.nsd), expected, rtol=1e-12)
    assert found.reference_ml == pytest.approx(reference.sum() * abs(np.linalg.det(matrix)) / 1000)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.permutations(range(3)), st.sampled_from(SPACINGS))
def test_score_case_swapped_or_permuted_gives_equal_scores(seed: int, order: list[int], spacing: tuple) -> None:
    prediction, reference = blobs(seed, (6, 7, 5))
    prediction[2, 2, 2] = reference[3, 3, 3] = True
    found = score_one(prediction, reference, np.diag(spacing))
    swapped = score_one(reference, prediction, np.diag(spacing))
    permuted = [np.flip(mask.transpose(order), 0) for mask in (prediction, reference)]
    moved = score_one(*permuted, np.diag([spacing[axis] for axis in order]))
    for other in (swapped, moved):
        np.testing.assert_allclose(
            (found.dice, found.hd95_mm, found.nsd), (other.dice, other.hd95_mm, other.nsd), rtol=1e-12
        )
    itself = score_one(reference, reference, np.diag(spacing))
    assert (itself.dice, itself.hd95_mm, itself.nsd) == (1.0, 0.0, 1.0)


def test_score_case_of_a_shift_is_in_mm_along_its_axis() -> None:
    reference = np.zeros((20, 20, 20), dtype=bool)
    reference[4:10, 4:10, 4:10] = True
    plate = np.zeros_like(reference)
    plate[:, :, 3] = True
    assert score_one(np.roll(plate, 2, axis=2), plate, np.diag([1.0, 1.0, 5.0])).hd95_mm == 10.0
    assert score_one(np.roll(reference, 2, axis=0), reference, np.diag([0.5, 4.0, 4.0])).hd95_mm == 1.0
    assert score_one(np.roll(plate, 1, axis=2), plate, np.diag([1.0, 1.0, 2.0])).nsd == 1.0  # 2 mm is within 2 mm
    assert score_one(np.roll(plate, 1, axis=2), plate, np.diag([1.0, 1.0, 2.1])).nsd == 0.0


def test_score_case_missed_and_not_labelled_structures() -> None:
    prediction, reference = np.zeros((2, 8, 8, 8), dtype=np.uint32)
    reference[1:3], prediction[5:7] = 70_000, 5
    reference[7, 7, 7] = prediction[7, 7, 7] = 2
    found = metrics.score_case(prediction, reference, affine=np.eye(4))
    assert found == {
        2: metrics.StructureScore(2, "scored", 1.0, 0.0, 1.0, 0.001, 0.001),
        5: metrics.StructureScore(5, "not_labelled", None, None, None, 0.0, 0.128),
        70_000: metrics.StructureScore(70_000, "missed", 0.0, None, 0.0, 0.128, 0.0),
    }


def test_score_case_of_a_whole_body_scan_takes_seconds() -> None:
    x, y, z = np.ogrid[:512, :512, :200]
    maps = []
    for shift in (0, 4):
        labels = np.zeros((512, 512, 200), dtype=np.uint8)
        labels[((x - 200 - shift) / 120) ** 2 + ((y - 250) / 100) ** 2 + ((z - 100) / 80) ** 2 < 1] = 1
        labels[((x - 420) / 50) ** 2 + ((y - 250 - shift) / 50) ** 2 + ((z - 100) / 50) ** 2 < 1] = 2
        maps.append(labels)
    start = time.monotonic()
    found = metrics.score_case(*maps, affine=np.diag([0.8, 0.8, 1.5, 1.0]))
    assert time.monotonic() - start < 15  # about 1.5 s on two cores
    assert 2.4 < found[1].hd95_mm <= 3.2  # moved by 3.2 mm, seen along the normals of its surface


def brute_force_partial_surface(mask: np.ndarray, ignored: np.ndarray) -> list[tuple[int, ...]]:
    """Return the voxels of a mask with a neighbor that is outside the volume, or judged and outside the mask."""
    return [voxel for voxel in brute_force_surface(mask | ignored) if mask[voxel]]


@pytest.mark.parametrize("seed", range(4))
def test_score_case_leaves_out_ignored_voxels(seed: int) -> None:
    prediction, reference = blobs(seed)
    ignored = np.random.default_rng(seed).random(reference.shape) < 0.3
    labels = np.where(ignored, 9, reference)
    found = metrics.score_case(prediction.astype(np.uint8), labels.astype(np.uint8), affine=np.eye(4), ignore=9)
    assert list(found) == [1]
    judged = [mask & ~ignored for mask in (prediction, reference)]
    assert found[1].dice == metrics.dice(*judged)
    assert found[1].reference_ml == pytest.approx(judged[1].sum() / 1000)
    one, other = (np.array(brute_force_partial_surface(mask, ignored)) for mask in judged)
    apart = np.sqrt(((one[:, None] - other[None]) ** 2).sum(-1))
    forward, backward = apart.min(1), apart.min(0)
    assert found[1].hd95_mm == pytest.approx(max(np.quantile(forward, 0.95), np.quantile(backward, 0.95)))
    within = (forward <= 2.0).sum() + (backward <= 2.0).sum()
    assert found[1].nsd == pytest.approx(within / (len(forward) + len(backward)))


def test_score_case_of_one_judged_slice_is_that_of_the_slice() -> None:
    """The ignored neighbors do not make the interior of the slice a surface."""
    prediction, reference = np.zeros((2, 20, 20, 5), dtype=np.uint8)
    prediction[5:15, 5:15], reference[5:15, 4:15] = 1, 1
    reference[..., [0, 1, 3, 4]] = 255
    found = metrics.score_case(prediction, reference, affine=np.eye(4), tolerance_mm=0.5, ignore=255)[1]
    outline = {(x, y) for x in range(5, 15) for y in range(5, 15)} - {
        (x, y) for x in range(6, 14) for y in range(6, 14)
    }
    assert found.dice == pytest.approx(2 * 100 / 210)
    assert len(outline) == 36
    assert found.nsd == pytest.approx((26 + 2 + 28 + 0) / (36 + 38), abs=0.02)
    assert found.hd95_mm == 1.0


def test_score_case_has_no_surface_score_where_no_surface_was_judged() -> None:
    prediction, reference = np.ones((2, 9, 9, 9), dtype=np.uint8)
    reference[:] = 2
    reference[3:6, 3:6, 3:6] = 1
    found = metrics.score_case(prediction, reference, affine=np.eye(4), ignore=2)
    assert found == {
        1: metrics.StructureScore(1, "scored", 1.0, None, None, pytest.approx(0.027), pytest.approx(0.027))
    }
    reference[4, 4, 4] = 0
    only_reference = metrics.score_case(prediction, reference, affine=np.eye(4), ignore=2)[1]
    assert (only_reference.hd95_mm, only_reference.nsd) == (None, None)
    assert not metrics.score_case(np.full_like(prediction, 2), reference * 0 + 2, affine=np.eye(4), ignore=2)
