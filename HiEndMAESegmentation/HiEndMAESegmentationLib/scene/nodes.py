"""Nodes to files and files to nodes: the only room that knows MRML.

Files carry neutral names (`scan.nii`), never the names of nodes: patients' names do not land on the disk, and no name
that a file system dislikes gets in the way. Volumes are written as they lie in their own coordinates; a transform
above a volume is left alone and put above the result as well.
"""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import slicer.util
import vtk
from slicer.i18n import tr as _

from HiEndMAECore.errors import InputError

from . import terminology

MADE_WITH = "HiEndMAE.Model"  # attribute of a result: folder name of the model in the library
TAUGHT = "HiEndMAE.Taught"  # attribute of a segmentation that a model learned from: folder names, one a line
TAUGHT_ON = "HiEndMAE.TaughtOn"  # node reference of such a segmentation: the scan that the model saw
BOX = "HiEndMAE.Box"  # attribute of the region of interest that the module made
UNCERTAINTY = "HiEndMAE.Uncertainty"  # attribute of a map of uncertainty: it is no scan
TABLE = "HiEndMAE volumes"
_NODE = "Node"
CURVE = "HiEndMAE learning curve"


@dataclass(frozen=True)
class Segment:
    """One segment as the panels show it; colour is red, green, blue from 0 to 255."""

    id: str
    name: str
    colour: tuple[int, int, int]
    terminology: Mapping[str, Any]


@dataclass(frozen=True)
class TeachingFiles:
    """One labelled scan on the disk; `names` describes the values of `label`."""

    image: Path
    label: Path
    names: Path


def segments_of(segmentation: Any) -> list[Segment]:
    """The segments of a segmentation node, in its order."""
    found = []
    content = segmentation.GetSegmentation()
    for index in range(content.GetNumberOfSegments()):
        segment = content.GetNthSegment(index)
        red, green, blue = (round(255 * part) for part in segment.GetColor())
        tag = vtk.reference("")
        segment.GetTag(segment.GetTerminologyEntryTagName(), tag)
        entry = terminology.from_tag(str(tag))
        found.append(Segment(content.GetNthSegmentID(index), segment.GetName(), (red, green, blue), entry))
    return found


def scans() -> list[Any]:
    """All scalar volumes that a user sees; label maps and maps of uncertainty are none."""
    nodes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
    plain = [node for node in nodes if node.GetClassName() == "vtkMRMLScalarVolumeNode"]
    return [node for node in plain if not node.GetHideFromEditors() and node.GetAttribute(UNCERTAINTY) is None]


def has_voxels(volume: Any) -> bool:
    """Is there an image in the node?"""
    return volume is not None and volume.GetImageData() is not None and volume.GetImageData().GetNumberOfPoints() > 0


def megabytes(volume: Any) -> float:
    """Size of the scan's voxels as float32 in MB."""
    return volume.GetImageData().GetNumberOfPoints() * 4 / 1e6 if has_voxels(volume) else 0.0


# -- nodes to files ------------------------------------------------------------------------------------------------


def write_scan(volume: Any, path: Path) -> None:
    """Write the volume's voxels and geometry, leaving its own storage untouched. Raises `InputError`."""
    if not has_voxels(volume):
        raise InputError("scan_empty", _("The volume has no image."), _("Choose another volume."))
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(path))
    storage.SetUseCompression(False)  # seconds instead of minutes, on the main thread
    image = volume.GetImageData()
    least = image.GetNumberOfPoints() * image.GetNumberOfScalarComponents() * image.GetScalarSize()
    written = storage.WriteData(volume) and path.is_file()
    if not written or path.stat().st_size < least:  # on a full disk the writer may well be content
        told = _("'{name}' could not be written to the disk.").format(name=volume.GetName())
        raise InputError("disk_full", told, _("Free some space on the disk, and try again."))


