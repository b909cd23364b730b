"""Fixtures shared by the engine's tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans; a clone alone has none and passes without."""
    folder = os.environ.get("HIENDMAE_DATA")
    if not folder:
        pytest.skip("HIENDMAE_DATA does not name a folder of real scans")
    if not Path(folder).is_dir():
        pytest.skip(f"HIENDMAE_DATA names {folder}, which is no folder")
    return Path(folder)
