"""Quick previews: results of registration alone, which later results of the same scan and model replace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import slicer
import slicer.util

from .provenance import MODEL_ATTRIBUTE, TRAINED_MODELS_ATTRIBUTE, source_volume_of

PREVIEW_ATTRIBUTE = "HiEndMAE.Preview"  # marks a quick preview, and holds the state of its voxels as it was made


def mark_as_preview(segmentation: Any) -> None:
    """Mark a segmentation as a quick preview."""
    segmentation.SetAttribute(PREVIEW_ATTRIBUTE, _state_of_voxels(segmentation))


def remove_previews(volume: Any, model_key: str, *, keep: Sequence[Any] = ()) -> None:
    """Remove the quick previews of a scan by a model, but none that somebody has worked on.

    A preview stays if it was edited, if a model was trained on it, or if it was loaded with a scene: then nobody knows
    whether it was edited.

    Args:
        volume: The scan.
        model_key: Key of the model.
        keep: Segmentations that stay.
    """
    for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        is_unchanged = node.GetAttribute(PREVIEW_ATTRIBUTE) == _state_of_voxels(node)
        is_of_model = source_volume_of(node) is volume and node.GetAttribute(MODEL_ATTRIBUTE) == model_key
        if is_unchanged and is_of_model and not node.GetAttribute(TRAINED_MODELS_ATTRIBUTE) and node not in keep:
            slicer.mrmlScene.RemoveNode(node.GetDisplayNode())
            slicer.mrmlScene.RemoveNode(node)


def _state_of_voxels(segmentation: Any) -> str:
    """Return a text that differs once a segment was edited or removed, made of VTK's times of modification."""
    content = segmentation.GetSegmentation()
    segments = [content.GetNthSegment(index) for index in range(content.GetNumberOfSegments())]
    images = [segment.GetRepresentation("Binary labelmap") for segment in segments]
    return str(sum(image.GetMTime() for image in images if image is not None))
