"""The scan in Slicer's Sample Data."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest


def test_sample_scan_is_registered_after_startup(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a checksum and an icon that exists. Without the module SampleData nothing is registered."""
    import slicer

    slicer.app.startupCompleted.emit()
    registered: list[dict[str, Any]] = []
    samples = types.ModuleType("SampleData")
    register = staticmethod(lambda **options: registered.append(options))
    samples.SampleDataLogic = type("SampleDataLogic", (), {"registerCustomSampleDataSource": register})
    monkeypatch.setitem(sys.modules, "SampleData", samples)
    slicer.app.startupCompleted.emit()
    assert registered
    assert registered[0]["uris"].endswith(registered[0]["checksums"].removeprefix("SHA256:"))
    assert Path(registered[0]["thumbnailFileName"]).is_file()
