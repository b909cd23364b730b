"""Preview and curves during training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fake_engines import use_fake_engine
from module_help import NAMES, draw_segments, message_of, wait


def test_preview_and_curves_are_shown_during_training(module: Any, patient: Callable[..., Any], tmp_path: Path) -> None:
    """The preview is the engine's label map with the names of the structures; it is removed at the end."""
    import slicer

    labelled, labels = patient(1, "CT")
    engine = f"""
import json, shutil, sys, time
config = json.load(open(sys.argv[sys.argv.index("--config") + 1], encoding="utf-8"))
preview = {str(tmp_path / "preview.nii")!r}
shutil.copy(config["label"][0], preview)
def send(**event): print(json.dumps(dict(v=1, **event)), flush=True)
send(event="progress", stage="learning", step=1, total=10, seconds_left=90.0, loss=2.0)
send(event="preview", path=preview)
send(event="metric", name="agreement", value=0.25, step=1)
send(event="warning", code="too_little_to_learn", message="Little.", advice="")
time.sleep(1.2)
send(event="progress", stage="learning", step=10, total=10, seconds_left=0.0, loss=1.0)
time.sleep(0.5)
send(event="failed", code="x", message="Enough.", advice="")
"""
    use_fake_engine(tmp_path, engine)
    module.session.parameters.teachSegmentation = draw_segments(labelled, labels)
    module.train.ui.trainButton.click()
    wait(lambda: slicer.mrmlScene.GetFirstNodeByName("Preview") is not None)
    preview = slicer.mrmlScene.GetFirstNodeByName("Preview").GetSegmentation()
    assert [preview.GetNthSegment(index).GetName() for index in range(3)] == list(NAMES.values())
    assert module.train.strip.ui.progressLabel.text == "Training · 2 min left"
    wait(lambda: not module.session.busy)
    assert slicer.mrmlScene.GetFirstNodeByName("Preview") is None
    table = slicer.mrmlScene.GetFirstNode("HiEndMAE learning curve: loss", "vtkMRMLTableNode")
    assert [table.GetCellText(row, 1) for row in range(table.GetNumberOfRows())] == ["2", "1"]
    chart = slicer.mrmlScene.GetFirstNode("HiEndMAE learning curve", "vtkMRMLPlotChartNode")
    second = chart.GetNthPlotSeriesNode(1).GetTableNode()
    assert [second.GetCellText(0, column) for column in (0, 1)] == ["1", "0.25"]
    assert message_of(module.train) == "Enough."


def test_curve_button_shows_the_chart_of_all_metrics(module: Any, tmp_path: Path, patient: Callable[..., Any]) -> None:
    """Every metric that has a step becomes a curve; curves of an earlier model are emptied."""
    import slicer
    from HiEndMAESegmentationLib.scene import plots

    plots.show_curves({"loss": [(1, 2.0)], "agreement": [(1, 0.5)]})
    plots.show_curves({"loss": [(1, 3.0)], "self_check": [(1, 0.25)], "learning_rate": [(1, 0.1)]})
    chart = slicer.mrmlScene.GetFirstNode(plots.CURVES, "vtkMRMLPlotChartNode")
    series = [chart.GetNthPlotSeriesNode(index) for index in range(chart.GetNumberOfPlotSeriesNodes())]
    rows = {node.GetName(): node.GetTableNode().GetNumberOfRows() for node in series}
    assert rows == {
        "loss": 1,
        "agreement with your labels (Dice)": 0,
        "self-check (Dice where it did not look)": 1,
        "learning rate": 1,
    }
    layout = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLayoutNode")
    view = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLPlotViewNode")
    view.SetAttribute("MappedInLayout", "1")
    use_fake_engine(tmp_path, "import time; time.sleep(100)")
    labelled, labels = patient(1, "CT")
    module.session.parameters.teachSegmentation = draw_segments(labelled, labels)
    module.train.ui.trainButton.click()
    assert module.train.strip.ui.curveButton.isVisibleTo(module.parent)
    module.train.strip.ui.curveButton.click()
    assert view.GetPlotChartNodeID() == chart.GetID(), layout
    module.train.strip.cancel()
    wait(lambda: not module.session.busy)
