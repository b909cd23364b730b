"""Which scans a model was trained on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from module_help import draw_segments

pytestmark = pytest.mark.usefixtures("empty_scene")


def test_training_cases_name_the_scan_used_in_training(module: Any, patient: Callable[..., Any]) -> None:
    """The scan is not the one that the segmentation was drawn on; the segmentation may also name none."""
    from HiEndMAESegmentationLib.scene import provenance

    drawn_on, labels = patient(1, "MR A")
    training_scan, _ = patient(1, "CT B")
    segmentation = draw_segments(drawn_on, labels)
    provenance.mark_as_training_case(segmentation, "m", training_scan)
    assert provenance.training_cases_of("m") == [(training_scan, segmentation)]
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(None)
    assert provenance.training_cases_of("m") == [(training_scan, segmentation)]


def test_attributes_of_saved_scenes_are_understood(patient: Callable[..., Any]) -> None:
    """These names are in scenes that users saved; they must not change."""
    import slicer
    from HiEndMAESegmentationLib.scene import nodes, plots, provenance, roi, tables

    volume, labels = patient(1, "CT")
    training_scan, _ = patient(2, "CT B")
    segmentation = draw_segments(volume, labels)
    segmentation.SetAttribute("HiEndMAE.Taught", "liver\nliver-2")
    segmentation.SetNodeReferenceID("HiEndMAE.TaughtOn", training_scan.GetID())
    assert provenance.training_cases_of("liver-2") == [(training_scan, segmentation)]
    assert provenance.training_cases_of("liver-3") == []
    provenance.mark_as_training_case(segmentation, "liver-3", volume)
    assert segmentation.GetAttribute("HiEndMAE.Taught") == "liver\nliver-2\nliver-3"
    assert segmentation.GetNodeReference("HiEndMAE.TaughtOn") is volume
    assert provenance.MODEL_ATTRIBUTE == "HiEndMAE.Model"
    training_scan.SetAttribute("HiEndMAE.Uncertainty", volume.GetID())
    assert nodes.scans() == [volume]
    region = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
    region.SetAttribute("HiEndMAE.Box", "1")
    assert roi.find_roi() is region
    assert tables.update_volumes_table(volume, "m", []).GetName() == "HiEndMAE volumes"
    assert plots.show_curves({"loss": []}).GetName() == "HiEndMAE learning curve"
