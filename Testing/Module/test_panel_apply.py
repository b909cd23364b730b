"""What the panels do beside the straight flow: models, installation, problems, and what they show meanwhile."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from module_help import NAMES, draw_segments, wait

REPOSITORY = Path(__file__).resolve().parents[2]


def message(panel: Any) -> str:
    return panel.strip.ui.messageLabel.text


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def imported(module: Any, shared_model: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, after somebody's model was imported by its button."""
    import qt

    monkeypatch.setattr(qt.QFileDialog, "getOpenFileName", lambda *_: str(shared_model))
    module.models.ui.importButton.click()
    assert message(module.models) == "'Bauch' is ready to segment."
    return module


def test_an_imported_model_is_shown_with_its_card(imported: Any) -> None:
    card = imported.models.ui.cardLabel.text
    for name in NAMES.values():
        assert name in card
    assert "1 scan, 3 steps" in card
    assert "-175 to 250 HU" in card
    assert imported.apply.ui.modelCombo.currentText == "Bauch"
    assert imported.teach.ui.startCombo.findText("Bauch") >= 0


def test_a_model_is_renamed_in_the_list(imported: Any) -> None:
    imported.models.ui.modelsList.currentItem().setText("Bauch  Ä")
    assert [model.name for model in imported.session.library.models()] == ["Bauch Ä"]
    assert imported.apply.ui.modelCombo.currentText == "Bauch Ä"
    imported.models.ui.modelsList.currentItem().setText(" ")
    assert "needs a name" in message(imported.models)
    assert imported.models.ui.modelsList.item(0).text() == "Bauch Ä"