def write_teaching(
    volume: Any, segmentation: Any, folder: Path, *, segments: Sequence[str], values: Mapping[str, int] | None = None
) -> TeachingFiles:
    """Scan, label map and names of the `segments` (IDs) as files in `folder`.

    values: label values by segment name, where a model knows them already; else 1, 2, … in the segmentation's order.
    Raises `InputError` when there is nothing to learn, two names are the same, or segments overlap.
    """
    if not has_voxels(volume):
        raise InputError("scan_empty", _("Choose a volume with an image."))
    chosen = [segment for segment in segments_of(segmentation) if segment.id in set(segments)]
    _refuse_odd_names(chosen, values)
    numbers = values or {segment.name: index + 1 for index, segment in enumerate(chosen)}
    labels, empty = None, []
    for segment in chosen:
        mask = _mask_of(segmentation, segment.id, volume)
        labels = np.zeros(mask.shape, np.int16) if labels is None else labels
        if not mask.any():
            empty.append(segment.name)
        met = np.unique(labels[mask])
        if met.any():
            other = next(one.name for one in chosen if numbers[one.name] == met[met > 0][0])
            told = _("The segments '{one}' and '{two}' overlap.").format(one=other, two=segment.name)
            advice = _("In the Segment Editor, use Logical operators (Subtract), or learn only one of them.")
            raise InputError("segments_overlap", told, advice)
        labels[mask] = numbers[segment.name]
    if labels is None or not labels.any():
        told = _("No segment has a voxel inside '{name}'.").format(name=volume.GetName())
        raise InputError("nothing_labelled", told, _("Draw the structures in the Segment Editor first."))
    files = TeachingFiles(folder / "scan.nii", folder / "labels.nii", folder / "names.json")
    folder.mkdir(parents=True, exist_ok=True)
    write_scan(volume, files.image)
    with _temporary_label_map(volume, labels) as node:
        write_scan(node, files.label)
    records = [
        {
            "value": numbers[segment.name],
            "name": segment.name,
            "colour": list(segment.colour),
            "terminology": dict(segment.terminology),
        }
        for segment in chosen
        if segment.name not in empty
    ]
    files.names.write_text(json.dumps({"labels": records}), encoding="utf-8")
    return files


def _refuse_odd_names(chosen: Sequence[Segment], values: Mapping[str, int] | None) -> None:
    if not chosen:
        advice = _("Tick at least one segment, or draw one in the Segment Editor.")
        raise InputError("nothing_chosen", _("There is no segment to learn."), advice)
    names = [segment.name for segment in chosen]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        told = _("Two segments are called '{name}'.").format(name=twice)
        raise InputError("name_twice", told, _("Rename one of them."))
    unknown = next((name for name in names if values is not None and name not in values), None)
    if unknown is not None:
        told = _("The model knows no structure called '{name}'.").format(name=unknown)
        advice = _("Untick it or rename it; new structures need a model that is taught anew.")
        raise InputError("structure_unknown", told, advice)


def _mask_of(segmentation: Any, segment_id: str, volume: Any) -> np.ndarray:
    """(k, j, i) bool: the segment on the volume's grid. `slicer.util` has one as well, but it leaves nodes behind."""
    wanted = vtk.vtkStringArray()
    wanted.InsertNextValue(segment_id)
    with _temporary_node() as node:
        logic = slicer.modules.segmentations.logic()
        if not logic.ExportSegmentsToLabelmapNode(segmentation, wanted, node, volume):
            told = _("The segments of '{name}' could not be read.").format(name=segmentation.GetName())
            raise InputError(
                "segments_unreadable", told, _("Open the segmentation in the Segment Editor, and try again.")
            )
        return np.array(slicer.util.arrayFromVolume(node)) > 0


@contextlib.contextmanager
def _temporary_node() -> Iterator[Any]:
    """A hidden label map node that is gone afterwards, with all that Slicer's logics put beside it."""
    scene = slicer.mrmlScene
    kinds = ("vtkMRMLLabelMapVolumeDisplayNode", "vtkMRMLColorTableNode")
    before = {node.GetID() for kind in kinds for node in slicer.util.getNodesByClass(kind)}
    node = scene.CreateNodeByClass("vtkMRMLLabelMapVolumeNode")
    node.UnRegister(None)
    node.SetName("HiEndMAE temporary")
    node.SetHideFromEditors(True)  # before it enters the scene: the subject hierarchy and the lists do not show it
    node = scene.AddNode(node)
    try:
        yield node
    finally:
        scene.RemoveNode(node)
        for kind in kinds:
            for left in slicer.util.getNodesByClass(kind):
                if left.GetID() not in before:
                    scene.RemoveNode(left)


