"""Interrupted runs with the real engine: stopped, cancelled, killed, without disk space, with a damaged model."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from module_help import draw_segments, group_of, message_of, wait

pytestmark = pytest.mark.usefixtures("engine")


def test_use_now_writes_a_usable_model(module: Any, patient: Callable[..., Any]) -> None:
    labelled, labels = patient(1, "CT")
    module.session.parameters.teachSegmentation = draw_segments(labelled, labels)
    module.train.steps = 100_000
    module.train.ui.trainButton.click()
    wait(lambda: module.train.strip.ui.progressBar.maximum == 100_000 or not module.session.busy)
    module.train.strip.ui.finishButton.click()
    wait(lambda: not module.session.busy)
    assert module.train.strip.job.end.state == "finished", message_of(module.train)
    (model,) = module.session.library.models()
    assert 0 < model.description.training["steps"] < 100_000


def test_cancel_leaves_no_process_and_no_file(module: Any, patient: Callable[..., Any]) -> None:
    """It takes at most five seconds, although the engine is starting and does not read its control file yet."""
    import slicer

    labelled, labels = patient(1, "CT")
    module.session.parameters.teachSegmentation = draw_segments(labelled, labels)
    before = slicer.mrmlScene.GetNumberOfNodes()
    module.train.ui.trainButton.click()
    pid = module.train.strip.job.pid
    wait(lambda: len(group_of(pid)) >= 2)  # the launcher and the engine
    start = time.monotonic()
    module.train.strip.ui.cancelButton.click()
    wait(lambda: not module.session.busy)
    wait(lambda: not group_of(pid), 5)
    assert time.monotonic() - start < 5
    assert module.train.strip.job.end.state == "cancelled"
    assert message_of(module.train) == "Cancelled. Nothing was changed."
    assert module.session.library.models() == []
    assert slicer.mrmlScene.GetNumberOfNodes() == before
    assert list(Path(slicer.app.temporaryPath).glob("HiEndMAE-*")) == []
    assert module.train.ui.trainButton.enabled


def test_killed_engine_gives_a_message(module: Any, patient: Callable[..., Any]) -> None:
    """As when the system runs out of memory: the engine is killed, and its launcher ends with code 1."""
    import os
    import signal

    labelled, labels = patient(1, "CT")
    module.session.parameters.teachSegmentation = draw_segments(labelled, labels)
    module.train.ui.trainButton.click()
    job = module.train.strip.job
    wait(lambda: len(group_of(job.pid)) >= 2)
    os.kill(next(pid for pid in group_of(job.pid) if pid != job.pid), signal.SIGKILL)
    wait(lambda: not module.session.busy)
    assert job.end.state == "killed"
    assert "ended from outside" in message_of(module.train)
    assert "memory" in message_of(module.train)
    assert module.train.strip.ui.actionButton.text == "Try again"
    assert module.session.library.models() == []


def test_run_whose_disk_is_full_at_the_end_is_resumed(
    module: Any, patient: Callable[..., Any], engine: str, tmp_path: Path
) -> None:
    """The disk is full when the engine writes the model; "Try again" continues from the training checkpoint."""
    from stand_in.application import use_engine

    program = tmp_path / "engine.py"
    program.write_text(_FULL_ONCE.format(flag=str(tmp_path / "was full")), encoding="utf-8")
    use_engine(engine, str(program))
    labelled, labels = patient(1, "CT")
    module.session.parameters.teachSegmentation = draw_segments(labelled, labels)
    strip = module.train.strip
    module.train.ui.trainButton.click()
    wait(lambda: not module.session.busy)
    assert strip.job.end.code == "disk_full", strip.job.log.read_text()
    assert strip.ui.actionButton.text == "Try again"
    strip.ui.actionButton.click()
    wait(lambda: not module.session.busy)
    assert strip.job.end.state == "finished", message_of(module.train)
    assert '"stage": "learning"' not in strip.job.log.read_text(encoding="utf-8"), "no step is trained twice"
    (model,) = module.session.library.models()
    assert model.description.training["steps"] == 3
    assert [path.name for path in module.session.library.folder.iterdir()] == [model.key]


_FULL_ONCE = """
import errno, os, sys
from pathlib import Path
sys.path.insert(0, os.getcwd())
from HiEndMAECore import finetune
from HiEndMAECore.training import finetune_pipeline, finetuning
finetuning._CHECKPOINT_SECONDS = 0
flag, write = Path({flag!r}), finetune_pipeline.write_model
def full_once(*arguments, **options):
    if flag.exists():
        return write(*arguments, **options)
    flag.touch()
    raise OSError(errno.ENOSPC, "No space left on device")
finetune_pipeline.write_model = full_once
sys.exit(finetune.main(sys.argv[3:]))
"""


def test_damaged_model_gives_a_message_and_stops_the_queue(
    module: Any, patient: Callable[..., Any], shared_model: Path
) -> None:
    """The engine ends with code 3, and the other scans are not segmented, because they would fail too."""
    import slicer

    model = module.session.library.import_model(shared_model)
    (model.path / "model.safetensors").write_bytes(b"no weights")
    volumes = [patient(seed, f"CT {seed}")[0] for seed in (1, 2)]
    module.session.models_changed()
    module.session.parameters.targets = volumes
    module.apply.ui.applyButton.click()
    wait(lambda: not module.apply.queue.running)
    assert module.apply.strip.job.end.exit_code == 3
    assert [case.state for case in module.apply.queue.cases] == ["failed", "failed"]
    assert [case.attempts for case in module.apply.queue.cases] == [1, 0]
    assert "damaged" in message_of(module.apply)
    assert "--" not in message_of(module.apply)
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


def test_scene_closed_while_segmenting_cancels_the_job(
    module: Any, patient: Callable[..., Any], shared_model: Path
) -> None:
    """Nothing is added to the new scene, and the panel stays usable."""
    import slicer

    module.session.library.import_model(shared_model)
    module.session.models_changed()
    module.session.parameters.targets = [patient(2, "CT 2")[0]]
    module.apply.ui.applyButton.click()
    slicer.mrmlScene.Clear(0)
    wait(lambda: not module.session.busy)
    assert (module.apply.queue.cases, module.apply.queue.results) == ([], [])
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0
    assert module.apply.ui.casesTable.rowCount == 0
    patient(1, "another patient")  # has the ID of the first
    assert module.apply.ui.casesTable.item(0, 1).text() == ""


def test_full_disk_gives_a_message(
    module: Any, patient: Callable[..., Any], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the engine cannot write the model, then the module cannot write the scan."""
    import slicer

    labelled, labels = patient(1, "CT")
    module.session.parameters.teachSegmentation = draw_segments(labelled, labels)
    library = module.session.library
    monkeypatch.setattr(library, "folder", small_disk)
    module.train.ui.trainButton.click()
    wait(lambda: not module.session.busy)
    assert "The disk is full" in message_of(module.train)
    assert "--" not in message_of(module.train)
    assert module.train.strip.ui.actionButton.text == "Try again"
    assert library.models() == []

    (small_disk / "rest").write_bytes(bytes(shutil.disk_usage(small_disk).free // 4096 * 4096))
    monkeypatch.setattr(type(slicer.app), "temporaryPath", property(lambda _self: str(small_disk)))
    module.train.ui.trainButton.click()
    assert not module.session.busy
    assert "could not be written to the disk" in message_of(module.train) or "The disk is full" in message_of(
        module.train
    )
    assert [path.name for path in small_disk.glob("HiEndMAE-*")] == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a disk of half a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(folder)]
    if subprocess.run(line, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
