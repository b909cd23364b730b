"""Quick previews of the panel Apply: names, replacement, the button, and the progress of the registration."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_engines import LABELLING_ENGINE, failing_engine, use_fake_engine
from module_help import add_model_without_atlas, message_of, wait


@pytest.fixture
def segment(imported: Any, tmp_path: Path) -> Callable[[Any], dict[str, Any]]:
    """Return `segment(button)`, which presses a button, waits, and returns the options that the engine got."""
    note = tmp_path / "options.json"
    use_fake_engine(tmp_path, LABELLING_ENGINE.format(file=str(note)))

    def press(button: Any) -> dict[str, Any]:
        button.click()
        wait(lambda: not imported.session.busy)
        assert [case.state for case in imported.apply.queue.cases] == ["done"], message_of(imported.apply)
        return json.loads(note.read_text(encoding="utf-8"))

    return press


def segmentations() -> list[str]:
    """Return the names of the segmentations in the scene."""
    import slicer

    return [node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode")]


def test_full_result_replaces_the_quick_preview(
    imported: Any, patient: Callable[..., Any], segment: Callable[[Any], dict[str, Any]]
) -> None:
    """A preview has its own name, no volumes in the table, and is not offered for *Improve*."""
    from HiEndMAESegmentationLib.scene import tables

    ui, parameters = imported.apply.ui, imported.session.parameters
    parameters.targets = [patient(2, "CT 2")[0]]
    options = segment(ui.previewButton)
    assert (options["method"], options["uncertainty"]) == ("registration", False)
    assert message_of(imported.apply).startswith("Made a quick preview of 1 scan with 'Bauch', without the network.")
    assert segmentations() == ["CT 2 - Bauch (quick preview)"]
    assert (parameters.corrected, tables.volumes_table()) == (None, None)
    segment(ui.previewButton)
    assert segmentations() == ["CT 2 - Bauch (quick preview)_1"]
    options = segment(ui.applyButton)
    assert (options["method"], options["uncertainty"]) == ("auto", True)
    assert message_of(imported.apply).startswith("Segmented 1 scan with 'Bauch'.")
    assert segmentations() == ["CT 2 - Bauch"]
    assert parameters.corrected.GetName() == "CT 2 - Bauch"
    assert tables.volumes_table().GetNumberOfRows() == 1
    segment(ui.previewButton)
    assert segmentations() == ["CT 2 - Bauch", "CT 2 - Bauch (quick preview)_2"]


@pytest.mark.parametrize("work", ["edited", "segment removed", "chosen for Improve", "trained on", "other scan"])
def test_quick_preview_that_somebody_worked_on_is_not_replaced(
    work: str, imported: Any, patient: Callable[..., Any], segment: Callable[[Any], dict[str, Any]]
) -> None:
    import slicer
    from HiEndMAESegmentationLib.scene.provenance import mark_as_training_case
    from module_help import ids_of

    scan = patient(2, "CT 2")[0]
    imported.session.parameters.targets = [scan]
    segment(imported.apply.ui.previewButton)
    (preview,) = imported.apply.queue.results
    first = ids_of(preview)[0]
    if work == "edited":
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(preview, first, scan)
        mask[10:20] = 0
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask, preview, first, scan)
    elif work == "segment removed":
        preview.GetSegmentation().RemoveSegment(first)
    elif work == "chosen for Improve":
        imported.session.parameters.corrected = preview
    elif work == "trained on":
        mark_as_training_case(preview, "another-model", scan)
    else:
        imported.session.parameters.targets = [patient(3, "CT 3")[0]]
    segment(imported.apply.ui.applyButton)
    assert slicer.mrmlScene.IsNodePresent(preview)
    assert len(segmentations()) == 2


def test_progress_names_the_scan_that_is_registered(imported: Any, patient: Callable[..., Any], tmp_path: Path) -> None:
    use_fake_engine(tmp_path, LABELLING_ENGINE.format(file=str(tmp_path / "options.json")))
    imported.session.parameters.targets = [patient(2, "CT (Müller)")[0]]
    imported.apply.ui.applyButton.click()
    expected = "Registering the labelled scan to CT (Müller) · 12 s left"
    wait(lambda: imported.apply.strip.ui.progressLabel.text == expected, 20)
    assert (imported.apply.strip.ui.progressBar.value, imported.apply.strip.ui.progressBar.maximum) == (4, 40)
    wait(lambda: not imported.session.busy)


def test_quick_preview_needs_a_model_with_an_atlas(
    imported: Any, patient: Callable[..., Any], shared_model: Path
) -> None:
    """The tooltip says why not; models without an atlas can be chosen as before."""
    button, combo = imported.apply.ui.previewButton, imported.apply.ui.modelCombo
    assert not button.enabled, "no scan is ticked"
    imported.session.parameters.targets = [patient(2, "CT 2")[0]]
    assert button.enabled
    assert "in seconds, without the network" in button.toolTip
    key = add_model_without_atlas(imported.session.library, shared_model)
    imported.session.models_changed()
    combo.setCurrentIndex(combo.findData(key))
    combo.activated.emit(combo.currentIndex)
    assert (imported.apply.ui.applyButton.enabled, button.enabled) == (True, False)
    assert button.toolTip == "The model 'Bauch' keeps no atlas of its labelled scan, which a quick preview needs."


def test_quick_preview_without_a_match_offers_the_network(
    imported: Any, patient: Callable[..., Any], tmp_path: Path
) -> None:
    engine = failing_engine("registration_failed", "The scan is thin.", "Segment this scan with --method auto.")
    use_fake_engine(tmp_path, engine)
    imported.session.parameters.targets = [patient(2, "CT 2")[0]]
    imported.apply.ui.previewButton.click()
    wait(lambda: not imported.session.busy)
    assert message_of(imported.apply) == "The scan is thin. Press 'Segment': the network needs no registration."