@contextlib.contextmanager
def _temporary_label_map(volume: Any, labels: np.ndarray, *, step: int = 1) -> Iterator[Any]:
    """A temporary label map with exactly the volume's geometry. labels: (k, j, i), of every `step`-th voxel."""
    with _temporary_node() as node:
        node.CopyOrientation(volume)
        node.SetSpacing(*(step * edge for edge in volume.GetSpacing()))
        image = vtk.vtkImageData()
        image.SetDimensions(*reversed(labels.shape))
        image.AllocateScalars(vtk.VTK_SHORT, 1)
        node.SetAndObserveImageData(image)
        slicer.util.updateVolumeFromArray(node, labels.astype(np.int16, copy=False))
        node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
        yield node


# -- a smaller scan ------------------------------------------------------------------------------------------------


def roi() -> Any:
    """The region of interest (markups) to crop to: the module's own, else one that is shown, or None. A hidden one is
    nobody's choice: volume rendering makes some, and another patient's may be left."""
    boxes = slicer.util.getNodesByClass("vtkMRMLMarkupsROINode")
    own = [box for box in boxes if box.GetAttribute(BOX)]
    shown = [box for box in boxes if box.GetDisplayNode() is not None and box.GetDisplayNode().GetVisibility()]
    return next(iter([*own, *shown]), None)


def put_away(box: Any) -> None:
    """Our own box has done its work: the next crop makes another."""
    if box.GetAttribute(BOX):
        box.SetAttribute(BOX, None)
        box.SetDisplayVisibility(False)


def make_roi(volume: Any, segmentation: Any = None, *, margin: float = 30.0) -> Any:
    """A box around the segments and `margin` mm, or without segments around the middle half of the volume."""
    bounds = [0.0] * 6
    (segmentation or volume).GetRASBounds(bounds)
    low, high = np.array(bounds[0::2]), np.array(bounds[1::2])
    size = high - low + 2 * margin if segmentation is not None else (high - low) / 2
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", _("HiEndMAE box"))
    node.CreateDefaultDisplayNodes()
    node.SetCenterWorld(*((low + high) / 2))
    node.SetSizeWorld(*size)
    node.SetAttribute(BOX, "1")
    return node


def crop(volume: Any, box: Any) -> Any:
    """A new volume with the voxels inside the box, exactly where they were. Raises `InputError` when there are none."""
    whole, part = [0.0] * 6, [0.0] * 6
    volume.GetRASBounds(whole)
    box.GetRASBounds(part)
    if any(part[2 * axis] >= whole[2 * axis + 1] or part[2 * axis + 1] <= whole[2 * axis] for axis in range(3)):
        told = _("The box does not meet '{name}'.").format(name=volume.GetName())
        raise InputError("roi_outside", told, _("Place it over the region of interest."))
    name = slicer.mrmlScene.GenerateUniqueName(_("{name} cropped").format(name=volume.GetName()))
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    slicer.modules.cropvolume.logic().CropVoxelBased(box, volume, node)
    if not has_voxels(node):
        slicer.mrmlScene.RemoveNode(node)
        told = _("'{name}' could not be cropped.").format(name=volume.GetName())
        raise InputError("crop_failed", told, _("Harden the transform above it first, or use the module Crop Volume."))
    node.CreateDefaultDisplayNodes()
    _place_beside(node, volume)
    return node


# -- files to nodes ------------------------------------------------------------------------------------------------


def show_result(
    path: Path, volume: Any, *, labels: Sequence[Mapping[str, Any]], name: str, surfaces: bool = False
) -> Any:
    """A segmentation node out of the label map at `path`, in the volume's geometry and study.

    labels: the model's, with value, name, colour and terminology; a structure that was not found becomes an empty
    segment, so that nobody takes it for forgotten. Nothing stays in the scene when anything fails.
    """
    array = _read_array(path)
    if array.shape != slicer.util.arrayFromVolume(volume).shape[:3]:
        told = _("The result does not lie on the grid of '{name}'.").format(name=volume.GetName())
        raise InputError("grid_differs", told, _("Was the volume changed in the meantime? Segment it again."))
    return _show(array, volume, labels=labels, name=name, surfaces=surfaces)


