"""Resampling of label maps between parallel grids, against the general resampling label by label."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from HiEndMAECore.preprocessing import label_resampling
from HiEndMAECore.preprocessing.label_resampling import resample_parallel_label_map
from HiEndMAECore.preprocessing.resampling import _resample_through_shear, resample_label_map

MAPS = {
    "finer": ((45, 37, 21), np.diag([4 / 15, 4 / 15, 0.5, 1.0]), (-0.4, 0.1, -0.25)),
    "coarser": ((6, 5, 4), np.diag([3.75, 2.1, 1.5, 1.0]), (0.3, -0.2, 0.5)),
    "flipped": ((14, 12, 12), np.diag([-1.0, 0.7, -1.1, 1.0]), (12.5, -0.5, 10.2)),
    "permuted": ((20, 24, 30), np.eye(4)[[1, 2, 0, 3]] * [[0.4], [0.45], [0.5], [1.0]], (1.0, -2.0, 0.0)),
    "beyond the border": ((30, 30, 30), np.diag([0.6, 0.6, 0.6, 1.0]), (-3.0, -3.0, -3.0)),
    "half a voxel off": ((12, 10, 11), np.eye(4), (0.5, 0.5, 0.5)),
}


def random_labels(*, smooth: float, dtype: type = np.uint8) -> np.ndarray:
    """Return a label map (12, 10, 11) of five labels in blobs, or in noise for a small `smooth`."""
    noise = np.random.default_rng(0).standard_normal((5, 12, 10, 11))
    return ndimage.gaussian_filter(noise, (0, smooth, smooth, smooth)).argmax(axis=0).astype(dtype)


@pytest.mark.parametrize("smooth", [0.3, 1.5])
@pytest.mark.parametrize("name", MAPS)
def test_resample_parallel_label_map_equals_resampling_label_by_label(name: str, smooth: float) -> None:
    shape, matrix, offset = MAPS[name]
    matrix = matrix.copy()
    matrix[:3, 3] = offset
    labels = random_labels(smooth=smooth)
    expected = _resample_through_shear(labels, matrix, shape, "C")
    for order in ("C", "F"):
        result = resample_parallel_label_map(labels, matrix, shape, order=order)
        assert result.dtype == labels.dtype
        assert result.flags[f"{order}_CONTIGUOUS"]
        np.testing.assert_array_equal(result, expected)


def test_resample_parallel_label_map_in_small_slabs_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, matrix, _ = MAPS["finer"]
    labels = random_labels(smooth=0.5)
    expected = resample_parallel_label_map(labels, matrix, shape)
    monkeypatch.setattr(label_resampling, "_SLAB_CELLS", 300)
    monkeypatch.setattr(label_resampling, "_CHUNK_VOXELS", 100)
    np.testing.assert_array_equal(resample_parallel_label_map(labels, matrix, shape), expected)


def test_resample_parallel_label_map_keeps_large_values() -> None:
    labels = random_labels(smooth=1.0, dtype=np.uint32) * np.uint32(100_000)
    result = resample_parallel_label_map(labels, np.diag([0.5, 0.5, 0.5, 1.0]), (24, 20, 22))
    assert set(np.unique(result)) <= set(np.unique(labels))
    assert result.max() == 400_000


def test_resample_parallel_label_map_outside_of_the_input_is_background() -> None:
    matrix = np.eye(4)
    matrix[0, 3] = 100.0
    assert not resample_parallel_label_map(random_labels(smooth=1.0) + 1, matrix, (5, 5, 5)).any()


def test_resample_label_map_through_a_rotation_goes_label_by_label() -> None:
    angle = 0.3
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    labels = random_labels(smooth=1.5)
    for order in ("C", "F"):
        result = resample_label_map(labels, matrix, labels.shape, order=order)
        np.testing.assert_array_equal(result, _resample_through_shear(labels, matrix, labels.shape, order))
        assert result.flags[f"{order}_CONTIGUOUS"]
