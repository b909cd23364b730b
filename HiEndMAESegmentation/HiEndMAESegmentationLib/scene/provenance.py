"""Which model made a result, and which scans a model was trained on: stored in the scene's nodes."""

from __future__ import annotations

from typing import Any

import slicer
import slicer.util

from .nodes import has_voxels

# These attribute and role names are in saved scenes and never change.
MODEL_ATTRIBUTE = "HiEndMAE.Model"  # of a result: folder name, in the library, of the model that made it
TRAINED_MODELS_ATTRIBUTE = "HiEndMAE.Taught"  # of a segmentation: folder names of the models trained on it, one a line
TRAINING_VOLUME_ROLE = "HiEndMAE.TaughtOn"  # node reference of such a segmentation: the scan used in training


def mark_as_training_case(segmentation: Any, model_key: str, volume: Any) -> None:
    """Store in the scene that the model of this key was trained on this segmentation and this scan."""
    if slicer.mrmlScene.IsNodePresent(volume):
        segmentation.SetNodeReferenceID(TRAINING_VOLUME_ROLE, volume.GetID())
    keys = (segmentation.GetAttribute(TRAINED_MODELS_ATTRIBUTE) or "").split("\n")
    segmentation.SetAttribute(TRAINED_MODELS_ATTRIBUTE, "\n".join(dict.fromkeys([*filter(None, keys), model_key])))


def training_cases_of(model_key: str) -> list[tuple[Any, Any]]:
    """Return the (volume, segmentation) pairs of the scene that the model of this key was trained on."""
    pairs = []
    for segmentation in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        volume = training_volume_of(segmentation)
        if model_key in (segmentation.GetAttribute(TRAINED_MODELS_ATTRIBUTE) or "").split("\n") and has_voxels(volume):
            pairs.append((volume, segmentation))
    return pairs


def source_volume_of(segmentation: Any) -> Any:
    """Return the volume that the segmentation was drawn on, or None."""
    return segmentation.GetNodeReference(slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole())


def training_volume_of(segmentation: Any) -> Any:
    """Return the volume that was used in training with this segmentation, else its source volume, or None."""
    return segmentation.GetNodeReference(TRAINING_VOLUME_ROLE) or source_volume_of(segmentation)