def show_preview(
    path: Path, volume: Any, *, labels: Sequence[Mapping[str, Any]], name: str, most: float = 1.5e6
) -> Any:
    """As `show_result` for an uncompressed NIfTI file, but of a large scan only every second, third, … voxel along each
    axis, so that not more than `most` are shown: Slicer must not stop while it learns. Raises `InputError`, `ValueError`.
    """
    with path.open("rb") as stream:
        head = stream.read(352)
    shape = tuple(int(size) for size in np.frombuffer(head, "<i2", 3, 42)[::-1])
    kinds = {2: "u1", 4: "<i2", 256: "i1", 512: "<u2"}
    kind = kinds.get(int(np.frombuffer(head, "<i2", 1, 70)[0]))
    step = int(np.ceil((np.prod(shape, dtype=float) / most) ** (1 / 3)))
    if kind is None or step == 1 or shape != slicer.util.arrayFromVolume(volume).shape[:3]:
        return show_result(path, volume, labels=labels, name=name)
    first = int(np.frombuffer(head, "<f4", 1, 108)[0])
    voxels = np.memmap(path, kind, "r", offset=first, shape=shape)
    thinned = np.array(voxels[::step, ::step, ::step])
    del voxels  # the engine cannot replace a file on Windows that is mapped here
    return _show(thinned, volume, labels=labels, name=name, step=step)


def _show(
    array: np.ndarray,
    volume: Any,
    *,
    labels: Sequence[Mapping[str, Any]],
    name: str,
    surfaces: bool = False,
    step: int = 1,
) -> Any:
    """The segmentation node. array: (k, j, i) label values of every `step`-th voxel of the volume."""
    scene = slicer.mrmlScene
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", scene.GenerateUniqueName(name))
    try:
        node.CreateDefaultDisplayNodes()
        node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())  # before the import, which looks at it
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        with _temporary_label_map(volume, array, step=step) as label_map:
            logic = slicer.modules.segmentations.logic()
            if array.any() and not logic.ImportLabelmapToSegmentationNode(label_map, node):
                raise InputError(
                    "result_unreadable", _("The result could not be read."), _("Segment the volume again.")
                )
        _name_segments(node.GetSegmentation(), labels)
        if surfaces:
            node.CreateClosedSurfaceRepresentation()
        _place_beside(node, volume)
    except Exception:
        scene.RemoveNode(node.GetDisplayNode())
        scene.RemoveNode(node)
        raise
    return node


def _read_array(path: Path) -> np.ndarray:
    """(k, j, i) voxels of a file on the grid of a scan that was written by `write_scan`."""
    storage, node = slicer.vtkMRMLVolumeArchetypeStorageNode(), slicer.vtkMRMLLabelMapVolumeNode()
    storage.SetFileName(str(path))
    storage.SetForceRightHandedIJKCoordinateSystem(False)  # else Slicer flips the slices of a left-handed scan's result
    if not path.is_file() or not storage.ReadData(node):
        raise InputError("result_unreadable", _("The result could not be read."), _("Segment the volume again."))
    return np.array(slicer.util.arrayFromVolume(node))


def _name_segments(content: Any, labels: Sequence[Mapping[str, Any]]) -> None:
    """Names, colours and terminology by label value, in the model's order."""
    by_value = {}
    for index in range(content.GetNumberOfSegments()):
        by_value[content.GetNthSegment(index).GetLabelValue()] = content.GetNthSegmentID(index)
    for place, label in enumerate(labels):
        colour = [part / 255 for part in label.get("colour", (128, 174, 128))]
        segment_id = by_value.pop(label["value"], None)
        if segment_id is None:
            segment_id = content.AddEmptySegment("", label["name"], colour)
        segment = content.GetSegment(segment_id)
        segment.SetName(label["name"])
        segment.SetColor(*colour)
        tag = terminology.to_tag(label.get("terminology") or {})
        if tag:
            segment.SetTag(segment.GetTerminologyEntryTagName(), tag)
        content.SetSegmentIndex(segment_id, place)