def test_a_model_is_shared_and_comes_back_the_same(
    imported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import qt

    file = tmp_path / "für Kollegin Ä"
    monkeypatch.setattr(qt.QFileDialog, "getSaveFileName", lambda *_: str(file))
    imported.models.ui.shareButton.click()
    assert "no patient data" in message(imported.models)
    monkeypatch.setattr(qt.QFileDialog, "getOpenFileName", lambda *_: f"{file}.zip")
    imported.models.ui.importButton.click()
    first, second = imported.session.library.models()
    assert (first.name, second.name) == ("Bauch", "Bauch 2")
    assert first.description.weights_sha256 == second.description.weights_sha256
    assert imported.models.chosen().name == "Bauch 2"


def test_a_model_is_deleted(imported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import slicer.util

    answers = iter([False, True])
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda *_, **__: next(answers))
    imported.models.ui.deleteButton.click()
    assert len(imported.session.library.models()) == 1
    imported.models.ui.deleteButton.click()
    assert imported.session.library.models() == []
    assert not imported.models.ui.shareButton.enabled
    assert "No model yet" in imported.models.ui.cardLabel.text


def test_what_is_no_model_is_refused(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import qt

    (tmp_path / "x.zip").write_bytes(b"nothing")
    monkeypatch.setattr(qt.QFileDialog, "getOpenFileName", lambda *_: str(tmp_path / "x.zip"))
    module.models.ui.importButton.click()
    assert "There is no model" in message(module.models)


def test_weights_in_the_box_are_the_first_start(
    imported: Any, shared_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the catalogue has in the package; a scene remembers the name, the engine gets the path."""
    from HiEndMAECore.checkpoints import catalogue

    packed = tmp_path / catalogue.OURS
    monkeypatch.setattr(catalogue, "_IN_THE_BOX", tmp_path)
    imported.session.models_changed()
    combo = imported.teach.ui.startCombo
    assert (combo.currentText, imported.teach.start()) == ("Nothing (learn from scratch)", "none")
    shutil.unpack_archive(shared_model, packed)
    imported.session.models_changed()
    assert combo.currentText == catalogue.find_entry(catalogue.OURS).title
    assert imported.teach.start() == str(packed)
    assert [combo.itemText(row) for row in range(combo.count)][1:3] == ["Nothing (learn from scratch)", "Bauch"]
    imported.session.parameters.start = "none"
    assert imported.teach.start() == "none"
    imported.session.parameters.start = catalogue.OURS
    assert imported.teach.start() == str(packed)
    imported.session.parameters.start = "weights of another computer"
    assert imported.teach.start() == str(packed)
    assert "hi_end_mae_10k.pth" in combo.toolTip


@pytest.mark.parametrize(
    ("check", "told"),
    [
        (None, ""),
        ({"mean": None, "structures": []}, ""),
        (
            {"mean": 0.5, "error": 0.07},
            "expect a Dice of about 0.50 on other scans (a structure give or take 0.07, as measured on head-and-neck CT)",
        ),
        (
            {
                "mean": 0.75,
                "calibrated": False,
                "structures": [{"name": "liver", "expected": 0.75}, {"name": "spleen", "expected": None}],
            },
            "expect a Dice of about 0.75 on other scans (an estimate that no patient has tested): liver 0.75",
        ),
    ],
)
def test_the_self_check_is_told_in_words(module: Any, check: Any, told: str) -> None:
    from HiEndMAESegmentationLib.panels.models import score

    assert score({"self_check": check}) == told


# -- installation ------------------------------------------------------------------------------------------------------


def test_missing_packages_are_told_and_installed_by_one_button(
    module: Any, patient: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The true engine on a bare Python: exit code 5. torch by its extension, the rest by pip, what is shipped by none."""
    import slicer.util
    from HiEndMAESegmentationLib.engine import installation
    from stand_in.application import Module, use_engine

    use_engine(sys.executable, "-S")
    taught, labels = patient(1, "CT")
    module.session.parameters.teachSegmentation = draw_segments(taught, labels)
    module.teach.ui.teachButton.click()
    wait(lambda: not module.session.busy)
    assert module.teach.strip.job.end.exit_code == 5
    assert "not installed yet" in message(module.teach)
    assert module.teach.strip.ui.actionButton.text == "Install"

    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda *_, **__: True)
    monkeypatch.setattr(installation, "missing", lambda: ["torch>=2.2,!=2.9.*", "monai>=1.3", "SimpleITK>=2.3"])
    module.teach.strip.ui.actionButton.click()
    assert "extension 'PyTorch' is not installed" in message(module.teach)

    asked: list[Any] = []
    pytorch = types.ModuleType("PyTorchUtils")
    pytorch.PyTorchUtilsLogic = lambda: types.SimpleNamespace(
        installTorch=lambda **given: asked.append(("torch", given)) or "torch"
    )
    monkeypatch.setitem(sys.modules, "PyTorchUtils", pytorch)
    monkeypatch.setattr(slicer.modules, "pytorchutils", Module(), raising=False)

    def pip_install(arguments: list[str]) -> None:
        pins = Path(arguments[1]).read_text(encoding="utf-8")
        asked.append(("pip", arguments[0], arguments[2:], pins))

    monkeypatch.setattr(slicer.util, "pip_install", pip_install)
    module.teach.strip.say("", action="install", act=module.teach.strip._install)
    module.teach.strip.ui.actionButton.click()
    assert asked[0] == ("torch", {"askConfirmation": False, "torchVersionRequirement": ">=2.2,!=2.9.*"})
    assert asked[1][:3] == ("pip", "-c", ["monai>=1.3"])
    assert "numpy==" in asked[1][3]
    own = types.ModuleType("slicer.packaging")  # as newer versions of Slicer have it
    own.pip_install = lambda lines, **given: asked.append((lines, given["requester"], Path(given["constraints"]).name))
    monkeypatch.setitem(sys.modules, "slicer.packaging", own)
    installation._install_rest(["monai>=1.3"])
    assert asked[2] == (["monai>=1.3"], "HiEndMAE", "constraints.txt")
    assert message(module.teach).startswith("The packages are installed. ")


def test_nothing_is_asked_or_installed_on_opening() -> None:
    """Also: neither torch nor anything else heavy enters Slicer's process with the module."""
    source = f"""
import sys
sys.path[:0] = [{str(REPOSITORY / "Testing" / "Host")!r}]
from pathlib import Path
from stand_in.application import load_module, start
start()
import slicer.util
def refuse(*_, **__): raise AssertionError("asked")
slicer.util.pip_install = slicer.util.confirmOkCancelDisplay = slicer.util.messageBox = refuse
widget, _ = load_module(Path({str(REPOSITORY / "HiEndMAESegmentation" / "HiEndMAESegmentation.py")!r}))
widget.cleanup()
heavy = {{"torch", "monai", "nibabel", "safetensors", "SimpleITK", "scipy"}} & set(sys.modules)
assert not heavy, heavy
"""
    told = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    assert told.returncode == 0, told.stderr


@pytest.mark.usefixtures("engine")
def test_check_this_computer_answers_in_words(module: Any) -> None:
    module.models.ui.doctorButton.click()
    wait(lambda: not module.session.busy)
    assert message(module.models).startswith("This computer can run HiEndMAE, on: ")


# -- problems and waiting ----------------------------------------------------------------------------------------------


def fake(tmp_path: Path, source: str) -> None:
    """Let the engine be the Python program `source`."""
    from stand_in.application import use_engine

    program = tmp_path / "engine.py"
    program.write_text(source, encoding="utf-8")
    use_engine(sys.executable, str(program))


def failing(code: str, text: str = "It failed.", advice: str = "") -> str:
    event = {"v": 1, "event": "failed", "code": code, "message": text, "advice": advice}
    return f"print({json.dumps(event)!r})"


def test_no_memory_offers_the_processor(module: Any, patient: Callable[..., Any], tmp_path: Path) -> None:
    """The button starts the same job again, on the CPU."""
    fake(tmp_path, failing("out_of_memory", "Full.", "Use a larger --spacing."))
    taught, labels = patient(1, "CT")
    module.session.parameters.teachSegmentation = draw_segments(taught, labels)
    module.teach.ui.teachButton.click()
    wait(lambda: not module.session.busy)
    assert "--" not in message(module.teach)
    assert module.teach.strip.ui.actionButton.text == "Try on the processor"
    module.teach.strip.ui.actionButton.click()
    assert module.teach.strip.job._config.device == "cpu"
    assert module.teach.ui.deviceCombo.currentData == "cpu"
    wait(lambda: not module.session.busy)


def test_one_failed_scan_does_not_stop_the_others(imported: Any, patient: Callable[..., Any], tmp_path: Path) -> None:
    """Retry then takes the failed ones only. A deleted scan is a failed one, in words."""
    import slicer

    fake(tmp_path, failing("file_unreadable", "This scan cannot be read.", "Look at it."))
    volumes = [patient(seed, f"CT {seed}")[0] for seed in (1, 2, 3)]
    imported.session.parameters.targets = volumes
    imported.apply.ui.applyButton.click()
    slicer.mrmlScene.RemoveNode(volumes[1])
    wait(lambda: not imported.session.busy)
    assert [case.state for case in imported.apply.cases] == ["failed"] * 3
    assert imported.apply.cases[1].told == "The scan was removed from the scene."
    assert message(imported.apply).startswith("0 of 3 scans were segmented. 'CT 1' was not: This scan cannot be read.")
    assert imported.apply.ui.retryButton.visible
    imported.apply.ui.retryButton.click()
    wait(lambda: not imported.session.busy)
    assert len(imported.apply.cases) == 3


def test_what_stops_the_queue_does_not_lose_the_rest_of_it(
    imported: Any, patient: Callable[..., Any], tmp_path: Path
) -> None:
    """Packages are missing: once they are there, all scans are segmented, not the first alone. And no old praise stays."""
    imported.apply.strip.say("Segmented 1 scan.", mood="good")
    fake(tmp_path, failing("dependency_missing", "torch is missing."))
    imported.session.parameters.targets = [patient(seed, f"CT {seed}")[0] for seed in (1, 2, 3)]
    imported.apply.ui.applyButton.click()
    wait(lambda: not imported.session.busy)
    assert [case.state for case in imported.apply.cases] == ["failed"] * 3
    assert "Segmented 1 scan." not in message(imported.apply)
    fake(tmp_path, failing("file_unreadable", "This scan cannot be read."))
    imported.apply.retry()
    wait(lambda: not imported.session.busy)
    assert [(case.name, case.tried) for case in imported.apply.cases] == [(f"CT {seed}", True) for seed in (1, 2, 3)]


DONE = """
import json, sys, time
from pathlib import Path
config = json.load(open(sys.argv[sys.argv.index("--config") + 1], encoding="utf-8"))
import shutil
shutil.copy(config["input"][0], config["output"])
Path(config["output"]).with_suffix(".json").write_text({told!r})
print(json.dumps(dict(v=1, event="finished", outputs={{}})), flush=True)
"""


def test_a_result_that_cannot_be_taken_over_leaves_the_panel_alive(
    imported: Any, patient: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report that is cut short, and (a stand-in for what cannot be had) no memory left for the segmentation."""
    from HiEndMAESegmentationLib.scene import nodes as scene

    fake(tmp_path, DONE.format(told="{"))
    volumes = [patient(seed, f"CT {seed}")[0] for seed in (1, 2)]
    imported.session.parameters.targets = volumes
    imported.apply.ui.applyButton.click()
    wait(lambda: not imported.session.busy)
    assert [case.state for case in imported.apply.cases] == ["failed", "failed"]
    assert "could not be taken over" in message(imported.apply)

    def no_memory(*_: Any, **__: Any) -> None:
        raise MemoryError

    fake(tmp_path, DONE.format(told='{"structures": [], "review_slices": []}'))
    monkeypatch.setattr(scene, "show_result", no_memory)
    imported.apply.retry()
    wait(lambda: not imported.session.busy)
    assert [case.told for case in imported.apply.cases] == ["The result could not be taken over (MemoryError)."] * 2
    assert imported.apply.ui.applyButton.isVisibleTo(imported.parent)


def test_files_that_cannot_be_written_are_told_in_a_sentence(
    imported: Any, patient: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder for temporary files was tidied away while Slicer was open; then the library cannot be written to."""
    import slicer

    fake(tmp_path, failing("x"))
    taught, labels = patient(1, "CT")
    imported.session.parameters.teachSegmentation = draw_segments(taught, labels)
    imported.session.parameters.corrected = imported.session.parameters.teachSegmentation
    imported.session.parameters.targets = [taught]
    with monkeypatch.context() as tidied:
        tidied.setattr(type(slicer.app), "temporaryPath", property(lambda _self: str(tmp_path / "gone")))
        for panel, button in (
            (imported.teach, imported.teach.ui.teachButton),
            (imported.apply, imported.apply.ui.applyButton),
            (imported.improve, imported.improve.ui.improveButton),
        ):
            button.click()
            assert "No such file or directory" in message(panel)
            assert "full" not in message(panel)
            assert not imported.session.busy
    assert [case.state for case in imported.apply.cases] == ["failed"]
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(imported.session.library, "folder", tmp_path / "file" / "models")
    imported.teach.ui.teachButton.click()
    assert "Not a directory" in message(imported.teach)
    assert not imported.session.busy
    assert list(Path(slicer.app.temporaryPath).glob("HiEndMAE-*")) == []


def test_two_scans_of_one_name_keep_their_volumes(empty_scene: Any, tmp_path: Path) -> None:
    from HiEndMAESegmentationLib.scene import nodes as scene

    one, other = (empty_scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT") for _ in range(2))
    for volume, ml in ((one, 1.0), (other, 2.0), (one, 3.0)):
        volume.SetName("CT")
        table = scene.update_volumes_table(volume, "m", [{"name": "liver", "volume_ml": ml}])
    scene.write_csv(table, tmp_path / "v.csv")
    lines = (tmp_path / "v.csv").read_text(encoding="utf-8-sig").split()
    assert lines[-2:] == ["CT,m,liver,2", "CT,m,liver,3"]
    assert lines[0] == "Scan,Model,Structure,Volume"


def test_a_deleted_scan_is_no_longer_ticked(imported: Any, patient: Callable[..., Any]) -> None:
    import slicer

    volume, _ = patient(2, "CT 2")
    imported.session.parameters.targets = [volume]
    assert imported.apply.ui.applyButton.enabled
    slicer.mrmlScene.RemoveNode(volume)
    assert imported.session.parameters.targets == [None]  # as Slicer's own list has it
    assert not imported.apply.ui.applyButton.enabled
    imported.apply.apply()
    assert imported.apply.cases == []


def test_2_mm_is_for_one_queue(imported: Any, patient: Callable[..., Any], tmp_path: Path) -> None:
    seen = tmp_path / "spacing"
    fake(tmp_path, _NOTE_SPACING.format(file=str(seen)) + failing("x"))
    imported.session.parameters.targets = [patient(2, "CT 2")[0]]
    imported.apply.ui.applyButton.click()
    wait(lambda: not imported.session.busy)
    for press, spacing in ((imported.apply._on_2_mm, "[2.0, 2.0, 2.0]"), (imported.apply.apply, "null")):
        press()
        wait(lambda: not imported.session.busy)
        assert seen.read_text() == spacing


SNAPSHOT = """
import json, sys
from pathlib import Path
config = json.load(open(sys.argv[sys.argv.index("--config") + 1], encoding="utf-8"))
training = Path(config["output"] + ".training")
training.mkdir(exist_ok=True)
(training / "snapshot.safetensors").write_bytes(b"an hour's work")
Path({file!r}).write_text(json.dumps([config["resume"], config["output"], Path(config["image"][0]).is_file()]))
"""


def test_a_run_that_failed_at_its_end_goes_on_from_its_snapshot(
    module: Any, patient: Callable[..., Any], tmp_path: Path
) -> None:
    """Try again resumes the same run; on another device, or when Teach is pressed again, it starts anew."""
    import slicer

    seen = tmp_path / "seen"

    def told() -> Any:
        wait(lambda: not module.session.busy)
        return json.loads(seen.read_text())

    def left() -> list[str]:
        found = [*Path(slicer.app.temporaryPath).glob("HiEndMAE-*"), *module.session.library.folder.glob("*")]
        return sorted(path.name.split("-")[0] for path in found)

    fake(tmp_path, SNAPSHOT.format(file=str(seen)) + failing("disk_full", "Full."))
    taught, labels = patient(1, "CT")
    module.session.parameters.teachSegmentation = draw_segments(taught, labels)
    module.teach.ui.teachButton.click()
    first = told()
    assert (first[0], first[2]) == (False, True)
    module.teach.strip._again()
    assert told() == [True, first[1], True]
    assert len(left()) == 3  # the scan, the place of the model, the snapshot
    module.session.parameters.device = "cpu"
    module.teach.strip._again()
    assert told() == [False, first[1], True]
    module.teach.ui.teachButton.click()
    assert told()[0] is False
    assert len(left()) == 3
    module.cleanup()
    assert left() == []


def test_closing_slicer_leaves_no_file_of_a_patient_and_no_preview(
    imported: Any, patient: Callable[..., Any], tmp_path: Path
) -> None:
    """The engine is in the middle of it: `Job.kill` tells nobody."""
    import slicer

    library = imported.session.library.folder
    before = sorted(library.glob("*"))
    fake(tmp_path, PREVIEWING)
    taught, labels = patient(1, "CT")
    imported.session.parameters.teachSegmentation = draw_segments(taught, labels)
    imported.teach.ui.teachButton.click()
    wait(lambda: slicer.mrmlScene.GetFirstNodeByName("Preview"))
    imported.cleanup()
    assert slicer.mrmlScene.GetFirstNodeByName("Preview") is None
    assert sorted(library.glob("*")) == before
    imported.session.parameters.targets = [taught]
    imported.apply.apply()
    assert list(Path(slicer.app.temporaryPath).glob("HiEndMAE-*/scan.nii"))
    imported.cleanup()
    assert list(Path(slicer.app.temporaryPath).glob("HiEndMAE-*")) == []


PREVIEWING = """
import json, sys, time
from pathlib import Path
config = json.load(open(sys.argv[sys.argv.index("--config") + 1], encoding="utf-8"))
if "label" in config:
    Path(config["output"] + ".training").mkdir()
    print(json.dumps(dict(v=1, event="preview", path=config["label"][0])), flush=True)
time.sleep(100)
"""


def test_a_model_being_taught_keeps_its_place(
    module: Any, patient: Callable[..., Any], shared_model: Path, tmp_path: Path
) -> None:
    """Somebody's model of the same name is imported meanwhile: both are there in the end."""
    fake(tmp_path, LEARNED.format(model=str(shared_model)))
    taught, labels = patient(1, "CT")
    module.session.parameters.teachSegmentation = draw_segments(taught, labels)
    module.session.parameters.modelName = "Bauch"
    module.teach.ui.teachButton.click()
    imported = module.session.library.take_in(shared_model)
    wait(lambda: not module.session.busy)
    assert len(module.session.library.models()) == 2
    assert imported.path.name == "bauch-2"


def test_improve_learns_from_the_scan_that_was_taught(module: Any, patient: Callable[..., Any]) -> None:
    """Not from the one that the segmentation was drawn on; also where it was loaded from a file and names none."""
    from HiEndMAESegmentationLib.scene import nodes as scene

    drawn_on, labels = patient(1, "MR A")
    taught, _ = patient(1, "CT B")
    segmentation = draw_segments(drawn_on, labels)
    scene.mark_taught(segmentation, "m", taught)
    assert scene.taught_to("m") == [(taught, segmentation)]
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(None)
    assert scene.taught_to("m") == [(taught, segmentation)]


def test_a_corrected_teaching_scan_is_no_scan_that_was_left_out(
    imported: Any, patient: Callable[..., Any], shared_model: Path, tmp_path: Path
) -> None:
    """It is learned from as it was taught, and once; a scan that is not in the scene is told of."""
    from HiEndMAESegmentationLib.scene import nodes as scene

    fake(tmp_path, LEARNED.format(model=str(shared_model)))
    (model,) = imported.session.library.models()
    drawn_on, labels = patient(1, "MR A")
    taught, _ = patient(1, "CT B")
    segmentation = draw_segments(drawn_on, labels)
    scene.mark_taught(segmentation, model.key, taught)
    (chosen,) = imported.improve.teaching_set(model, segmentation)
    assert chosen[0] is taught
    imported.session.parameters.corrected = segmentation
    imported.improve.ui.improveButton.click()
    wait(lambda: not imported.session.busy)
    assert "has learned from the corrected scan" in message(imported.improve)
    assert "left out" not in message(imported.improve)

    segmentation.RemoveAttribute(scene.TAUGHT)  # as in a scene where the model was imported
    imported.improve.ui.improveButton.click()
    wait(lambda: not imported.session.busy)
    assert "1 of the 1 scans that it was taught on are not in this scene, and were left out." in message(
        imported.improve
    )


def test_a_shared_model_is_one_zip_and_replaces_nothing_unasked(imported: Any, tmp_path: Path) -> None:
    from HiEndMAECore.errors import InputError

    library = imported.session.library
    (model,) = library.models()
    assert library.share(model, tmp_path / "M.ZIP").is_file()
    (tmp_path / "mine.zip").write_bytes(b"something else")
    for name in ("mine", "M.ZIP"):
        with pytest.raises(InputError, match="already"):
            library.share(model, tmp_path / name)
    assert (tmp_path / "mine.zip").read_bytes() == b"something else"
    assert library.share(model, tmp_path / "M.zip") == tmp_path / "M.zip"  # the dialog has asked


def test_only_a_box_that_somebody_chose_crops(empty_scene: Any, patient: Callable[..., Any]) -> None:
    import slicer
    import vtk
    from HiEndMAESegmentationLib.scene import nodes as scene

    from HiEndMAECore.errors import InputError

    hidden = empty_scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Volume rendering")
    hidden.CreateDefaultDisplayNodes()
    hidden.GetDisplayNode().SetVisibility(False)
    assert scene.roi() is None
    volume, _ = patient(1, "CT")
    own = scene.make_roi(volume)
    assert scene.roi() is own
    scene.put_away(own)
    assert scene.roi() is None
    hidden.GetDisplayNode().SetVisibility(True)
    assert scene.roi() is hidden
    bend = empty_scene.AddNewNodeByClass("vtkMRMLTransformNode")
    warp = vtk.vtkThinPlateSplineTransform()
    warp.SetBasisToR()
    for places in (warp.SetSourceLandmarks, warp.SetTargetLandmarks):
        points = vtk.vtkPoints()
        for corner in ((0, 0, 0), (50, 0, 0), (0, 50, 0), (0, 0, 50), (50, 50, 50)):
            points.InsertNextPoint(*(part + 3 * (places is warp.SetTargetLandmarks) * (part > 0) for part in corner))
        places(points)
    bend.SetAndObserveTransformToParent(warp)
    volume.SetAndObserveTransformNodeID(bend.GetID())
    before = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")
    with pytest.raises(InputError, match="could not be cropped"):
        scene.crop(volume, own)
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == before


def test_a_scan_can_be_skipped_and_a_second_job_waits(
    imported: Any, patient: Callable[..., Any], tmp_path: Path
) -> None:
    fake(tmp_path, "import time; time.sleep(100)")
    imported.session.parameters.targets = [patient(seed, f"CT {seed}")[0] for seed in (1, 2)]
    imported.apply.ui.applyButton.click()
    imported.models.check_computer()
    assert "Another job is running" in message(imported.models)
    imported.apply.ui.skipButton.click()
    wait(lambda: [case.state for case in imported.apply.cases] == ["skipped", "running"])
    imported.apply.strip.ui.cancelButton.click()
    wait(lambda: not imported.session.busy)
    assert [case.state for case in imported.apply.cases] == ["skipped", "skipped"]


def test_preview_and_curve_appear_while_it_learns(module: Any, patient: Callable[..., Any], tmp_path: Path) -> None:
    """The preview is the engine's label map, shown with the taught names, and gone at the end."""
    import slicer

    taught, labels = patient(1, "CT")
    lines = f"""
import json, shutil, sys, time
config = json.load(open(sys.argv[sys.argv.index("--config") + 1], encoding="utf-8"))
preview = {str(tmp_path / "preview.nii")!r}
shutil.copy(config["label"][0], preview)
def say(**event): print(json.dumps(dict(v=1, **event)), flush=True)
say(event="progress", stage="learning", step=1, total=10, seconds_left=90.0, loss=2.0)
say(event="preview", path=preview)
say(event="metric", name="agreement", value=0.25, step=1)
say(event="warning", code="too_little_to_learn", message="Little.", advice="")
time.sleep(1.2)
say(event="progress", stage="learning", step=10, total=10, seconds_left=0.0, loss=1.0)
time.sleep(0.5)
say(event="failed", code="x", message="Enough.", advice="")
"""
    fake(tmp_path, lines)
    module.session.parameters.teachSegmentation = draw_segments(taught, labels)
    module.teach.ui.teachButton.click()
    wait(lambda: slicer.mrmlScene.GetFirstNodeByName("Preview") is not None)
    preview = slicer.mrmlScene.GetFirstNodeByName("Preview").GetSegmentation()
    assert [preview.GetNthSegment(index).GetName() for index in range(3)] == list(NAMES.values())
    assert module.teach.strip.ui.progressLabel.text == "Learning · 2 min left"
    wait(lambda: not module.session.busy)
    assert slicer.mrmlScene.GetFirstNodeByName("Preview") is None
    table = slicer.mrmlScene.GetFirstNode("HiEndMAE learning curve: loss", "vtkMRMLTableNode")
    assert [table.GetCellText(row, 1) for row in range(table.GetNumberOfRows())] == ["2", "1"]
    chart = slicer.mrmlScene.GetFirstNode("HiEndMAE learning curve", "vtkMRMLPlotChartNode")
    second = chart.GetNthPlotSeriesNode(1).GetTableNode()
    assert [second.GetCellText(0, column) for column in (0, 1)] == ["1", "0.25"]
    assert message(module.teach) == "Enough."


LEARNED = """
import json, sys, time, zipfile
config = json.load(open(sys.argv[sys.argv.index("--config") + 1], encoding="utf-8"))
time.sleep(0.5)
zipfile.ZipFile({model!r}).extractall(config["output"])
print(json.dumps(dict(v=1, event="preview", path=config["label"][0])), flush=True)
print(json.dumps(dict(v=1, event="finished", outputs={{}})), flush=True)
"""


@pytest.mark.parametrize("gone", ["scene", "scan", "segmentation"])
def test_learning_goes_on_without_its_nodes(
    gone: str, module: Any, patient: Callable[..., Any], shared_model: Path, tmp_path: Path
) -> None:
    """The scene is closed, or the scan or its labels are deleted: the engine has its files, the model is kept."""
    import slicer

    fake(tmp_path, LEARNED.format(model=str(shared_model)))
    taught, labels = patient(1, "CT")
    segmentation = draw_segments(taught, labels)
    module.session.parameters.teachSegmentation = segmentation
    module.teach.ui.teachButton.click()
    assert module.session.busy
    if gone == "scene":
        slicer.mrmlScene.Clear(0)
    else:
        slicer.mrmlScene.RemoveNode(taught if gone == "scan" else segmentation)
    wait(lambda: not module.session.busy)
    assert module.teach.strip.job.end.state == "finished"
    assert "has learned 3 structures" in message(module.teach)
    assert [model.name for model in module.session.library.models()] == ["Bauch"]
    assert module.apply.ui.modelCombo.currentText == "Bauch"
    assert slicer.mrmlScene.GetFirstNodeByName("Preview") is None
    if gone == "scene":
        assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLDisplayableNode") == 0


def test_a_scan_deleted_while_it_is_segmented(imported: Any, patient: Callable[..., Any], tmp_path: Path) -> None:
    import slicer

    fake(tmp_path, """import time; time.sleep(0.5); print('{"v": 1, "event": "finished", "outputs": {}}')""")
    volume, _ = patient(2, "CT 2")
    imported.session.parameters.targets = [volume]
    imported.apply.ui.applyButton.click()
    slicer.mrmlScene.RemoveNode(volume)
    wait(lambda: not imported.session.busy)
    assert [case.state for case in imported.apply.cases] == ["failed"]
    assert message(imported.apply) == "The scan was removed from the scene."
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


@pytest.mark.parametrize("source", ["print(chr(0) * 9000, '{', chr(0x1F9E0))", "import sys; sys.exit(7)"])
def test_an_engine_that_talks_rubbish_ends_in_a_sentence(
    source: str, imported: Any, patient: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a last event nothing was done. The log has all that was said, one click away."""
    import qt
    import slicer

    fake(tmp_path, source)
    imported.session.parameters.targets = [patient(2, "CT 2")[0]]
    imported.apply.ui.applyButton.click()
    wait(lambda: not imported.session.busy)
    assert message(imported.apply).startswith("The job was ended from outside before it was done.")
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0
    opened: list[str] = []
    monkeypatch.setattr(qt.QDesktopServices, "openUrl", lambda url: opened.append(url.toLocalFile()))
    imported.apply.strip.ui.logButton.click()
    assert Path(opened[0]).is_file()


def test_the_preview_of_a_large_scan_does_not_stop_slicer(
    empty_scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """79 million voxels: every third along each axis is shown, in place; its file is not held open meanwhile."""
    import time

    import numpy as np
    import slicer
    from HiEndMAESegmentationLib.scene import nodes as scene

    volume = empty_scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
    slicer.util.updateVolumeFromArray(volume, np.zeros((300, 512, 512), np.int8))
    volume.SetSpacing(0.8, 0.8, 1.0)
    array = np.zeros((300, 512, 512), np.int16)
    array[90:210, 100:401, 150:301] = 1
    with scene._temporary_label_map(volume, array) as node:
        scene.write_scan(node, tmp_path / "preview.nii")
    labels = [{"value": 1, "name": "a", "colour": [1, 2, 3]}]
    began = time.thread_time()
    preview = scene.show_preview(tmp_path / "preview.nii", volume, labels=labels, name="Preview")
    assert time.thread_time() - began < 0.1
    bounds = [0.0] * 6
    preview.GetRASBounds(bounds)
    wanted = [150 * 0.8, 300 * 0.8, 100 * 0.8, 400 * 0.8, 90.0, 209.0]
    np.testing.assert_allclose(bounds, wanted, atol=3)

    maps, show, mapped = Path("/proc/self/maps"), scene._show, []

    def look_and_show(*given: Any, **named: Any) -> Any:
        mapped.append(maps.is_file() and str(tmp_path / "preview.nii") in maps.read_text())
        return show(*given, **named)

    monkeypatch.setattr(scene, "_show", look_and_show)
    scene.show_preview(tmp_path / "preview.nii", volume, labels=labels, name="Preview")
    assert mapped == [False]


def test_the_curve_is_one_click_away(module: Any, tmp_path: Path, patient: Callable[..., Any]) -> None:
    """Whatever number the engine tells at a step becomes a curve; those of an earlier model are emptied."""
    import slicer
    from HiEndMAESegmentationLib.scene import nodes as scene

    scene.show_curves({"loss": [(1, 2.0)], "agreement": [(1, 0.5)]})
    scene.show_curves({"loss": [(1, 3.0)], "self_check": [(1, 0.25)], "learning_rate": [(1, 0.1)]})
    chart = slicer.mrmlScene.GetFirstNode(scene.CURVE, "vtkMRMLPlotChartNode")
    series = [chart.GetNthPlotSeriesNode(index) for index in range(chart.GetNumberOfPlotSeriesNodes())]
    rows = {one.GetName(): one.GetTableNode().GetNumberOfRows() for one in series}
    assert rows == {
        "loss": 1,
        "agreement with your labels (Dice)": 0,
        "self-check (Dice where it did not look)": 1,
        "learning rate": 1,
    }
    layout = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLayoutNode")
    view = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLPlotViewNode")
    view.SetAttribute("MappedInLayout", "1")
    fake(tmp_path, "import time; time.sleep(100)")
    taught, labels = patient(1, "CT")
    module.session.parameters.teachSegmentation = draw_segments(taught, labels)
    module.teach.ui.teachButton.click()
    assert module.teach.strip.ui.curveButton.isVisibleTo(module.parent)
    module.teach.strip.ui.curveButton.click()
    assert view.GetPlotChartNodeID() == chart.GetID(), layout
    module.teach.strip.cancel()
    wait(lambda: not module.session.busy)


def test_the_doctors_warnings_come_with_a_fix_in_words(module: Any, tmp_path: Path) -> None:
    """Not with the command lines that it gives to people at a terminal; what Slicer does not need is left out."""
    told = """
import json, sys
config = json.load(open(sys.argv[sys.argv.index("--config") + 1], encoding="utf-8"))
found = dict(devices=[dict(name="CPU")], cores=2, memory_gb=4.0, disk_free_gb=9.0)
json.dump(found, open(config["output"], "w"))
def say(**event): print(json.dumps(dict(v=1, **event)), flush=True)
say(event="warning", code="extra_missing", message="matplotlib is absent.", advice="pip install")
say(event="warning", code="torch_without_cuda", message="torch is for the CPU.", advice="x --force")
say(event="warning", code="driver_too_old", message="The driver is old.", advice="Update the NVIDIA driver.")
say(event="finished", outputs={})
"""
    fake(tmp_path, told)
    module.models.ui.doctorButton.click()
    wait(lambda: not module.session.busy)
    fix = "Open the module 'PyTorch Util', uninstall PyTorch, and install it again for the card."
    assert message(module.models).split("\n") == [
        "This computer can run HiEndMAE, on: CPU. It has 2 cores, 4.0 GB of memory, 9.0 GB of disk free.",
        f"torch is for the CPU. {fix}",
        "The driver is old. Update the NVIDIA driver.",
    ]


def test_structures_are_ticked_and_left_out(module: Any, patient: Callable[..., Any]) -> None:
    import qt

    taught, labels = patient(1, "CT (Müller)")
    assert "Choose the segmentation" in module.teach.ui.estimateLabel.text
    module.session.parameters.teachSegmentation = draw_segments(taught, labels)
    assert module.teach.ui.teachButton.enabled
    assert "Müller" not in module.teach.suggested_name()
    for row in range(3):
        module.teach.ui.segmentsList.item(row).setCheckState(qt.Qt.Unchecked)
    assert not module.teach.ui.teachButton.enabled
    assert "Tick at least one" in module.teach.ui.estimateLabel.text
    module.teach.ui.segmentsList.item(1).setCheckState(qt.Qt.Checked)
    assert len(module.teach.ticked()) == 1


# -- buttons of errors -------------------------------------------------------------------------------------------------

_NOTE_SPACING = """
import json, sys
from pathlib import Path
config = json.load(open(sys.argv[sys.argv.index("--config") + 1], encoding="utf-8"))
Path({file!r}).write_text(json.dumps(config.get("spacing")))
"""


def test_a_scan_too_large_for_teaching_is_tried_on_2_mm_then_cropped(
    module: Any, patient: Callable[..., Any], tmp_path: Path
) -> None:
    """One button after the other; the box lies around the segments, the cropped scan where the whole one was."""
    import numpy as np
    import slicer

    seen = tmp_path / "spacing"
    fake(tmp_path, _NOTE_SPACING.format(file=str(seen)) + failing("scan_too_large", "It needs 90 GB.", "--spacing"))
    taught, labels = patient(1, "CT")
    module.session.parameters.teachSegmentation = draw_segments(taught, labels)
    button = module.teach.strip.ui.actionButton
    module.teach.ui.teachButton.click()
    wait(lambda: not module.session.busy)
    assert (seen.read_text(), button.text) == ("null", "Use 2 mm")
    button.click()
    wait(lambda: not module.session.busy)
    assert (json.loads(seen.read_text()), button.text) == ([2.0, 2.0, 2.0], "Crop to the ROI")
    button.click()
    assert "Adjust the box" in message(module.teach)
    (box,) = slicer.util.getNodesByClass("vtkMRMLMarkupsROINode")
    box.SetSizeWorld(100.0, 100.0, 100.0)
    button.click()
    assert module.session.busy
    wait(lambda: not module.session.busy)
    cropped = module.session.parameters.teachVolume
    assert cropped.GetName() == "CT cropped"
    small, whole = (slicer.util.arrayFromVolume(node) for node in (cropped, taught))
    assert small.size < whole.size
    shift = np.array(cropped.GetOrigin()) - np.array(taught.GetOrigin())
    i, j, k = np.abs(np.round(shift / taught.GetSpacing())).astype(int)
    np.testing.assert_array_equal(small, whole[k : k + small.shape[0], j : j + small.shape[1], i : i + small.shape[2]])


def test_a_scan_too_large_to_segment_is_cropped(imported: Any, patient: Callable[..., Any], tmp_path: Path) -> None:
    """The model works on 8 mm already: 2 mm would be no help, and is not offered. A box elsewhere is refused."""
    import slicer

    fake(tmp_path, failing("scan_too_large", "It needs 90 GB.", "--spacing"))
    imported.session.parameters.targets = [patient(2, "CT 2")[0]]
    button = imported.apply.strip.ui.actionButton
    imported.apply.ui.applyButton.click()
    wait(lambda: not imported.session.busy)
    assert button.text == "Crop to the ROI"
    button.click()
    (box,) = slicer.util.getNodesByClass("vtkMRMLMarkupsROINode")
    centre = box.GetCenterWorld()
    box.SetCenterWorld(9000.0, 0.0, 0.0)
    button.click()
    assert "does not meet" in message(imported.apply)
    box.SetCenterWorld(centre)
    button.click()
    wait(lambda: not imported.session.busy)
    assert [case.name for case in imported.apply.cases] == ["CT 2 cropped"]
    assert [node.GetName() for node in imported.session.parameters.targets] == ["CT 2 cropped"]


def test_a_box_that_is_there_is_shown_before_it_crops(
    imported: Any, patient: Callable[..., Any], tmp_path: Path
) -> None:
    """It may be meant for something else. What was not tried yet is not cropped, and not forgotten."""
    import slicer

    fake(tmp_path, failing("out_of_memory", "Full."))
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
    assert "'Tumour bed'" in message(imported.apply)
    assert [case.name for case in imported.apply.cases] == ["CT 1", "CT 2"]
    button.click()
    wait(lambda: not imported.session.busy)
    assert [case.name for case in imported.apply.cases] == ["CT 1 cropped", "CT 2"]
    assert box.GetDisplayNode().GetVisibility()

    imported.session.parameters.teachSegmentation = draw_segments(*patient(1, "CT"))
    fake(tmp_path, failing("too_large", "It needs 90 GB."))
    imported.teach.ui.teachButton.click()
    wait(lambda: not imported.session.busy)
    imported.teach.strip.ui.actionButton.click()
    assert "'Tumour bed'" in message(imported.teach)
    assert imported.session.parameters.teachVolume.GetName() == "CT"
    slicer.mrmlScene.RemoveNode(box)
    imported.teach.strip.ui.actionButton.click()  # another box then
    assert "'HiEndMAE box'" in message(imported.teach)


# -- sample data -------------------------------------------------------------------------------------------------------


def test_a_sample_scan_is_offered_once_slicer_has_started(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a checksum, an icon that exists, and no download before a click; without the module SampleData, nothing."""
    import slicer

    slicer.app.startupCompleted.emit()
    offered: list[dict[str, Any]] = []
    samples = types.ModuleType("SampleData")
    register = staticmethod(lambda **given: offered.append(given))
    samples.SampleDataLogic = type("SampleDataLogic", (), {"registerCustomSampleDataSource": register})
    monkeypatch.setitem(sys.modules, "SampleData", samples)
    slicer.app.startupCompleted.emit()
    assert offered
    assert offered[0]["uris"].endswith(offered[0]["checksums"].removeprefix("SHA256:"))
    assert Path(offered[0]["thumbnailFileName"]).is_file()
