"""The whole of one-shot segmentation by clicks, with the true engine as a child process."""

from __future__ import annotations

import csv
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from module_help import COLOURS, LIVER, NAMES, draw_segments, group_of, wait

pytestmark = pytest.mark.usefixtures("engine")


def message(panel: Any) -> str:
    return panel.strip.ui.messageLabel.text


def affine_of(node: Any) -> Any:
    import slicer
    import vtk

    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def test_teach_apply_improve(
    module: Any, patient: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One scan teaches, another is segmented, its correction improves: names, colours, codes and places stay."""
    import numpy as np
    import qt
    import slicer

    torch_was_there = "torch" in sys.modules
    taught, labels = patient(1, "CT (Müller, Ä.)")
    other, _ = patient(2, "CT 2")
    turned = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]])  # an oblique scan
    affine = affine_of(other)
    affine[:3, :3] = turned @ affine[:3, :3]
    other.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(affine))
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "Study")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(other), study)
    segmentation = draw_segments(taught, labels)
    module.session.parameters.teachSegmentation = segmentation
    assert module.session.parameters.teachVolume is taught, "the segmentation knows its scan"

    # Teach; the main thread stays free. What it computes is measured, not what other programs keep it waiting for.
    beats: list[float] = []
    heart = qt.QTimer()
    heart.connect("timeout()", lambda: beats.append(time.thread_time()))
    module.teach.ui.teachButton.click()
    heart.start(5)
    assert not module.apply.ui.applyButton.enabled
    wait(lambda: not module.session.busy)
    heart.stop()
    assert max(later - earlier for earlier, later in itertools.pairwise(beats)) < 0.1
    assert module.teach.strip.job.end.state == "finished", message(module.teach)
    assert "learned 3 structures" in message(module.teach)
    (model,) = module.session.library.models()
    assert [label["name"] for label in model.description.labels] == list(NAMES.values())
    assert "Müller" not in (model.path / "model.json").read_text(encoding="utf-8")
    assert slicer.mrmlScene.GetFirstNodeByName("HiEndMAE learning curve") is not None
    assert list(Path(slicer.app.temporaryPath).glob("HiEndMAE-*")) == []

    # Apply: the other scan is ticked already
    assert module.session.parameters.targets == [other]
    nodes = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLLabelMapVolumeNode")
    module.apply.ui.uncertaintyCheck.checked = True
    module.apply.ui.applyButton.click()
    assert module.apply.cases[0].state == "running"
    wait(lambda: not module.apply.running)
    assert [case.state for case in module.apply.cases] == ["done"], message(module.apply)
    (result,) = module.apply.results
    content = result.GetSegmentation()
    segments = [content.GetNthSegment(index) for index in range(content.GetNumberOfSegments())]
    assert [segment.GetName() for segment in segments] == list(NAMES.values())
    for segment, colour in zip(segments, COLOURS.values()):
        assert [round(255 * part) for part in segment.GetColor()] == list(colour)
    import vtk

    tag = vtk.reference("")
    segments[0].GetTag("TerminologyEntry", tag)
    assert str(tag) == LIVER
    assert result.GetNodeReference(result.GetReferenceImageGeometryReferenceRole()) is other
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(result)) == study
    image = slicer.vtkOrientedImageData()
    found = [segment for segment in segments if segment.GetRepresentation("Binary labelmap").GetNumberOfPoints() > 1]
    assert found, "three steps paint something, somewhere"
    image = found[0].GetRepresentation("Binary labelmap")
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    np.testing.assert_allclose(slicer.util.arrayFromVTKMatrix(matrix)[:3, :3], affine[:3, :3], atol=1e-6)
    offset = np.linalg.inv(affine) @ slicer.util.arrayFromVTKMatrix(matrix)[:, 3]
    np.testing.assert_allclose(offset, np.round(offset), atol=1e-4)
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLLabelMapVolumeNode") == nodes

    # Where it is unsure: a map in the scan's place that nobody takes for a scan, and a click that goes there
    scan, overlay, first = module.apply.reviews[0]
    assert scan is other
    np.testing.assert_array_equal(affine_of(overlay), affine)
    values = slicer.util.arrayFromVolume(overlay)
    assert 0 <= values.min() <= values.max() <= 1
    assert first.uncertainty == pytest.approx(values.mean(axis=(1, 2)).max())
    assert module.apply.ui.casesTable.rowCount == 2
    red = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceNode", "Red")
    module.apply.ui.reviewList.setCurrentRow(1)
    module.apply.ui.reviewList.setCurrentRow(0)
    assert red.GetSliceOffset() == pytest.approx(first.centre[2], abs=4)

    # Volumes in ml
    file = tmp_path / "Volumen für Ä.csv"
    monkeypatch.setattr(qt.QFileDialog, "getSaveFileName", lambda *_: str(file))
    module.apply.ui.csvButton.click()
    rows = list(csv.reader(file.read_text(encoding="utf-8-sig").splitlines()))
    assert [row[2] for row in rows[1:]] == list(NAMES.values())
    voxels = slicer.util.arrayFromSegmentBinaryLabelmap(result, content.GetNthSegmentID(0), other).sum()
    assert float(rows[1][3]) == pytest.approx(voxels * 8**3 / 1000, rel=1e-3)

    # Improve with the result, as if it had been corrected
    module.ui.improveSection.collapsed = False
    assert module.session.parameters.corrected is result
    module.improve.ui.improveButton.click()
    wait(lambda: not module.session.busy)
    assert module.improve.strip.job.end.state == "finished", message(module.improve)
    assert "has learned from 2 scans" in message(module.improve)
    assert sorted(one.description.training["cases"] for one in module.session.library.models()) == [1, 2]
    assert torch_was_there or "torch" not in sys.modules


def test_use_now_keeps_a_usable_model(module: Any, patient: Callable[..., Any]) -> None:
    taught, labels = patient(1, "CT")
    module.session.parameters.teachSegmentation = draw_segments(taught, labels)
    module.teach.steps = 100_000
    module.teach.ui.teachButton.click()
    wait(lambda: module.teach.strip.ui.progressBar.maximum == 100_000 or not module.session.busy)
    module.teach.strip.ui.finishButton.click()
    wait(lambda: not module.session.busy)
    assert module.teach.strip.job.end.state == "finished", message(module.teach)
    (model,) = module.session.library.models()
    assert 0 < model.description.training["steps"] < 100_000


def test_cancel_leaves_no_process_and_no_file(module: Any, patient: Callable[..., Any]) -> None:
    """Within five seconds; the engine is in its slow start, when it does not listen yet."""
    import slicer

    taught, labels = patient(1, "CT")
    module.session.parameters.teachSegmentation = draw_segments(taught, labels)
    module.teach.ui.teachButton.click()
    pid = module.teach.strip.job.pid
    wait(lambda: len(group_of(pid)) >= 2)  # the launcher and the engine
    asked = time.monotonic()
    module.teach.strip.ui.cancelButton.click()
    wait(lambda: not module.session.busy)
    wait(lambda: not group_of(pid), 5)
    assert time.monotonic() - asked < 5
    assert module.teach.strip.job.end.state == "cancelled"
    assert message(module.teach) == "Cancelled. Nothing was changed."
    assert module.session.library.models() == []
    assert list(Path(slicer.app.temporaryPath).glob("HiEndMAE-*")) == []
    assert module.teach.ui.teachButton.enabled


def test_a_killed_engine_is_told_of(module: Any, patient: Callable[..., Any]) -> None:
    """As when the system runs out of memory: the engine dies, its launcher says 1 and nothing else."""
    import os
    import signal

    taught, labels = patient(1, "CT")
    module.session.parameters.teachSegmentation = draw_segments(taught, labels)
    module.teach.ui.teachButton.click()
    job = module.teach.strip.job
    wait(lambda: len(group_of(job.pid)) >= 2)
    os.kill(next(pid for pid in group_of(job.pid) if pid != job.pid), signal.SIGKILL)
    wait(lambda: not module.session.busy)
    assert job.end.state == "killed"
    assert "ended from outside" in message(module.teach)
    assert "memory" in message(module.teach)
    assert module.teach.strip.ui.actionButton.text == "Try again"
    assert module.session.library.models() == []


def test_a_damaged_model_is_told_in_a_sentence(module: Any, patient: Callable[..., Any], shared_model: Path) -> None:
    """The engine's exit code 3; the queue stops, since no other scan would fare better."""
    import slicer

    model = module.session.library.take_in(shared_model)
    (model.path / "model.safetensors").write_bytes(b"no weights")
    volumes = [patient(seed, f"CT {seed}")[0] for seed in (1, 2)]
    module.session.models_changed()
    module.session.parameters.targets = volumes
    module.apply.ui.applyButton.click()
    wait(lambda: not module.apply.running)
    assert module.apply.strip.job.end.exit_code == 3
    assert [case.state for case in module.apply.cases] == ["failed", "skipped"]
    assert "damaged" in message(module.apply)
    assert "--" not in message(module.apply)
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


def test_scene_closed_while_segmenting(module: Any, patient: Callable[..., Any], shared_model: Path) -> None:
    """The job is cancelled, nothing appears in the new scene, the panel works on."""
    import slicer

    module.session.library.take_in(shared_model)
    module.session.models_changed()
    module.session.parameters.targets = [patient(2, "CT 2")[0]]
    module.apply.ui.applyButton.click()
    slicer.mrmlScene.Clear(0)
    wait(lambda: not module.session.busy)
    assert [case.state for case in module.apply.cases] == ["skipped"]
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0
    assert module.apply.ui.casesTable.rowCount == 0


def test_the_modules_own_test_passes(module: Any) -> None:
    """What Slicer runs as `py_HiEndMAESegmentation`."""
    import unittest

    suite = unittest.defaultTestLoader.loadTestsFromTestCase(
        sys.modules["HiEndMAESegmentation"].HiEndMAESegmentationTest
    )
    result = unittest.TestResult()
    suite.run(result)
    assert result.testsRun == 1
    assert result.wasSuccessful(), [*result.errors, *result.failures]