def _place_beside(node: Any, volume: Any) -> None:
    """Into the volume's study in the subject hierarchy."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    study = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(volume))
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(node), study)


@dataclass(frozen=True)
class SliceToReview:
    """A slice where the model is unsure: its number from 1, and its centre in RAS mm."""

    number: int
    centre: tuple[float, float, float]


def show_uncertainty(path: Path, volume: Any, *, name: str) -> Any:
    """The map at `path` (0 sure, 1 unsure) as a volume node in per cent, in the scan's place and study."""
    array = np.rint(100 * _read_array(path)).astype(np.uint8)  # a quarter of the memory, and a number that one can read
    scene = slicer.mrmlScene
    node = scene.CreateNodeByClass("vtkMRMLScalarVolumeNode")
    node.UnRegister(None)
    node.SetName(scene.GenerateUniqueName(name))
    node.SetAttribute(UNCERTAINTY, volume.GetID())
    node.CopyOrientation(volume)
    node = scene.AddNode(node)
    slicer.util.updateVolumeFromArray(node, array)
    node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetAndObserveColorNodeID("vtkMRMLColorTableNodeIron")
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(0, 100)
    display.SetThreshold(20, 100)  # where the model is sure, the scan below shows
    display.SetApplyThreshold(True)
    _place_beside(node, volume)
    return node


def slice_to_review(volume: Any, k: int) -> SliceToReview:
    """The volume's slice of index `k`, counted from 0, and where its centre lies with all transforms above it."""
    i, j, _k = ((size - 1) / 2 for size in volume.GetImageData().GetDimensions())
    matrix, place = vtk.vtkMatrix4x4(), [0.0] * 4
    volume.GetIJKToRASMatrix(matrix)
    matrix.MultiplyPoint((i, j, k, 1.0), place)
    world = [0.0] * 3
    change = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(volume.GetParentTransformNode(), None, change)
    change.TransformPoint(place[:3], world)
    return SliceToReview(k + 1, (world[0], world[1], world[2]))


def look_at(volume: Any, overlay: Any, place: Sequence[float]) -> None:
    """Show the scan, and the map over it where there is one, in all slice views, at `place` (RAS mm)."""
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        composite.SetBackgroundVolumeID(volume.GetID())
        composite.SetForegroundVolumeID(overlay.GetID() if overlay is not None else None)
        composite.SetForegroundOpacity(0.5)
    slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *place)


# -- what was taught, and numbers ----------------------------------------------------------------------------------


def mark_taught(segmentation: Any, model: str, volume: Any) -> None:
    """Remember in the scene that `model` learned from this segmentation and this scan."""
    if slicer.mrmlScene.IsNodePresent(volume):
        segmentation.SetNodeReferenceID(TAUGHT_ON, volume.GetID())
    known = (segmentation.GetAttribute(TAUGHT) or "").split("\n")
    segmentation.SetAttribute(TAUGHT, "\n".join(dict.fromkeys([*filter(None, known), model])))


def taught_to(model: str) -> list[tuple[Any, Any]]:
    """(volume, segmentation) pairs of the scene that `model` learned from."""
    pairs = []
    for segmentation in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        volume = taught_on(segmentation)
        if model in (segmentation.GetAttribute(TAUGHT) or "").split("\n") and has_voxels(volume):
            pairs.append((volume, segmentation))
    return pairs


def scan_of(segmentation: Any) -> Any:
    """The volume that the segmentation was made on, or None."""
    return segmentation.GetNodeReference(slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole())


def taught_on(segmentation: Any) -> Any:
    """The volume that a model saw with this segmentation; without one, the volume that it was made on, or None."""
    return segmentation.GetNodeReference(TAUGHT_ON) or scan_of(segmentation)


def there(nodes: Sequence[Any]) -> list[Any]:
    """Those of `nodes` that are in the scene: a list of a parameter node keeps the place of one that was deleted."""
    return [node for node in nodes if node is not None and slicer.mrmlScene.IsNodePresent(node)]


