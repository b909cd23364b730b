"""The whole flow by clicks, with the real engine as a child process."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from module_help import COLORS, LIVER, NAMES, MainThreadTimer, draw_segments, message_of, wait

pytestmark = pytest.mark.usefixtures("engine")


def affine_of(node: Any) -> Any:
    import slicer
    import vtk

    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


@pytest.fixture
def scans(request: pytest.FixtureRequest) -> tuple[list[Any], list[Any], dict[int, str]]:
    """Return volume nodes, their reference labels `(k, j, i)`, and names by label value.

    The scans are head-and-neck CT (OpenKBP) where HIENDMAE_DATA names them, else digital patients.
    """
    import numpy as np
    import slicer

    if "HIENDMAE_DATA" not in os.environ:
        patient = request.getfixturevalue("patient")
        volumes, labels = zip(*(patient(seed, f"CT {seed}") for seed in (1, 2, 3)))
        return list(volumes), list(labels), NAMES
    request.getfixturevalue("empty_scene")
    folder = Path(os.environ["HIENDMAE_DATA"]) / "Dataset101_OpenKBP"
    names = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["labels"]
    volumes, labels = [], []
    for case in ("OKBP_004", "OKBP_031", "OKBP_066"):
        logic = slicer.modules.volumes.logic()
        volumes.append(logic.AddArchetypeVolume(str(folder / "imagesTr" / f"{case}_0000.nii.gz"), case))
        label_node = logic.AddArchetypeVolume(str(folder / "labelsTr" / f"{case}.nii.gz"), f"{case} labels")
        labels.append(np.array(slicer.util.arrayFromVolume(label_node)))
        slicer.mrmlScene.RemoveNode(label_node)
    return volumes, labels, {value: name for name, value in names.items() if value}


def test_whole_flow_by_buttons(
    module: Any, scans: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[..., None]
) -> None:
    """Train one minute, segment two scans, correct one, improve (*Use now*), share, delete and import, all by buttons."""
    import slicer

    (labelled, *others), (labels, reference, _), names = scans
    torch_was_loaded = "torch" in sys.modules
    model = train_by_buttons(module, labelled, labels, names, record_property)
    assert module.session.parameters.targets == others, "the other scans are ticked already"
    segment_by_buttons(module, others, names, record_property)
    check_against_reference(module, model, others, reference, names, record_property)
    refined = refine_by_buttons(module, others[0], reference, names)
    share_and_import_by_buttons(module, refined, tmp_path / "für Ä.zip", monkeypatch)
    assert list(Path(slicer.app.temporaryPath).glob("HiEndMAE-*")) == []
    assert torch_was_loaded or "torch" not in sys.modules, "no torch in Slicer's process"


def train_by_buttons(
    module: Any, labelled: Any, labels: Any, names: dict[int, str], record: Callable[..., None]
) -> Any:
    """Train; the main thread is never blocked, and previews show the labelled scan. Return the model."""
    import slicer

    real = names is not NAMES
    ui = module.train.ui
    ui.segmentationSelector.setCurrentNode(draw_segments(labelled, labels, names))
    assert ui.volumeSelector.currentNode() is labelled, "the segmentation's scan is chosen too"
    ui.budgetCombo.setCurrentIndex(ui.budgetCombo.findData("1min"))
    assert "2 min and about" in ui.estimateLabel.text
    if real:
        module.train.steps = None
    previews = []
    with MainThreadTimer() as timer:
        ui.trainButton.click()
        assert not module.apply.ui.applyButton.enabled
        while module.session.busy:
            wait(lambda: not module.session.busy or slicer.mrmlScene.GetFirstNodeByName("Preview"), 400)
            if preview := slicer.mrmlScene.GetFirstNodeByName("Preview"):
                previews.append(preview.GetSegmentation().GetNumberOfSegments())
                wait(lambda: not module.session.busy or not slicer.mrmlScene.GetFirstNodeByName("Preview"), 400)
    record("main thread, longest, ms", round(1000 * timer.longest))
    assert timer.longest < 0.1
    assert module.train.strip.job.end.state == "finished", message_of(module.train)
    assert f"was trained on {len(names)} structures" in message_of(module.train)
    assert set(previews) <= {len(names)}
    record("previews", len(previews))  # a busy machine skips previews that would take too much of a minute
    assert slicer.mrmlScene.GetFirstNodeByName("Preview") is None
    (model,) = module.session.library.models()
    assert [label["name"] for label in model.description.labels] == list(names.values())
    assert not real or model.description.training["seconds"] > 20, "about a minute"
    return model


def segment_by_buttons(module: Any, volumes: list[Any], names: dict[int, str], record: Callable[..., None]) -> None:
    """Segment the ticked scans, and check that every result belongs to its scan and has all structures."""
    import slicer

    with MainThreadTimer() as timer:
        module.apply.ui.applyButton.click()
        wait(lambda: not module.apply.queue.running, 400)
    record("main thread, longest while segmenting, ms", round(1000 * timer.longest))
    assert timer.longest < 0.5  # between two jobs a result and its surfaces are added to the scene
    assert [case.state for case in module.apply.queue.cases] == ["done", "done"], message_of(module.apply)
    for volume, result in zip(volumes, module.apply.queue.results):
        assert result.GetNodeReference(result.GetReferenceImageGeometryReferenceRole()) is volume
        content = result.GetSegmentation()
        segment_names = [content.GetNthSegment(index).GetName() for index in range(content.GetNumberOfSegments())]
        assert segment_names == list(names.values())
        assert content.ContainsRepresentation("Closed surface")
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLLabelMapVolumeNode") == 0


def check_against_reference(
    module: Any, model: Any, volumes: list[Any], reference: Any, names: dict[int, str], record: Callable[..., None]
) -> None:
    """Record the Dice of the first result, and check messages and slices to review.

    A minute may be too short on a slow machine: then a low Dice is expected, nothing is found, and a message says so.
    """
    import slicer

    expected_dice = model.description.training["self_check"]["mean"] or 0
    empty = [case.volume for case in module.apply.queue.cases if "No structure was found." in case.message]
    assert not empty or expected_dice < 0.1, "structures with a good estimate are found"
    assert {entry.volume for entry in module.apply.review_list.entries} == set(volumes) - set(empty)
    result, any_found = module.apply.queue.results[0], False
    for (value, name), segment in zip(names.items(), segments_of(result)):
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(result, segment, volumes[0]) > 0
        expected = reference == value
        any_found |= bool(mask.any())
        record(f"Dice of {name}", round(float(2 * (mask & expected).sum() / (mask.sum() + expected.sum())), 2))
    assert any_found is (volumes[0] not in empty)


def refine_by_buttons(module: Any, volume: Any, reference: Any, names: dict[int, str]) -> Any:
    """Correct the first result, continue the training of its model and stop it early. Return the new model."""
    import slicer

    corrected = module.apply.queue.results[0]
    for value, segment in zip(names, segments_of(corrected)):
        mask = (reference == value).astype("uint8")
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask, corrected, segment, volume)
    module.ui.refineSection.collapsed = False
    module.refine.ui.correctedSelector.setCurrentNode(corrected)
    module.refine.steps = 100_000
    module.refine.ui.refineButton.click()
    strip = module.refine.strip
    wait(lambda: strip.ui.progressBar.maximum == 100_000 or not module.session.busy, 400)
    strip.ui.finishButton.click()
    wait(lambda: not module.session.busy, 400)
    assert strip.job.end.state == "finished", message_of(module.refine)
    assert "was trained on 2 scans" in message_of(module.refine)
    assert sorted(model.description.training["cases"] for model in module.session.library.models()) == [1, 2]
    refined = module.session.library.find(module.session.parameters.model)
    assert refined.description.training["cases"] == 2
    assert 0 < refined.description.training["steps"] < 100_000
    return refined


def share_and_import_by_buttons(module: Any, model: Any, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Share a model as one zip, delete it and import it again."""
    import qt
    import slicer.util

    module.ui.modelsSection.collapsed = False
    module.models.choose(model.key)
    monkeypatch.setattr(qt.QFileDialog, "getSaveFileName", lambda *_: str(file))
    monkeypatch.setattr(qt.QMessageBox, "question", lambda *_: qt.QMessageBox.No)
    module.models.ui.shareButton.click()
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda *_, **__: True)
    module.models.ui.deleteButton.click()
    assert len(module.session.library.models()) == 1
    monkeypatch.setattr(qt.QFileDialog, "getOpenFileName", lambda *_: str(file))
    module.models.ui.importButton.click()
    assert message_of(module.models) == f"'{model.name}' is ready to segment."
    assert module.models.chosen().description.weights_sha256 == model.description.weights_sha256


