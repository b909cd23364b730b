"""The plot of loss and metrics that is drawn during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import slicer
import vtk
from slicer.i18n import tr as _

CURVES = (
    "HiEndMAE learning curve"  # name of the chart node, and start of the names of its tables; saved scenes hold them
)
_CHART_CLASS, _TABLE_CLASS = "vtkMRMLPlotChartNode", "vtkMRMLTableNode"


def show_curves(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Any:
    """Plot numbers by training step, each curve as one series, and return the chart node.

    The nodes are made once and filled again for the next model; a series without a curve is emptied.

    Args:
        curves: (step, value) points by curve name; the loss is drawn as a line, the others have markers too.
    """
    scene = slicer.mrmlScene
    chart = scene.GetFirstNode(CURVES, _CHART_CLASS)
    if chart is None:
        chart = scene.AddNewNodeByClass(_CHART_CLASS, CURVES)
        chart.SetTitle(_("Training"))
        chart.SetXAxisTitle(_("step"))
    points_by_title = {_title_of(name): points for name, points in curves.items()}
    present = [chart.GetNthPlotSeriesNode(index).GetName() for index in range(chart.GetNumberOfPlotSeriesNodes())]
    for title in dict.fromkeys([*points_by_title, *present]):
        _fill_series(chart, title, points_by_title.get(title, ()), markers=title != _title_of("loss"))
    return chart


def show_chart() -> None:
    """Bring the plot to the screen, in a layout that has room for it."""
    chart = slicer.mrmlScene.GetFirstNode(CURVES, _CHART_CLASS)
    if chart is not None:
        slicer.modules.plots.logic().ShowChartInLayout(chart)


def _title_of(curve: str) -> str:
    """Return the title of a curve; titles are parts of node names, and do not change between versions."""
    titles = {
        "loss": _("loss"),
        "agreement": _("agreement with your labels (Dice)"),
        "self_check": _("self-check (Dice where it did not look)"),
    }
    return titles.get(curve, curve.replace("_", " "))


def _fill_series(chart: Any, title: str, points: Sequence[tuple[float, float]], *, markers: bool) -> None:
    """Write the points of one series into its table; make table and series if they do not exist."""
    scene = slicer.mrmlScene
    name = f"{CURVES}: {title}"
    node = scene.GetFirstNode(name, _TABLE_CLASS)
    if node is None:
        node = scene.AddNewNodeByClass(_TABLE_CLASS, name)
        for heading in (_("step"), title):
            column = vtk.vtkDoubleArray()
            column.SetName(heading)
            node.AddColumn(column)
        series = scene.AddNewNodeByClass("vtkMRMLPlotSeriesNode", title)
        series.SetAndObserveTableNodeID(node.GetID())
        series.SetXColumnName(_("step"))
        series.SetYColumnName(title)
        series.SetPlotType(series.PlotTypeScatter)
        series.SetMarkerStyle(series.MarkerStyleCircle if markers else series.MarkerStyleNone)
        series.SetUniqueColor()
        chart.AddAndObservePlotSeriesNodeID(series.GetID())
    table = node.GetTable()
    table.SetNumberOfRows(len(points))
    for row, point in enumerate(points):
        for column, value in enumerate(point):
            table.GetColumn(column).SetValue(row, value)
    table.Modified()
