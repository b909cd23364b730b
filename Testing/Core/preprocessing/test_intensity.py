"""Intensities are normalized by a window or by percentiles, and the choice is right for CT and MRI."""

from __future__ import annotations

import numpy as np
import pytest
from bodies import body, rng

from HiEndMAECore.io.volume import Geometry, Volume
from HiEndMAECore.preprocessing.intensity import IntensityNormalization, suggest_normalization


def test_window_maps_hounsfield_units_to_unit_range() -> None:
    array = np.array([-3024.0, -175.0, 37.5, 250.0, 3000.0], np.float32).reshape(1, 5, 1, 1)
    result = IntensityNormalization().apply(array)
    np.testing.assert_allclose(result.ravel(), [0, 0, 0.5, 1, 1])
    assert result.dtype == np.float32
    assert array[0, 0] == -3024.0  # the input is not changed


def test_percentiles_do_not_depend_on_the_amount_of_air() -> None:
    tissue = rng.normal(500, 100, (1, 20, 20, 20)).astype(np.float32)
    little_air, much_air = (np.pad(tissue, ((0, 0), *[(n, n)] * 3)) for n in (3, 15))
    one, other = (IntensityNormalization.percentiles().limits(array)[0] for array in (little_air, much_air))
    np.testing.assert_allclose(one, other, rtol=0.02)
    result = IntensityNormalization.percentiles().apply(np.concatenate([little_air, little_air * 7 + 3]))
    np.testing.assert_allclose(result[0], result[1], atol=1e-4)
    assert result.min() == 0.0
    assert result.max() == 1.0


@pytest.mark.parametrize("normalization", [IntensityNormalization(), IntensityNormalization.percentiles()])
def test_normalization_of_a_constant_scan_is_zero(normalization: IntensityNormalization) -> None:
    result = normalization.apply(np.full((1, 3, 3, 3), -2000.0, np.float32))
    assert (result == 0).all()


def test_suggest_normalization_separates_ct_from_mri() -> None:
    geometry = Geometry((24, 24, 24), np.eye(4))
    ct = body(geometry)
    padded = Volume(np.where(ct.array < 0, -3024.0, ct.array) - (rng.random(ct.array.shape) < 0.05) * 150, geometry)
    for scan in (ct, padded):
        assert suggest_normalization(scan).kind == "window"
    signal = np.abs(rng.normal(0, 300, (1, 24, 24, 24))).astype(np.float32)
    phases = rng.uniform(-4096, 4095, (1, 24, 24, 24)).astype(np.float32)
    for array in (signal, signal - 60, (signal - 200) / 300, phases, np.zeros((1, 4, 4, 4), np.float32)):
        assert suggest_normalization(Volume(array, geometry)).kind == "percentiles"