def segments_of(segmentation: Any) -> list[str]:
    content = segmentation.GetSegmentation()
    return [content.GetNthSegmentID(index) for index in range(content.GetNumberOfSegments())]


def test_result_has_geometry_names_colors_and_codes_of_the_labels(
    module: Any, patient: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scan is oblique and in a study, names are not ASCII. Uncertainty map and volumes as CSV are checked too."""
    import numpy as np
    import qt
    import slicer

    labelled, labels = patient(1, "CT (Müller, Ä.)")
    other, _ = patient(2, "CT 2")
    rotation = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]])  # an oblique scan
    affine = affine_of(other)
    affine[:3, :3] = rotation @ affine[:3, :3]
    other.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(affine))
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "Study")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(other), study)
    module.session.parameters.teachSegmentation = draw_segments(labelled, labels)
    module.train.ui.trainButton.click()
    wait(lambda: not module.session.busy)
    assert module.train.strip.job.end.state == "finished", message_of(module.train)
    (model,) = module.session.library.models()
    assert [label["name"] for label in model.description.labels] == list(NAMES.values())
    assert "Müller" not in (model.path / "model.json").read_text(encoding="utf-8")
    assert list(Path(slicer.app.temporaryPath).glob("HiEndMAE-*")) == []

    module.apply.ui.applyButton.click()
    assert module.apply.queue.cases[0].state == "running"
    wait(lambda: not module.apply.queue.running)
    assert [case.state for case in module.apply.queue.cases] == ["done"], message_of(module.apply)
    assert message_of(module.apply).startswith("Segmented 1 scan with"), "warnings follow, with the name of the scan"
    assert "scan: " not in message_of(module.apply)
    (result,) = module.apply.queue.results
    content = result.GetSegmentation()
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(result)) == study
    check_segments(content, affine)
    check_uncertainty_map(module, other, affine)
    file = tmp_path / "Volumen für Ä.csv"
    monkeypatch.setattr(qt.QFileDialog, "getSaveFileName", lambda *_: str(file))
    module.apply.ui.csvButton.click()
    rows = list(csv.reader(file.read_text(encoding="utf-8-sig").splitlines()))
    assert [row[2] for row in rows[1:]] == list(NAMES.values())
    voxels = slicer.util.arrayFromSegmentBinaryLabelmap(result, content.GetNthSegmentID(0), other).sum()
    assert float(rows[1][3]) == pytest.approx(voxels * 8**3 / 1000, rel=1e-3)


def check_segments(content: Any, affine: Any) -> None:
    """Check names, colors and terminology of the segments, and that their voxels lie on the scan's grid."""
    import numpy as np
    import slicer
    import vtk

    segments = [content.GetNthSegment(index) for index in range(content.GetNumberOfSegments())]
    assert [segment.GetName() for segment in segments] == list(NAMES.values())
    for segment, color in zip(segments, COLORS.values()):
        assert [round(255 * part) for part in segment.GetColor()] == list(color)
    tag = vtk.reference("")
    segments[0].GetTag("TerminologyEntry", tag)
    assert str(tag) == LIVER
    found = [segment for segment in segments if segment.GetRepresentation("Binary labelmap").GetNumberOfPoints() > 1]
    assert found, "three steps predict some structure somewhere"
    image = found[0].GetRepresentation("Binary labelmap")
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    np.testing.assert_allclose(slicer.util.arrayFromVTKMatrix(matrix)[:3, :3], affine[:3, :3], atol=1e-6)
    offset = np.linalg.inv(affine) @ slicer.util.arrayFromVTKMatrix(matrix)[:, 3]
    np.testing.assert_allclose(offset, np.round(offset), atol=1e-4)


def check_uncertainty_map(module: Any, volume: Any, affine: Any) -> None:
    """Check that the map lies on the scan, is not listed as a scan, and that a click shows the slice to review."""
    import numpy as np
    import slicer

    entry = module.apply.review_list.entries[0]
    overlay = entry.overlay
    assert entry.volume is volume
    np.testing.assert_array_equal(affine_of(overlay), affine)
    values = slicer.util.arrayFromVolume(overlay)
    assert values.shape == slicer.util.arrayFromVolume(volume).shape
    assert 0 < values.max() <= 100
    assert module.apply.ui.casesTable.rowCount == 2
    red = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceNode", "Red")
    shown = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")
    module.apply.ui.reviewList.setCurrentRow(1)
    module.apply.ui.reviewList.setCurrentRow(0)
    center = affine @ [(values.shape[2] - 1) / 2, (values.shape[1] - 1) / 2, entry.slice.number - 1, 1]
    assert red.GetSliceOffset() == pytest.approx(center[2], abs=0.01)
    assert (shown.GetBackgroundVolumeID(), shown.GetForegroundVolumeID()) == (volume.GetID(), overlay.GetID())


def test_test_of_the_module_itself_passes(module: Any) -> None:
    """Slicer runs it as `py_HiEndMAESegmentation`."""
    import unittest

    suite = unittest.defaultTestLoader.loadTestsFromTestCase(
        sys.modules["HiEndMAESegmentation"].HiEndMAESegmentationTest
    )
    result = unittest.TestResult()
    suite.run(result)
    assert result.testsRun == 1
    assert result.wasSuccessful(), [*result.errors, *result.failures]
