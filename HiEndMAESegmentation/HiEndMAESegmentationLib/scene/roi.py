"""Regions of interest (markups ROI nodes) and cropping volumes to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import slicer.util
from slicer.i18n import tr as _

from HiEndMAECore.errors import InputError

from .nodes import has_voxels, place_in_study_of

OWN_ROI_ATTRIBUTE = "HiEndMAE.Box"  # marks the region of interest that the module made


def find_roi() -> Any:
    """Return the region of interest to crop to, or None: the module's own one, else one that is visible.

    Hidden ones do not count, because nobody chose them: volume rendering makes some, and some may belong to another
    patient.
    """
    nodes = slicer.util.getNodesByClass("vtkMRMLMarkupsROINode")
    own = [node for node in nodes if node.GetAttribute(OWN_ROI_ATTRIBUTE)]
    visible = [node for node in nodes if node.GetDisplayNode() is not None and node.GetDisplayNode().GetVisibility()]
    return next(iter([*own, *visible]), None)


def make_roi(volume: Any, segmentation: Any = None, *, margin: float = 30.0) -> Any:
    """Make a region of interest around the segments, or, without a segmentation, around the middle half of the volume.

    Args:
        volume: The volume that will be cropped.
        segmentation: A segmentation node whose extent gives the region, or None.
        margin: Distance in mm that is added around the segments.
    """
    bounds = [0.0] * 6
    (segmentation or volume).GetRASBounds(bounds)
    low, high = np.array(bounds[0::2]), np.array(bounds[1::2])
    size = high - low + 2 * margin if segmentation is not None else (high - low) / 2
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", _("HiEndMAE box"))
    node.CreateDefaultDisplayNodes()
    node.SetCenterWorld(*((low + high) / 2))
    node.SetSizeWorld(*size)
    node.SetAttribute(OWN_ROI_ATTRIBUTE, "1")
    return node


def hide_roi(roi: Any) -> None:
    """Hide the region of interest if the module made it, so that the next crop makes a new one."""
    if roi.GetAttribute(OWN_ROI_ATTRIBUTE):
        roi.SetAttribute(OWN_ROI_ATTRIBUTE, None)
        roi.SetDisplayVisibility(False)


def crop_volume(volume: Any, roi: Any) -> Any:
    """Return a new volume with the voxels inside the region of interest, at the same place.

    Raises:
        InputError: The region lies outside the volume, or Slicer cannot crop the volume.
    """
    whole, part = [0.0] * 6, [0.0] * 6
    volume.GetRASBounds(whole)
    roi.GetRASBounds(part)
    if any(part[2 * axis] >= whole[2 * axis + 1] or part[2 * axis + 1] <= whole[2 * axis] for axis in range(3)):
        message = _("The box lies outside '{name}'.").format(name=volume.GetName())
        raise InputError("roi_outside", message, _("Place it over the region of interest."))
    name = slicer.mrmlScene.GenerateUniqueName(_("{name} cropped").format(name=volume.GetName()))
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    slicer.modules.cropvolume.logic().CropVoxelBased(roi, volume, node)
    if not has_voxels(node):
        slicer.mrmlScene.RemoveNode(node)
        message = _("'{name}' could not be cropped.").format(name=volume.GetName())
        raise InputError(
            "crop_failed", message, _("Harden the transform above it first, or use the module Crop Volume.")
        )
    node.CreateDefaultDisplayNodes()
    place_in_study_of(volume, node)
    return node
