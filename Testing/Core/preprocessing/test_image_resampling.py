"""Normalizing, filtering and resampling in one pass, against the three steps one after the other."""

from __future__ import annotations

import numpy as np
import pytest

from HiEndMAECore.preprocessing import image_resampling
from HiEndMAECore.preprocessing.image_resampling import resample_parallel_image
from HiEndMAECore.preprocessing.resampling import antialias, resample_affine

RATIOS = (3.75, 1.0, 1.6)


def normalize(part: np.ndarray) -> np.ndarray:
    return np.clip(part.astype(np.float32) / 100, 0, 1)


@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("permuted", [False, True])
def test_resample_parallel_image_equals_the_separate_steps(
    fortran: bool, permuted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_resampling, "_BLOCK_VOXELS", 700)  # several blocks
    array = np.random.default_rng(0).integers(-50, 150, (31, 14, 23)).astype(np.int16)
    array = np.asfortranarray(array) if fortran else array
    matrix = np.diag([-RATIOS[0], RATIOS[1], RATIOS[2], 1.0])
    matrix[:3, 3] = 28.3, -0.4, -1.7  # begins outside of the last axis
    shape = (8, 13, 15)
    if permuted:
        matrix, shape = matrix @ np.eye(4)[[1, 2, 0, 3]], (15, 8, 13)
    expected = resample_affine(antialias(normalize(array), RATIOS), matrix, shape)
    result = resample_parallel_image(array, matrix, shape, ratios=RATIOS, normalize=normalize)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)


def test_resample_parallel_image_on_its_own_grid_changes_nothing() -> None:
    array = np.random.default_rng(0).random((9, 8, 7), dtype=np.float32)
    result = resample_parallel_image(array, np.eye(4), array.shape, ratios=(1, 1, 1), normalize=np.asarray)
    np.testing.assert_array_equal(result, array)


def test_resample_parallel_image_of_zeros_is_exactly_zero() -> None:
    array = np.zeros((20, 20, 20), np.int16)
    array[:4] = 100
    matrix = np.diag([2.0, 2.0, 2.0, 1.0])
    result = resample_parallel_image(array, matrix, (10, 10, 10), ratios=(2, 2, 2), normalize=normalize)
    assert not result[5:].any()  # empty tiles are recognized by this
