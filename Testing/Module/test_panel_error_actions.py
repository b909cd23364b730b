"""Buttons of error messages: processor, coarser grid, crop, and messages for files that cannot be written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_engines import SPACING_WRITER, failing_engine, use_fake_engine
from module_help import draw_segments, message_of, wait


def test_out_of_memory_offers_the_processor(module: Any, patient: Callable[..., Any], tmp_path: Path) -> None:
    """The button starts the same job again, on the CPU."""
    use_fake_engine(tmp_path, failing_engine("out_of_memory", "Full.", "Use a larger --spacing."))
    labelled, labels = patient(1, "CT")
    module.session.parameters.teachSegmentation = draw_segments(labelled, labels)
    module.train.ui.trainButton.click()
    wait(lambda: not module.session.busy)
    assert "--" not in message_of(module.train)
    assert module.train.strip.ui.actionButton.text == "Try on the CPU"
    module.train.strip.ui.actionButton.click()
    assert module.train.strip.job._config.device == "cpu"
    assert module.train.ui.deviceCombo.currentData == "cpu"
    wait(lambda: not module.session.busy)


def test_files_that_cannot_be_written_give_a_message(
    imported: Any, patient: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of temporary files is removed while Slicer runs; then the library cannot be written."""
    import slicer

    use_fake_engine(tmp_path, failing_engine("x"))
    labelled, labels = patient(1, "CT")
    imported.session.parameters.teachSegmentation = draw_segments(labelled, labels)
    imported.session.parameters.corrected = imported.session.parameters.teachSegmentation
    imported.session.parameters.targets = [labelled]
    with monkeypatch.context() as patch:
        patch.setattr(type(slicer.app), "temporaryPath", property(lambda _self: str(tmp_path / "gone")))
        for panel, button in (
            (imported.train, imported.train.ui.trainButton),
            (imported.apply, imported.apply.ui.applyButton),
            (imported.refine, imported.refine.ui.refineButton),
        ):
            button.click()
            assert "No such file or directory" in message_of(panel)
            assert "full" not in message_of(panel)
            assert not imported.session.busy
    assert [case.state for case in imported.apply.queue.cases] == ["failed"]
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(imported.session.library, "folder", tmp_path / "file" / "models")
    imported.train.ui.trainButton.click()
    assert "Not a directory" in message_of(imported.train)
    assert not imported.session.busy
    assert list(Path(slicer.app.temporaryPath).glob("HiEndMAE-*")) == []


def test_too_large_training_scan_is_tried_at_2_mm_then_cropped(
    module: Any, patient: Callable[..., Any], tmp_path: Path
) -> None:
    """The region lies around the segments, and the cropped scan at the same place as the whole one."""
    import numpy as np
    import slicer

    note = tmp_path / "spacing"
    use_fake_engine(
        tmp_path,
        SPACING_WRITER.format(file=str(note)) + failing_engine("scan_too_large", "It needs 90 GB.", "--spacing"),
    )
    labelled, labels = patient(1, "CT")
    module.session.parameters.teachSegmentation = draw_segments(labelled, labels)
    button = module.train.strip.ui.actionButton
    module.train.ui.trainButton.click()
    wait(lambda: not module.session.busy)
    assert (note.read_text(), button.text) == ("null", "Use 2 mm")
    button.click()
    wait(lambda: not module.session.busy)
    assert (json.loads(note.read_text()), button.text) == ([2.0, 2.0, 2.0], "Crop to the ROI")
    button.click()
    assert "Adjust the box" in message_of(module.train)
    (box,) = slicer.util.getNodesByClass("vtkMRMLMarkupsROINode")
    box.SetSizeWorld(100.0, 100.0, 100.0)
    button.click()
    assert module.session.busy
    wait(lambda: not module.session.busy)
    cropped = module.session.parameters.teachVolume
    assert cropped.GetName() == "CT cropped"
    small, whole = (slicer.util.arrayFromVolume(node) for node in (cropped, labelled))
    assert small.size < whole.size
    shift = np.array(cropped.GetOrigin()) - np.array(labelled.GetOrigin())
    i, j, k = np.abs(np.round(shift / labelled.GetSpacing())).astype(int)
    np.testing.assert_array_equal(small, whole[k : k + small.shape[0], j : j + small.shape[1], i : i + small.shape[2]])


def test_too_large_scan_to_segment_is_cropped(imported: Any, patient: Callable[..., Any], tmp_path: Path) -> None:
    """The model's grid of 8 mm is coarser than 2 mm, which is not offered. A region outside the scan is refused."""
    import slicer

    use_fake_engine(tmp_path, failing_engine("scan_too_large", "It needs 90 GB.", "--spacing"))
    imported.session.parameters.targets = [patient(2, "CT 2")[0]]
    button = imported.apply.strip.ui.actionButton
    imported.apply.ui.applyButton.click()
    wait(lambda: not imported.session.busy)
    assert button.text == "Crop to the ROI"
    button.click()
    (box,) = slicer.util.getNodesByClass("vtkMRMLMarkupsROINode")
    center = box.GetCenterWorld()
    box.SetCenterWorld(9000.0, 0.0, 0.0)
    button.click()
    assert "lies outside" in message_of(imported.apply)
    box.SetCenterWorld(center)
    button.click()
    wait(lambda: not imported.session.busy)
    assert [case.name for case in imported.apply.queue.cases] == ["CT 2 cropped"]
    assert [node.GetName() for node in imported.session.parameters.targets] == ["CT 2 cropped"]


def test_existing_roi_is_shown_before_it_crops(imported: Any, patient: Callable[..., Any], tmp_path: Path) -> None:
    """Scans that had no turn yet are not cropped, and stay in the queue."""
    import slicer

    use_fake_engine(tmp_path, failing_engine("out_of_memory", "Full."))
    imported.session.parameters.device = "cpu"
    volumes = [patient(seed, f"CT {seed}")[0] for seed in (1, 2)]
    imported.session.parameters.targets = volumes
    box = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Tumour bed")
    box.CreateDefaultDisplayNodes()
    bounds = [0.0] * 6
    volumes[0].GetRASBounds(bounds)
    box.SetCenterWorld(*((low + high) / 2 for low, high in zip(bounds[0::2], bounds[1::2])))
    box.SetSizeWorld(100.0, 100.0, 100.0)
    imported.apply.ui.applyButton.click()
    wait(lambda: not imported.session.busy)
    button = imported.apply.strip.ui.actionButton
    button.click()
    assert "'Tumour bed'" in message_of(imported.apply)
    assert [case.name for case in imported.apply.queue.cases] == ["CT 1", "CT 2"]
    button.click()
    wait(lambda: not imported.session.busy)
    assert [case.name for case in imported.apply.queue.cases] == ["CT 1 cropped", "CT 2"]
    assert box.GetDisplayNode().GetVisibility()

    imported.session.parameters.teachSegmentation = draw_segments(*patient(1, "CT"))
    use_fake_engine(tmp_path, failing_engine("too_large", "It needs 90 GB."))
    imported.train.ui.trainButton.click()
    wait(lambda: not imported.session.busy)
    imported.train.strip.ui.actionButton.click()
    assert "'Tumour bed'" in message_of(imported.train)
    assert imported.session.parameters.teachVolume.GetName() == "CT"
    slicer.mrmlScene.RemoveNode(box)
    imported.train.strip.ui.actionButton.click()  # makes another region
    assert "'HiEndMAE box'" in message_of(imported.train)
