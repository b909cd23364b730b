"""Registration in the panel Apply with the real engine: quick preview, cancel, and a scan that cannot be registered."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from module_help import NAMES, group_of, ids_of, message_of, wait

pytestmark = pytest.mark.usefixtures("engine")


def test_quick_preview_shows_the_labels_by_registration_alone(imported: Any, patient: Callable[..., Any]) -> None:
    """The network was trained with three steps, and finds next to nothing: what is found comes from the labelled scan."""
    import slicer

    scan, reference = patient(2, "CT 2")
    imported.session.parameters.targets = [scan]
    texts: set[str] = set()

    def has_ended() -> bool:
        texts.add(imported.apply.strip.ui.progressLabel.text)
        return not imported.session.busy

    imported.apply.ui.previewButton.click()
    wait(has_ended)
    assert [case.state for case in imported.apply.queue.cases] == ["done"], message_of(imported.apply)
    assert any(text.startswith("Registering the labelled scan to CT 2 · ") for text in texts)
    assert not any("Segmenting" in text for text in texts)
    (preview,) = imported.apply.queue.results
    assert preview.GetName() == "CT 2 - Bauch (quick preview)"
    for value, segment in zip(NAMES, ids_of(preview), strict=True):
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(preview, segment, scan) > 0
        expected = reference == value
        assert 2 * (mask & expected).sum() / (mask.sum() + expected.sum()) > 0.3, NAMES[value]


def test_cancel_in_the_registration_ends_the_engine_by_its_control_file(
    imported: Any, patient: Callable[..., Any]
) -> None:
    """The engine itself reports that it was cancelled; it is not killed."""
    import slicer

    imported.session.parameters.targets = [patient(2, "CT 2")[0]]
    imported.apply.ui.applyButton.click()
    strip = imported.apply.strip
    job = strip.job
    wait(lambda: "Registering" in strip.ui.progressLabel.text or not imported.session.busy)
    start = time.monotonic()
    strip.ui.cancelButton.click()
    wait(lambda: not imported.session.busy)
    wait(lambda: not group_of(job.pid), 5)
    assert time.monotonic() - start < 5
    assert job.end.state == "cancelled"
    assert '"code": "cancelled"' in job.log.read_text(encoding="utf-8")
    assert [case.state for case in imported.apply.queue.cases] == ["skipped"]
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0
    assert list(Path(slicer.app.temporaryPath).glob("HiEndMAE-*")) == []


def test_scan_that_cannot_be_registered_shows_the_warning_in_the_table(
    imported: Any, patient: Callable[..., Any]
) -> None:
    """The scan has two slices: the network alone segments it, and a quick preview of it fails with advice."""
    import slicer

    scan, _ = patient(2, "CT 2")
    slicer.util.updateVolumeFromArray(scan, slicer.util.arrayFromVolume(scan)[20:22].copy())
    imported.session.parameters.targets = [scan]
    imported.apply.ui.applyButton.click()
    wait(lambda: not imported.session.busy)
    assert [case.state for case in imported.apply.queue.cases] == ["done"], message_of(imported.apply)
    expected = "The labelled scan could not be registered to it. The scan has 2 voxels along its thinnest axis"
    assert expected in imported.apply.ui.casesTable.item(0, 1).toolTip()
    assert "CT 2: " in message_of(imported.apply)
    assert expected in message_of(imported.apply)
    imported.apply.ui.previewButton.click()
    wait(lambda: not imported.session.busy)
    assert [case.state for case in imported.apply.queue.cases] == ["failed"]
    assert "Press 'Segment'" in imported.apply.ui.casesTable.item(0, 1).toolTip()
