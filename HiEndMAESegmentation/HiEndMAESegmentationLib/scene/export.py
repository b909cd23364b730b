"""Write scans and segmentations of the scene to files for the engine.

Files have neutral names (`scan.nii`), never the names of nodes: the names of patients do not reach the disk, and names that
a file system refuses do no harm. Volumes are written in their own coordinates. A transform above a volume is ignored here,
and the result is put under the same transform.
"""

from __future__ import annotations

import json
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

from .nodes import Segment, has_voxels, segments_of, temporary_label_map, temporary_label_map_node


@dataclass(frozen=True)
class TrainingFiles:
    """The files of one labelled scan; `names` describes the values of `label`."""

    image: Path
    label: Path
    names: Path


def write_scan(volume: Any, path: Path) -> None:
    """Write the voxels and the geometry of a volume; the volume's own storage node is not changed.

    Raises:
        InputError: The volume has no image, or the disk is full.
    """
    if not has_voxels(volume):
        raise InputError("scan_empty", _("The volume has no image."), _("Choose another volume."))
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(path))
    storage.SetUseCompression(False)  # compression would take minutes on the main thread
    image = volume.GetImageData()
    voxel_bytes = image.GetNumberOfPoints() * image.GetNumberOfScalarComponents() * image.GetScalarSize()
    success = storage.WriteData(volume) and path.is_file()
    if not success or path.stat().st_size < voxel_bytes:  # on a full disk the writer may report success
        message = _("'{name}' could not be written to the disk.").format(name=volume.GetName())
        raise InputError("disk_full", message, _("Free some space on the disk, and try again."))


def write_training_case(
    volume: Any, segmentation: Any, folder: Path, *, segments: Sequence[str], values: Mapping[str, int] | None = None
) -> TrainingFiles:
    """Write a scan, its label map and the names of its structures.

    Args:
        volume: The scan.
        segmentation: The segmentation node that holds the labels.
        folder: Where to write the files; it is made if it does not exist.
        segments: IDs of the segments to write.
        values: Label values by segment name, where a model defines them; else 1, 2, … in the segmentation's order.

    Raises:
        InputError: No segment has a voxel in the scan, two segments have one name, or two segments overlap.
    """
    if not has_voxels(volume):
        raise InputError("scan_empty", _("Choose a volume with an image."))
    selected = [segment for segment in segments_of(segmentation) if segment.id in set(segments)]
    _check_names(selected, values)
    numbers = values or {segment.name: index + 1 for index, segment in enumerate(selected)}
    labels, empty = _label_map_of(segmentation, selected, volume, numbers)
    files = TrainingFiles(folder / "scan.nii", folder / "labels.nii", folder / "names.json")
    folder.mkdir(parents=True, exist_ok=True)
    write_scan(volume, files.image)
    with temporary_label_map(volume, labels) as node:
        write_scan(node, files.label)
    records = [
        {
            "value": numbers[segment.name],
            "name": segment.name,
            "colour": list(segment.color),
            "terminology": dict(segment.terminology),
        }
        for segment in selected
        if segment.name not in empty
    ]
    files.names.write_text(json.dumps({"labels": records}), encoding="utf-8")
    return files


def _label_map_of(
    segmentation: Any, segments: Sequence[Segment], volume: Any, numbers: Mapping[str, int]
) -> tuple[np.ndarray, list[str]]:
    """Return the label map `(k, j, i)` of the segments on the volume's grid, and the names of empty segments."""
    labels, empty = None, []
    for segment in segments:
        mask = _mask_of(segmentation, segment.id, volume)
        labels = np.zeros(mask.shape, np.int16) if labels is None else labels
        if not mask.any():
            empty.append(segment.name)
        overlapped = np.unique(labels[mask])
        if overlapped.any():
            first = overlapped[overlapped > 0][0]
            other = next(candidate.name for candidate in segments if numbers[candidate.name] == first)
            message = _("The segments '{one}' and '{two}' overlap.").format(one=other, two=segment.name)
            advice = _("In the Segment Editor, use Logical operators (Subtract), or train on only one of them.")
            raise InputError("segments_overlap", message, advice)
        labels[mask] = numbers[segment.name]
    if labels is None or not labels.any():
        message = _("No segment has a voxel inside '{name}'.").format(name=volume.GetName())
        raise InputError("nothing_labelled", message, _("Draw the structures in the Segment Editor first."))
    return labels, empty


def _check_names(segments: Sequence[Segment], values: Mapping[str, int] | None) -> None:
    """Raise `InputError` if there is no segment, a name occurs twice, or the model lacks a structure of this name."""
    if not segments:
        advice = _("Tick at least one segment, or draw one in the Segment Editor.")
        raise InputError("nothing_chosen", _("There is no segment to train on."), advice)
    names = [segment.name for segment in segments]
    duplicate = next((name for name in names if names.count(name) > 1), None)
    if duplicate is not None:
        message = _("Two segments are called '{name}'.").format(name=duplicate)
        raise InputError("name_twice", message, _("Rename one of them."))
    unknown = next((name for name in names if values is not None and name not in values), None)
    if unknown is not None:
        message = _("The model has no structure called '{name}'.").format(name=unknown)
        advice = _("Untick it or rename it; new structures need a new model.")
        raise InputError("structure_unknown", message, advice)


def _mask_of(segmentation: Any, segment_id: str, volume: Any) -> np.ndarray:
    """Return the segment as a boolean mask `(k, j, i)` on the volume's grid.

    `slicer.util.arrayFromSegmentBinaryLabelmap` does the same, but leaves nodes in the scene.
    """
    ids = vtk.vtkStringArray()
    ids.InsertNextValue(segment_id)
    with temporary_label_map_node() as node:
        logic = slicer.modules.segmentations.logic()
        if not logic.ExportSegmentsToLabelmapNode(segmentation, ids, node, volume):
            message = _("The segments of '{name}' could not be read.").format(name=segmentation.GetName())
            advice = _("Open the segmentation in the Segment Editor, and try again.")
            raise InputError("segments_unreadable", message, advice)
        return np.array(slicer.util.arrayFromVolume(node)) > 0
