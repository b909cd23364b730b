"""The table of volumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("empty_scene")


def test_volumes_table_keeps_two_scans_of_one_name_apart(empty_scene: Any, tmp_path: Path) -> None:
    from HiEndMAESegmentationLib.scene import tables

    first, second = (empty_scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT") for _ in range(2))
    for volume, ml in ((first, 1.0), (second, 2.0), (first, 3.0)):
        volume.SetName("CT")
        table = tables.update_volumes_table(volume, "m", [{"name": "liver", "volume_ml": ml}])
    tables.write_csv(table, tmp_path / "v.csv")
    lines = (tmp_path / "v.csv").read_text(encoding="utf-8-sig").split()
    assert lines[-2:] == ["CT,m,liver,2", "CT,m,liver,3"]
    assert lines[0] == "Scan,Model,Structure,Volume"