def update_volumes_table(volume: Any, model: str, rows: Sequence[Mapping[str, Any]]) -> Any:
    """The table of volumes (ml) with this scan's `rows` ({"name", "volume_ml"}), replacing those of an earlier run.

    A scan is known by its node: two patients' scans may be called alike. The column with the node's ID is for us.
    """
    node = slicer.mrmlScene.GetFirstNodeByName(TABLE)
    if node is None:
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", TABLE)
        for title in ("Scan", "Model", "Structure", "Volume (ml)"):
            column = vtk.vtkDoubleArray() if title.endswith("(ml)") else vtk.vtkStringArray()
            column.SetName(title)
            node.AddColumn(column)
    table = node.GetTable()
    if node.GetColumnIndex(_NODE) < 0:  # of a scene from before
        column = vtk.vtkStringArray()
        column.SetName(_NODE)
        node.AddColumn(column)
    for row in reversed(range(table.GetNumberOfRows())):
        if node.GetCellText(row, node.GetColumnIndex(_NODE)) == volume.GetID() and node.GetCellText(row, 1) == model:
            node.RemoveRow(row)
    for told in rows:
        row = node.AddEmptyRow()
        for column, value in enumerate((volume.GetName(), model, told["name"], told["volume_ml"], volume.GetID())):
            table.GetColumn(column).SetValue(row, value)
    table.Modified()
    node.Modified()
    return node


def volumes_table() -> Any:
    """The table node, or None."""
    return slicer.mrmlScene.GetFirstNodeByName(TABLE)


def write_csv(node: Any, path: Path) -> None:
    """The table as CSV that spreadsheets open with the right letters (UTF-8 with its mark)."""
    table = node.GetTable()
    with path.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.writer(stream)
        columns = [column for column in range(table.GetNumberOfColumns()) if table.GetColumnName(column) != _NODE]
        writer.writerow([table.GetColumnName(column) for column in columns])
        for row in range(table.GetNumberOfRows()):
            writer.writerow([node.GetCellText(row, column) for column in columns])


def show_curves(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Any:
    """Numbers by step, each curve a series of one plot; the chart node. The first is a line, the others have marks too.

    The nodes are made once and filled again for the next model; a curve that it does not have is emptied.
    """
    scene = slicer.mrmlScene
    chart = scene.GetFirstNode(CURVE, "vtkMRMLPlotChartNode")
    if chart is None:
        chart = scene.AddNewNodeByClass("vtkMRMLPlotChartNode", CURVE)
        chart.SetTitle(_("Learning"))
        chart.SetXAxisTitle(_("step"))
    titles = {_title_of(name): points for name, points in curves.items()}
    there = [chart.GetNthPlotSeriesNode(index).GetName() for index in range(chart.GetNumberOfPlotSeriesNodes())]
    for title in dict.fromkeys([*titles, *there]):
        _fill_series(chart, title, titles.get(title, ()), marked=title != _title_of("loss"))
    return chart


def show_chart() -> None:
    """Bring the plot of the curves to the screen, in a layout that has room for it."""
    chart = slicer.mrmlScene.GetFirstNode(CURVE, "vtkMRMLPlotChartNode")
    if chart is not None:
        slicer.modules.plots.logic().ShowChartInLayout(chart)


def _title_of(curve: str) -> str:
    known = {
        "loss": _("loss"),
        "agreement": _("agreement with your labels (Dice)"),
        "self_check": _("self-check (Dice where it did not look)"),
    }
    return known.get(curve, curve.replace("_", " "))


def _fill_series(chart: Any, title: str, points: Sequence[tuple[float, float]], *, marked: bool) -> None:
    scene = slicer.mrmlScene
    name = f"{CURVE}: {title}"
    node = scene.GetFirstNode(name, "vtkMRMLTableNode")
    if node is None:
        node = scene.AddNewNodeByClass("vtkMRMLTableNode", name)
        for heading in (_("step"), title):
            column = vtk.vtkDoubleArray()
            column.SetName(heading)
            node.AddColumn(column)
        series = scene.AddNewNodeByClass("vtkMRMLPlotSeriesNode", title)
        series.SetAndObserveTableNodeID(node.GetID())
        series.SetXColumnName(_("step"))
        series.SetYColumnName(title)
        series.SetPlotType(series.PlotTypeScatter)
        series.SetMarkerStyle(series.MarkerStyleCircle if marked else series.MarkerStyleNone)
        series.SetUniqueColor()
        chart.AddAndObservePlotSeriesNodeID(series.GetID())
    table = node.GetTable()
    table.SetNumberOfRows(len(points))
    for row, point in enumerate(points):
        for column, value in enumerate(point):
            table.GetColumn(column).SetValue(row, value)
    table.Modified()
