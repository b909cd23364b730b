"""The table of volumes of the segmented structures, and its CSV file."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import slicer
import vtk

VOLUMES_TABLE = "HiEndMAE volumes"  # name of the table node; saved scenes hold it
COLUMNS = ("Scan", "Model", "Structure", "Volume (ml)")
_NODE_COLUMN = "Node"  # ID of the scan's node; not shown


def update_volumes_table(volume: Any, model_name: str, rows: Sequence[Mapping[str, Any]]) -> Any:
    """Add a scan's structures to the table of volumes, and remove those of an earlier run of the same model.

    A scan is identified by its node, because the scans of two patients may have the same name.

    Args:
        volume: The scan that was segmented.
        model_name: Name of the model.
        rows: One mapping a structure, with `name` and `volume_ml` (ml).

    Returns:
        The table node.
    """
    node = volumes_table() or _make_table()
    table = node.GetTable()
    if node.GetColumnIndex(_NODE_COLUMN) < 0:  # the scene was saved by a version without this column
        _add_column(node, _NODE_COLUMN, vtk.vtkStringArray())
    id_column = node.GetColumnIndex(_NODE_COLUMN)
    for row in reversed(range(table.GetNumberOfRows())):
        if node.GetCellText(row, id_column) == volume.GetID() and node.GetCellText(row, 1) == model_name:
            node.RemoveRow(row)
    for record in rows:
        row = node.AddEmptyRow()
        values = (volume.GetName(), model_name, record["name"], record["volume_ml"], volume.GetID())
        for column, value in enumerate(values):
            table.GetColumn(column).SetValue(row, value)
    table.Modified()
    node.Modified()
    return node


def _make_table() -> Any:
    """Return a new, empty table node."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", VOLUMES_TABLE)
    for title in COLUMNS:
        _add_column(node, title, vtk.vtkDoubleArray() if title.endswith("(ml)") else vtk.vtkStringArray())
    return node


def _add_column(node: Any, title: str, column: Any) -> None:
    """Add an empty column with a title."""
    column.SetName(title)
    node.AddColumn(column)


def volumes_table() -> Any:
    """Return the table node, or None."""
    return slicer.mrmlScene.GetFirstNodeByName(VOLUMES_TABLE)


def write_csv(node: Any, path: Path) -> None:
    """Write the table as CSV with a UTF-8 byte order mark, so that spreadsheets show all letters correctly."""
    table = node.GetTable()
    with path.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.writer(stream)
        columns = [index for index in range(table.GetNumberOfColumns()) if table.GetColumnName(index) != _NODE_COLUMN]
        writer.writerow([table.GetColumnName(column) for column in columns])
        for row in range(table.GetNumberOfRows()):
            writer.writerow([node.GetCellText(row, column) for column in columns])
