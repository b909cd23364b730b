"""Find and describe nodes of the MRML scene, and make temporary ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer
import slicer.util
import vtk

from . import terminology

UNCERTAINTY_ATTRIBUTE = "HiEndMAE.Uncertainty"  # marks an uncertainty map, which must not be offered as a scan
_SCAN_CLASS = "vtkMRMLScalarVolumeNode"


@dataclass(frozen=True)
class Segment:
    """One segment as the panels show it; `color` is red, green and blue from 0 to 255."""

    id: str
    name: str
    color: tuple[int, int, int]
    terminology: Mapping[str, Any]


def segments_of(segmentation: Any) -> list[Segment]:
    """Return the segments of a segmentation node in the node's order."""
    segments = []
    content = segmentation.GetSegmentation()
    for index in range(content.GetNumberOfSegments()):
        segment = content.GetNthSegment(index)
        red, green, blue = (round(255 * part) for part in segment.GetColor())
        tag = vtk.reference("")
        segment.GetTag(segment.GetTerminologyEntryTagName(), tag)
        entry = terminology.from_tag(str(tag))
        segments.append(Segment(content.GetNthSegmentID(index), segment.GetName(), (red, green, blue), entry))
    return segments


def scans() -> list[Any]:
    """Return the scalar volumes that the user sees, without label maps and uncertainty maps."""
    nodes = slicer.util.getNodesByClass(_SCAN_CLASS)
    volumes = [node for node in nodes if node.GetClassName() == _SCAN_CLASS]
    return [
        node for node in volumes if not node.GetHideFromEditors() and node.GetAttribute(UNCERTAINTY_ATTRIBUTE) is None
    ]


def has_voxels(volume: Any) -> bool:
    """Return whether the volume node (or None) holds an image."""
    return volume is not None and volume.GetImageData() is not None and volume.GetImageData().GetNumberOfPoints() > 0


def megabytes(volume: Any) -> float:
    """Return the size of the volume's voxels as 32-bit floats in megabytes."""
    return volume.GetImageData().GetNumberOfPoints() * 4 / 1e6 if has_voxels(volume) else 0.0


def existing_nodes(nodes: Sequence[Any]) -> list[Any]:
    """Return those of `nodes` that are in the scene.

    A list in a parameter node holds None in place of a node that was deleted.
    """
    return [node for node in nodes if node is not None and slicer.mrmlScene.IsNodePresent(node)]


def place_in_study_of(volume: Any, node: Any) -> None:
    """Move `node` into the subject-hierarchy study of `volume`."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    study = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(volume))
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(node), study)


@contextlib.contextmanager
def temporary_label_map_node() -> Iterator[Any]:
    """Yield a hidden label map node, and remove it afterwards with all nodes that Slicer's logics added for it."""
    scene = slicer.mrmlScene
    classes = ("vtkMRMLLabelMapVolumeDisplayNode", "vtkMRMLColorTableNode")
    ids_before = {node.GetID() for name in classes for node in slicer.util.getNodesByClass(name)}
    node = scene.CreateNodeByClass("vtkMRMLLabelMapVolumeNode")
    node.UnRegister(None)
    node.SetName("HiEndMAE temporary")
    node.SetHideFromEditors(True)  # before it enters the scene: the subject hierarchy and the lists do not show it
    node = scene.AddNode(node)
    try:
        yield node
    finally:
        scene.RemoveNode(node)
        for name in classes:
            for added in slicer.util.getNodesByClass(name):
                if added.GetID() not in ids_before:
                    scene.RemoveNode(added)


@contextlib.contextmanager
def temporary_label_map(volume: Any, labels: np.ndarray, *, step: int = 1) -> Iterator[Any]:
    """Yield a temporary label map node with exactly the volume's geometry.

    Args:
        volume: The volume node that gives the geometry and the transform.
        labels: Label values `(k, j, i)` of every `step`-th voxel along each axis.
        step: Distance of the given voxels, in voxels of the volume.
    """
    with temporary_label_map_node() as node:
        node.CopyOrientation(volume)
        node.SetSpacing(*(step * edge for edge in volume.GetSpacing()))
        image = vtk.vtkImageData()
        image.SetDimensions(*reversed(labels.shape))
        image.AllocateScalars(vtk.VTK_SHORT, 1)
        node.SetAndObserveImageData(image)
        slicer.util.updateVolumeFromArray(node, labels.astype(np.int16, copy=False))
        node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
        yield node
