"""Show label maps and uncertainty maps that the engine wrote as nodes of the scene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import slicer.util
import vtk
from slicer.i18n import tr as _

from HiEndMAECore.errors import InputError
from HiEndMAECore.io.structure import DEFAULT_COLOR

from . import terminology
from .nodes import UNCERTAINTY_ATTRIBUTE, place_in_study_of, temporary_label_map

_PREVIEW_VOXELS = 1.5e6  # importing more takes so long that Slicer stops to react
# Offsets in bytes, voxel types and size of the header of a single-file NIfTI-1 image
_NIFTI_HEADER_BYTES, _NIFTI_SHAPE, _NIFTI_TYPE, _NIFTI_VOXEL_OFFSET = 352, 42, 70, 108
_NIFTI_TYPES = {2: "u1", 4: "<i2", 256: "i1", 512: "<u2"}


def show_result(
    path: Path, volume: Any, *, labels: Sequence[Mapping[str, Any]], name: str, surfaces: bool = False
) -> Any:
    """Return a segmentation node of the label map at `path`, in the volume's geometry and study.

    A structure that was not found becomes an empty segment, so that nobody thinks it was forgotten. If anything fails, no
    node remains in the scene.

    Args:
        path: Label map on the grid of a scan that `write_scan` wrote.
        volume: The scan that was segmented.
        labels: The model's labels, with value, name, colour and terminology.
        name: Name of the new node.
        surfaces: Also make closed surfaces for the 3D view.

    Raises:
        InputError: The file cannot be read, or its grid is not the volume's.
    """
    array = _read_array(path)
    if array.shape != slicer.util.arrayFromVolume(volume).shape[:3]:
        message = _("The result does not lie on the grid of '{name}'.").format(name=volume.GetName())
        raise InputError("grid_differs", message, _("Was the volume changed in the meantime? Segment it again."))
    return _make_segmentation(array, volume, labels=labels, name=name, surfaces=surfaces)


def show_preview(path: Path, volume: Any, *, labels: Sequence[Mapping[str, Any]], name: str) -> Any:
    """Return a segmentation node as `show_result` does, but of a large scan only every second, third, … voxel.

    Slicer must keep reacting during training, so at most `_PREVIEW_VOXELS` are shown.

    Args:
        path: Uncompressed NIfTI-1 label map on the grid of the scan.
        volume: The scan.
        labels: The labels, with value, name, colour and terminology.
        name: Name of the new node.

    Raises:
        InputError: The file cannot be read, or its grid is not the volume's.
        ValueError: The file is too short.
    """
    with path.open("rb") as stream:
        header = stream.read(_NIFTI_HEADER_BYTES)
    shape = tuple(int(size) for size in np.frombuffer(header, "<i2", 3, _NIFTI_SHAPE)[::-1])
    dtype = _NIFTI_TYPES.get(int(np.frombuffer(header, "<i2", 1, _NIFTI_TYPE)[0]))
    step = int(np.ceil((np.prod(shape, dtype=float) / _PREVIEW_VOXELS) ** (1 / 3)))
    if dtype is None or step == 1 or shape != slicer.util.arrayFromVolume(volume).shape[:3]:
        return show_result(path, volume, labels=labels, name=name)
    offset = int(np.frombuffer(header, "<f4", 1, _NIFTI_VOXEL_OFFSET)[0])
    voxels = np.memmap(path, dtype, "r", offset=offset, shape=shape)
    subsampled = np.array(voxels[::step, ::step, ::step])
    del voxels  # on Windows the engine cannot replace a file that is mapped here
    return _make_segmentation(subsampled, volume, labels=labels, name=name, step=step)


def _make_segmentation(
    array: np.ndarray,
    volume: Any,
    *,
    labels: Sequence[Mapping[str, Any]],
    name: str,
    surfaces: bool = False,
    step: int = 1,
) -> Any:
    """Return the segmentation node of `array`: label values `(k, j, i)` of every `step`-th voxel of the volume."""
    scene = slicer.mrmlScene
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", scene.GenerateUniqueName(name))
    try:
        node.CreateDefaultDisplayNodes()
        node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())  # before the import, which takes it into account
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        with temporary_label_map(volume, array, step=step) as label_map:
            logic = slicer.modules.segmentations.logic()
            if array.any() and not logic.ImportLabelmapToSegmentationNode(label_map, node):
                raise _unreadable()
        _name_segments(node.GetSegmentation(), labels)
        if surfaces:
            node.CreateClosedSurfaceRepresentation()
        place_in_study_of(volume, node)
    except Exception:
        scene.RemoveNode(node.GetDisplayNode())
        scene.RemoveNode(node)
        raise
    return node


def _read_array(path: Path) -> np.ndarray:
    """Return the voxels `(k, j, i)` of a file on the grid of a scan that `write_scan` wrote."""
    storage, node = slicer.vtkMRMLVolumeArchetypeStorageNode(), slicer.vtkMRMLLabelMapVolumeNode()
    storage.SetFileName(str(path))
    storage.SetForceRightHandedIJKCoordinateSystem(False)  # else Slicer flips the slices of a left-handed scan's result
    if not path.is_file() or not storage.ReadData(node):
        raise _unreadable()
    return np.array(slicer.util.arrayFromVolume(node))


def _unreadable() -> InputError:
    """Return the error for a result that Slicer cannot read."""
    return InputError("result_unreadable", _("The result could not be read."), _("Segment the volume again."))


def _name_segments(content: Any, labels: Sequence[Mapping[str, Any]]) -> None:
    """Set names, colors, terminology and order of the segments; the labels are matched by value."""
    ids_by_value = {}
    for index in range(content.GetNumberOfSegments()):
        ids_by_value[content.GetNthSegment(index).GetLabelValue()] = content.GetNthSegmentID(index)
    for index, label in enumerate(labels):
        color = [part / 255 for part in label.get("colour", DEFAULT_COLOR)]
        segment_id = ids_by_value.pop(label["value"], None)
        if segment_id is None:
            segment_id = content.AddEmptySegment("", label["name"], color)
        segment = content.GetSegment(segment_id)
        segment.SetName(label["name"])
        segment.SetColor(*color)
        tag = terminology.to_tag(label.get("terminology") or {})
        if tag:
            segment.SetTag(segment.GetTerminologyEntryTagName(), tag)
        content.SetSegmentIndex(segment_id, index)


# -- uncertainty -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReviewSlice:
    """A slice where the model is uncertain: its number from 1, and its center in RAS mm."""

    number: int
    center: tuple[float, float, float]


def show_uncertainty_map(path: Path, volume: Any, *, name: str) -> Any:
    """Return the entropy map at `path` (0 certain, 1 uncertain) as a volume node in percent, in the scan's study."""
    array = np.rint(100 * _read_array(path)).astype(np.uint8)  # a quarter of the memory, and readable numbers
    scene = slicer.mrmlScene
    node = scene.CreateNodeByClass("vtkMRMLScalarVolumeNode")
    node.UnRegister(None)
    node.SetName(scene.GenerateUniqueName(name))
    node.SetAttribute(UNCERTAINTY_ATTRIBUTE, volume.GetID())
    node.CopyOrientation(volume)
    node = scene.AddNode(node)
    slicer.util.updateVolumeFromArray(node, array)
    node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetAndObserveColorNodeID("vtkMRMLColorTableNodeIron")
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(0, 100)
    display.SetThreshold(20, 100)  # the scan below stays visible where the model is certain
    display.SetApplyThreshold(True)
    place_in_study_of(volume, node)
    return node


def review_slice(volume: Any, k: int) -> ReviewSlice:
    """Return the volume's slice of index `k` (from 0), with its center after all transforms above the volume."""
    i, j, _k = ((size - 1) / 2 for size in volume.GetImageData().GetDimensions())
    matrix, center = vtk.vtkMatrix4x4(), [0.0] * 4
    volume.GetIJKToRASMatrix(matrix)
    matrix.MultiplyPoint((i, j, k, 1.0), center)
    world = [0.0] * 3
    transform = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(volume.GetParentTransformNode(), None, transform)
    transform.TransformPoint(center[:3], world)
    return ReviewSlice(k + 1, (world[0], world[1], world[2]))


def show_in_slice_views(volume: Any, overlay: Any, position: Sequence[float]) -> None:
    """Show the scan in all slice views at `position` (RAS mm), with the uncertainty map over it unless that is None."""
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        composite.SetBackgroundVolumeID(volume.GetID())
        composite.SetForegroundVolumeID(overlay.GetID() if overlay is not None else None)
        composite.SetForegroundOpacity(0.5)
    slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *position)
