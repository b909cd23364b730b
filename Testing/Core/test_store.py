"""The store of prepared scans: crops come back as they went in, padding is told from scan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from HiEndMAECore.volumes import crop_store
from HiEndMAECore.volumes.crop_store import CropStore

SHAPE = (9, 14, 11)


@pytest.fixture
def store(tmp_path: Path) -> CropStore:
    scan = np.random.default_rng(3).uniform(0.25, 1.0, (2, *SHAPE)).astype(np.float32)  # no voxel is as dark as padding
    entry = crop_store.add_scan(tmp_path / "store", "scan", scan)
    crop_store.write_manifest(tmp_path / "store", {"scans": [entry], "channels": 2, "preparation": {}})
    return CropStore.open(tmp_path / "store")


corner = st.tuples(*[st.integers(-16, 18)] * 3)
extent = st.tuples(*[st.integers(1, 20)] * 3)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=corner, size=extent)
def test_what_is_inside_is_scan_and_the_rest_is_padding(
    store: CropStore, start: tuple[int, int, int], size: tuple[int, int, int]
) -> None:
    crop = store.crop(0, start=start, size=size)
    assert crop.shape == (2, *size)
    told = np.zeros(size, bool)
    told[tuple(slice(*pair) for pair in store.inside(0, start=start, size=size))] = True
    np.testing.assert_array_equal(crop[0] > 0, told)
    np.testing.assert_array_equal(crop[1] > 0, told)
