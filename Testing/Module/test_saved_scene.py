"""A scene that version 0.1.0 of the module saved: every choice, training case, region, table and plot is found again.

`fixtures/format_1/README.md` describes the scene.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

FIXTURES = Path(__file__).parent / "fixtures" / "format_1"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text(encoding="utf-8"))
MODEL = EXPECTED["parameters"]["model"]


@pytest.fixture
def loaded(module: Any) -> Any:
    """Return the module after loading the scene."""
    import slicer

    assert slicer.mrmlScene.ReadFromMRB(str(FIXTURES / "scene.mrb"), True, None)
    module.initializeParameterNode()
    return module


def plain(value: Any) -> Any:
    """Return a parameter with the names of nodes instead of the nodes."""
    return [plain(part) for part in value] if isinstance(value, list) else getattr(value, "GetName", lambda: value)()


def name_of(node: Any) -> str | None:
    return None if node is None else node.GetName()


def describe_segmentation(node: Any) -> dict[str, Any]:
    """Return the scans that a segmentation belongs to, and its segments."""
    import slicer
    from HiEndMAESegmentationLib.scene import nodes, provenance

    volume = provenance.source_volume_of(node)
    segments = []
    for segment in nodes.segments_of(node):
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, segment.id, volume)
        segments.append({**asdict(segment), "color": list(segment.color), "voxels": int((mask > 0).sum())})
    return {
        "source_volume": name_of(volume),
        "training_volume": name_of(provenance.training_volume_of(node)),
        "training_reference": name_of(node.GetNodeReference(provenance.TRAINING_VOLUME_ROLE)),
        "segments": segments,
    }


def describe_table(node: Any) -> dict[str, Any]:
    """Return the name of a table node, its column titles and its cells as text."""
    columns = range(node.GetNumberOfColumns())
    rows = range(node.GetNumberOfRows())
    return {
        "name": node.GetName(),
        "columns": [node.GetColumnName(column) for column in columns],
        "rows": [[node.GetCellText(row, column) for column in columns] for row in rows],
    }


def describe_charts() -> dict[str, dict[str, list[list[float]]]]:
    """Return the points (step, value) of each series of each chart in the scene."""
    import slicer

    charts = {}
    for chart in slicer.util.getNodesByClass("vtkMRMLPlotChartNode"):
        series = [chart.GetNthPlotSeriesNode(index) for index in range(chart.GetNumberOfPlotSeriesNodes())]
        tables = {one.GetName(): describe_table(one.GetTableNode()) for one in series}
        charts[chart.GetName()] = {
            name: [[float(cell) for cell in row] for row in table["rows"]] for name, table in tables.items()
        }
    return charts


def test_saved_scene_restores_every_parameter(loaded: Any) -> None:
    parameters = loaded.session.parameters
    found = {name: plain(getattr(parameters, name)) for name in parameters.allParameters}
    later = set(found) - set(EXPECTED["parameters"])  # parameters that were added since have their defaults
    assert {name: value for name, value in found.items() if name not in later} == EXPECTED["parameters"]


def test_saved_scene_restores_the_panels(loaded: Any) -> None:
    import qt

    train, apply = loaded.train.ui, loaded.apply.ui
    choices = (train.budgetCombo.currentData, train.startCombo.currentData, train.deviceCombo.currentData)
    assert choices == ("20min", "none", "cpu")
    assert train.nameEdit.text == "Modell Ä"
    items = [train.segmentsList.item(index) for index in range(train.segmentsList.count)]
    assert [item.checkState() == qt.Qt.Checked for item in items] == [True, False]  # the second segment is excluded
    assert (apply.show3DCheck.checked, apply.largestCheck.checked, apply.uncertaintyCheck.checked) == (
        False,
        True,
        True,
    )
    cases = {apply.casesTable.item(row, 0).text(): apply.casesTable.item(row, 0) for row in range(2)}
    assert [name for name, item in cases.items() if item.checkState() == qt.Qt.Checked] == ["CT B"]
    assert apply.volumesTable.rowCount == 2
    assert loaded.refine.ui.correctedSelector.currentNode().GetName() == EXPECTED["parameters"]["corrected"]


def test_saved_scene_restores_volumes_and_segmentations(loaded: Any) -> None:
    import numpy as np
    import slicer
    from HiEndMAESegmentationLib.scene import nodes

    assert [volume.GetName() for volume in nodes.scans()] == EXPECTED["scans"]  # the uncertainty map is no scan
    volumes = {}
    for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"):
        array = slicer.util.arrayFromVolume(node)
        volumes[node.GetName()] = {
            "class": node.GetClassName(),
            "shape_kji": list(array.shape),
            "dtype": str(array.dtype),
            "sum": int(array.astype(np.int64).sum()),
        }
    assert volumes == EXPECTED["volumes"]
    segmentations = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    assert {node.GetName(): describe_segmentation(node) for node in segmentations} == EXPECTED["segmentations"]


def test_saved_scene_restores_provenance(loaded: Any) -> None:
    import slicer
    from HiEndMAESegmentationLib.scene import provenance

    pairs = provenance.training_cases_of(MODEL)
    assert [[volume.GetName(), segmentation.GetName()] for volume, segmentation in pairs] == EXPECTED["training_cases"]
    attributes: dict[str, dict[str, str]] = {}
    for node in slicer.util.getNodesByClass("vtkMRMLNode"):
        for name in node.GetAttributeNames() or ():
            if name.startswith("HiEndMAE"):
                attributes.setdefault(node.GetName(), {})[name] = node.GetAttribute(name)
    assert attributes == EXPECTED["attributes"]
    result = slicer.util.getNode(EXPECTED["parameters"]["corrected"])
    assert result.GetAttribute(provenance.MODEL_ATTRIBUTE) == MODEL


def test_saved_scene_restores_tables_and_charts(loaded: Any) -> None:
    from HiEndMAESegmentationLib.scene import tables

    assert describe_table(tables.volumes_table()) == EXPECTED["volumes_table"]
    assert describe_charts() == EXPECTED["charts"]


def test_region_of_a_saved_scene_is_the_modules_own(loaded: Any) -> None:
    """The stand-in stores no position of a region; in Slicer it has a file of its own."""
    from HiEndMAESegmentationLib.scene import roi

    region = roi.find_roi()
    assert region.GetName() == EXPECTED["roi"]
    region.SetDisplayVisibility(False)
    assert roi.find_roi() is region  # by its attribute, because a hidden region without it is not used
    roi.hide_roi(region)
    assert roi.find_roi() is None


def test_results_are_added_to_the_nodes_of_a_saved_scene(loaded: Any) -> None:
    """Table, chart and attributes are continued; a second set of nodes would leave the old results beside the new ones."""
    import slicer
    from HiEndMAESegmentationLib.scene import plots, provenance, tables

    count = slicer.mrmlScene.GetNumberOfNodes()
    rows = EXPECTED["volumes_table"]["rows"]
    scan = slicer.mrmlScene.GetNodeByID(rows[0][-1])
    tables.update_volumes_table(scan, rows[0][1], [{"name": "Leber ß", "volume_ml": 900.5}])
    assert describe_table(tables.volumes_table())["rows"] == [[*rows[0][:3], "900.5", rows[0][4]]]
    plots.show_curves({"loss": [(1, 3.0)], "agreement": [(1, 0.25), (2, 0.5)]})
    (chart,) = EXPECTED["charts"]
    titles = list(EXPECTED["charts"][chart])
    assert describe_charts() == {chart: {titles[0]: [[1, 3.0]], titles[1]: [[1, 0.25], [2, 0.5]]}}
    volume, segmentation = provenance.training_cases_of(MODEL)[0]
    provenance.mark_as_training_case(segmentation, "another", volume)
    assert provenance.training_cases_of("another") == provenance.training_cases_of(MODEL) == [(volume, segmentation)]
    assert slicer.mrmlScene.GetNumberOfNodes() == count
