"""The panel Apply and its queue: failed, skipped and deleted scans."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_engines import FINISHING_ENGINE, SPACING_WRITER, failing_engine, use_fake_engine
from module_help import message_of, wait


def test_failed_scan_does_not_stop_the_queue(imported: Any, patient: Callable[..., Any], tmp_path: Path) -> None:
    """A deleted scan fails with a message; the button segments the failed scans again."""
    import slicer

    use_fake_engine(tmp_path, failing_engine("file_unreadable", "This scan cannot be read.", "Look at it."))
    volumes = [patient(seed, f"CT {seed}")[0] for seed in (1, 2, 3)]
    imported.session.parameters.targets = volumes
    imported.apply.ui.applyButton.click()
    slicer.mrmlScene.RemoveNode(volumes[1])
    wait(lambda: not imported.session.busy)
    assert [case.state for case in imported.apply.queue.cases] == ["failed"] * 3
    assert imported.apply.queue.cases[1].message == "The scan was removed from the scene."
    assert message_of(imported.apply).startswith(
        "0 of 3 scans were segmented. 'CT 1' was not: This scan cannot be read."
    )
    assert imported.apply.ui.retryButton.visible
    imported.apply.ui.retryButton.click()
    wait(lambda: not imported.session.busy)
    assert len(imported.apply.queue.cases) == 3


def test_retry_after_a_common_error_segments_all_scans(
    imported: Any, patient: Callable[..., Any], tmp_path: Path
) -> None:
    """After packages were missing, "Try again" segments all scans, not only the first. Old messages disappear."""
    imported.apply.strip.show_message("Segmented 1 scan.", kind="success")
    use_fake_engine(tmp_path, failing_engine("dependency_missing", "torch is missing."))
    imported.session.parameters.targets = [patient(seed, f"CT {seed}")[0] for seed in (1, 2, 3)]
    imported.apply.ui.applyButton.click()
    wait(lambda: not imported.session.busy)
    assert [case.state for case in imported.apply.queue.cases] == ["failed"] * 3
    assert "Segmented 1 scan." not in message_of(imported.apply)
    use_fake_engine(tmp_path, failing_engine("file_unreadable", "This scan cannot be read."))
    imported.apply.queue.retry()
    wait(lambda: not imported.session.busy)
    attempts = [(case.name, case.attempts) for case in imported.apply.queue.cases]
    assert attempts == [("CT 1", 1), ("CT 2", 1), ("CT 3", 1)]


def test_result_that_cannot_be_shown_fails_its_case_only(
    imported: Any, patient: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report is truncated; then, simulated, there is no memory for the segmentation."""
    from HiEndMAESegmentationLib.scene import results

    use_fake_engine(tmp_path, FINISHING_ENGINE.format(report="{"))
    volumes = [patient(seed, f"CT {seed}")[0] for seed in (1, 2)]
    imported.session.parameters.targets = volumes
    imported.apply.ui.applyButton.click()
    wait(lambda: not imported.session.busy)
    assert [case.state for case in imported.apply.queue.cases] == ["failed", "failed"]
    assert "could not be shown" in message_of(imported.apply)

    def no_memory(*_: Any, **__: Any) -> None:
        raise MemoryError

    use_fake_engine(tmp_path, FINISHING_ENGINE.format(report='{"structures": [], "review_slices": []}'))
    monkeypatch.setattr(results, "show_result", no_memory)
    imported.apply.queue.retry()
    wait(lambda: not imported.session.busy)
    assert [case.message for case in imported.apply.queue.cases] == ["The result could not be shown (MemoryError)."] * 2
    assert imported.apply.ui.applyButton.isVisibleTo(imported.parent)


def test_deleted_scan_is_no_longer_ticked(imported: Any, patient: Callable[..., Any]) -> None:
    import slicer

    volume, _ = patient(2, "CT 2")
    imported.session.parameters.targets = [volume]
    assert imported.apply.ui.applyButton.enabled
    slicer.mrmlScene.RemoveNode(volume)
    assert imported.session.parameters.targets == [None]  # as in Slicer's own list
    assert not imported.apply.ui.applyButton.enabled
    imported.apply.apply()
    assert imported.apply.queue.cases == []


def test_coarse_grid_is_used_for_one_queue_only(imported: Any, patient: Callable[..., Any], tmp_path: Path) -> None:
    note = tmp_path / "spacing"
    use_fake_engine(tmp_path, SPACING_WRITER.format(file=str(note)) + failing_engine("x"))
    imported.session.parameters.targets = [patient(2, "CT 2")[0]]
    imported.apply.ui.applyButton.click()
    wait(lambda: not imported.session.busy)
    for press, spacing in ((imported.apply._retry_on_coarse_grid, "[2.0, 2.0, 2.0]"), (imported.apply.apply, "null")):
        press()
        wait(lambda: not imported.session.busy)
        assert note.read_text() == spacing


def test_skip_and_cancel_while_a_second_job_is_refused(
    imported: Any, patient: Callable[..., Any], tmp_path: Path
) -> None:
    use_fake_engine(tmp_path, "import time; time.sleep(100)")
    imported.session.parameters.targets = [patient(seed, f"CT {seed}")[0] for seed in (1, 2)]
    imported.apply.ui.applyButton.click()
    imported.models.check_computer()
    assert "Another job is running" in message_of(imported.models)
    imported.apply.ui.skipButton.click()
    wait(lambda: [case.state for case in imported.apply.queue.cases] == ["skipped", "running"])
    imported.apply.strip.ui.cancelButton.click()
    wait(lambda: not imported.session.busy)
    assert [case.state for case in imported.apply.queue.cases] == ["skipped", "skipped"]


def test_scan_deleted_during_segmentation_fails(imported: Any, patient: Callable[..., Any], tmp_path: Path) -> None:
    import slicer

    use_fake_engine(tmp_path, """import time; time.sleep(0.5); print('{"v": 1, "event": "finished", "outputs": {}}')""")
    volume, _ = patient(2, "CT 2")
    imported.session.parameters.targets = [volume]
    imported.apply.ui.applyButton.click()
    slicer.mrmlScene.RemoveNode(volume)
    wait(lambda: not imported.session.busy)
    assert [case.state for case in imported.apply.queue.cases] == ["failed"]
    assert message_of(imported.apply) == "The scan was removed from the scene."
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


@pytest.mark.parametrize("source", ["print(chr(0) * 9000, '{', chr(0x1F9E0))", "import sys; sys.exit(7)"])
def test_engine_without_a_last_event_gives_a_message_and_a_log(
    source: str, imported: Any, patient: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine without a last event has no result; the button opens its log."""
    import qt
    import slicer

    use_fake_engine(tmp_path, source)
    imported.session.parameters.targets = [patient(2, "CT 2")[0]]
    imported.apply.ui.applyButton.click()
    wait(lambda: not imported.session.busy)
    assert message_of(imported.apply).startswith("The job was ended from outside before it was done.")
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0
    opened: list[str] = []
    monkeypatch.setattr(qt.QDesktopServices, "openUrl", lambda url: opened.append(url.toLocalFile()))
    imported.apply.strip.ui.logButton.click()
    assert Path(opened[0]).is_file()
