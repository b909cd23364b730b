"""Regions of interest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("empty_scene")


def test_find_roi_ignores_hidden_ones_and_failed_crop_leaves_no_node(
    empty_scene: Any, patient: Callable[..., Any]
) -> None:
    import slicer
    import vtk
    from HiEndMAESegmentationLib.scene import roi

    from HiEndMAECore.errors import InputError

    hidden = empty_scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Volume rendering")
    hidden.CreateDefaultDisplayNodes()
    hidden.GetDisplayNode().SetVisibility(False)
    assert roi.find_roi() is None
    volume, _ = patient(1, "CT")
    own = roi.make_roi(volume)
    assert roi.find_roi() is own
    roi.hide_roi(own)
    assert roi.find_roi() is None
    hidden.GetDisplayNode().SetVisibility(True)
    assert roi.find_roi() is hidden
    transform = empty_scene.AddNewNodeByClass("vtkMRMLTransformNode")
    spline = vtk.vtkThinPlateSplineTransform()
    spline.SetBasisToR()
    for set_landmarks in (spline.SetSourceLandmarks, spline.SetTargetLandmarks):
        points = vtk.vtkPoints()
        for corner in ((0, 0, 0), (50, 0, 0), (0, 50, 0), (0, 0, 50), (50, 50, 50)):
            points.InsertNextPoint(
                *(part + 3 * (set_landmarks is spline.SetTargetLandmarks) * (part > 0) for part in corner)
            )
        set_landmarks(points)
    transform.SetAndObserveTransformToParent(spline)
    volume.SetAndObserveTransformNodeID(transform.GetID())
    before = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")
    with pytest.raises(InputError, match="could not be cropped"):
        roi.crop_volume(volume, own)
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == before
