"""Training runs of the panels: resuming, closing Slicer, names of models, deleted nodes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_engines import CHECKPOINT_WRITER, PREVIEWING_ENGINE, TRAINED_ENGINE, failing_engine, use_fake_engine
from module_help import draw_segments, message_of, wait


def test_failed_run_with_a_checkpoint_is_resumed(module: Any, patient: Callable[..., Any], tmp_path: Path) -> None:
    """ "Try again" resumes the same run; on another device, or by the button *Train*, a new run starts."""
    import slicer

    note = tmp_path / "note"

    def start_of_run() -> Any:
        wait(lambda: not module.session.busy)
        return json.loads(note.read_text())

    def remaining() -> list[str]:
        paths = [*Path(slicer.app.temporaryPath).glob("HiEndMAE-*"), *module.session.library.folder.glob("*")]
        return sorted(path.name.split("-")[0] for path in paths)

    use_fake_engine(tmp_path, CHECKPOINT_WRITER.format(file=str(note)) + failing_engine("disk_full", "Full."))
    labelled, labels = patient(1, "CT")
    module.session.parameters.teachSegmentation = draw_segments(labelled, labels)
    module.train.ui.trainButton.click()
    first = start_of_run()
    assert (first[0], first[2]) == (False, True)
    module.train.strip._try_again()
    assert start_of_run() == [True, first[1], True]
    assert len(remaining()) == 3  # the scan, the model's empty folder, the checkpoint
    module.session.parameters.device = "cpu"
    module.train.strip._try_again()
    assert start_of_run() == [False, first[1], True]
    module.train.ui.trainButton.click()
    assert start_of_run()[0] is False
    assert len(remaining()) == 3
    module.cleanup()
    assert remaining() == []


def test_closing_slicer_removes_scans_and_preview(imported: Any, patient: Callable[..., Any], tmp_path: Path) -> None:
    """The engine is running: `Job.kill` does not call `on_end`."""
    import slicer

    library = imported.session.library.folder
    before = sorted(library.glob("*"))
    use_fake_engine(tmp_path, PREVIEWING_ENGINE)
    labelled, labels = patient(1, "CT")
    imported.session.parameters.teachSegmentation = draw_segments(labelled, labels)
    imported.train.ui.trainButton.click()
    wait(lambda: slicer.mrmlScene.GetFirstNodeByName("Preview"))
    imported.cleanup()
    assert slicer.mrmlScene.GetFirstNodeByName("Preview") is None
    assert sorted(library.glob("*")) == before
    imported.session.parameters.targets = [labelled]
    imported.apply.apply()
    assert list(Path(slicer.app.temporaryPath).glob("HiEndMAE-*/scan.nii"))
    imported.cleanup()
    assert list(Path(slicer.app.temporaryPath).glob("HiEndMAE-*")) == []


def test_model_in_training_keeps_its_folder_name(
    module: Any, patient: Callable[..., Any], shared_model: Path, tmp_path: Path
) -> None:
    """A model of the same name is imported meanwhile, and both exist in the end."""
    use_fake_engine(tmp_path, TRAINED_ENGINE.format(model=str(shared_model)))
    labelled, labels = patient(1, "CT")
    module.session.parameters.teachSegmentation = draw_segments(labelled, labels)
    module.session.parameters.modelName = "Bauch"
    module.train.ui.trainButton.click()
    imported = module.session.library.import_model(shared_model)
    wait(lambda: not module.session.busy)
    assert len(module.session.library.models()) == 2
    assert imported.path.name == "bauch-2"


@pytest.mark.parametrize("deleted", ["scene", "scan", "segmentation"])
def test_training_goes_on_after_its_nodes_are_deleted(
    deleted: str, module: Any, patient: Callable[..., Any], shared_model: Path, tmp_path: Path
) -> None:
    """The engine has its own files, so the model is finished and added to the library."""
    import slicer

    use_fake_engine(tmp_path, TRAINED_ENGINE.format(model=str(shared_model)))
    labelled, labels = patient(1, "CT")
    segmentation = draw_segments(labelled, labels)
    module.session.parameters.teachSegmentation = segmentation
    module.train.ui.trainButton.click()
    assert module.session.busy
    if deleted == "scene":
        slicer.mrmlScene.Clear(0)
    else:
        slicer.mrmlScene.RemoveNode(labelled if deleted == "scan" else segmentation)
    wait(lambda: not module.session.busy)
    assert module.train.strip.job.end.state == "finished"
    assert "was trained on 3 structures" in message_of(module.train)
    assert [model.name for model in module.session.library.models()] == ["Bauch"]
    assert module.apply.ui.modelCombo.currentText == "Bauch"
    assert slicer.mrmlScene.GetFirstNodeByName("Preview") is None
    if deleted == "scene":
        assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLDisplayableNode") == 0
