"""The bounding box excludes air and contains the body."""

from __future__ import annotations

import numpy as np
import pytest

from HiEndMAECore.io.volume import Geometry, Volume
from HiEndMAECore.preprocessing.cropping import body_bounding_box
from HiEndMAECore.preprocessing.intensity import IntensityNormalization
from HiEndMAECore.preprocessing.pipeline import PreprocessingPlan, preprocess


def test_body_bounding_box_excludes_air_and_contains_the_body() -> None:
    array = np.full((1, 100, 90, 80), -1000.0, np.float32)
    array[:, 40:60, 30:50, 20:60] = 40.0
    array[:, 2:6, 2:6] = 100.0  # a rail of the table
    volume = Volume(array, Geometry((100, 90, 80), np.diag([-1.0, -1.0, 1.0, 1.0])))
    cropped, whole = (preprocess(volume, PreprocessingPlan((1.0,) * 3), crop=crop) for crop in (True, False))
    assert whole.array.shape == (1, 100, 90, 80)
    assert cropped.array[0].size < 0.25 * whole.array[0].size
    assert (cropped.array > 0.5).sum() == 20 * 20 * 40


@pytest.mark.parametrize("value", [-1000.0, 0.0, 40.0])
@pytest.mark.parametrize("normalization", [IntensityNormalization(), IntensityNormalization.percentiles()])
def test_body_bounding_box_of_a_uniform_scan_is_the_scan(value: float, normalization: IntensityNormalization) -> None:
    volume = Volume(np.full((1, 9, 8, 7), value, np.float32), Geometry((9, 8, 7), np.eye(4)))
    scan = preprocess(volume, PreprocessingPlan((1.0,) * 3, normalization))
    assert scan.array.shape == (1, 9, 8, 7)


@pytest.mark.parametrize("shape", [(40, 41, 42), (43, 44, 45)])
@pytest.mark.parametrize("hounsfield", [True, False])
def test_body_bounding_box_of_a_flipped_scan_is_flipped(shape: tuple[int, int, int], hounsfield: bool) -> None:
    """At a spacing of 1 mm every fourth voxel is examined, counted from both ends."""
    array = np.full((1, *shape), -1000.0, np.float32)
    array[:, 9:31, 7:24, 14:38] = 40.0
    box = body_bounding_box(Volume(array, Geometry(shape, np.eye(4))), hounsfield=hounsfield)
    assert box != [(0, n) for n in shape]
    flipped = body_bounding_box(Volume(array[:, ::-1, ::-1, ::-1], Geometry(shape, np.eye(4))), hounsfield=hounsfield)
    assert flipped == [(n - high, n - low) for (low, high), n in zip(box, shape)]
