"""The panel of models: card, rename, share, delete, import, unreadable models, and the check of the computer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_engines import use_fake_engine
from module_help import BAD_VALUES, NAMES, add_model, add_model_without_atlas, message_of, wait


def test_models_panel_after_import_shows_the_card(imported: Any) -> None:
    card = imported.models.ui.cardLabel.text
    for name in NAMES.values():
        assert name in card
    assert "1 scan, 3 steps" in card
    assert "-175 to 250 HU" in card
    assert "label map, edges and tissue classes of the labelled scan, no intensities" in card
    assert imported.apply.ui.modelCombo.currentText == "Bauch"
    assert imported.train.ui.startCombo.findText("Bauch") >= 0


def test_models_panel_renames_a_model_in_the_list(imported: Any) -> None:
    imported.models.ui.modelsList.currentItem().setText("Bauch  Ä")
    assert [model.name for model in imported.session.library.models()] == ["Bauch Ä"]
    assert imported.apply.ui.modelCombo.currentText == "Bauch Ä"
    imported.models.ui.modelsList.currentItem().setText(" ")
    assert "needs a name" in message_of(imported.models)
    assert imported.models.ui.modelsList.item(0).text() == "Bauch Ä"


def test_shared_model_imported_again_has_the_same_weights(
    imported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import qt

    file = tmp_path / "für Kollegin Ä"
    monkeypatch.setattr(qt.QFileDialog, "getSaveFileName", lambda *_: str(file))
    monkeypatch.setattr(qt.QMessageBox, "question", lambda *_: qt.QMessageBox.No)
    imported.models.ui.shareButton.click()
    assert "no patient data" in message_of(imported.models)
    monkeypatch.setattr(qt.QFileDialog, "getOpenFileName", lambda *_: f"{file}.zip")
    imported.models.ui.importButton.click()
    first, second = imported.session.library.models()
    assert (first.name, second.name) == ("Bauch", "Bauch 2")
    assert first.description.weights_sha256 == second.description.weights_sha256
    assert imported.models.chosen().name == "Bauch 2"


@pytest.mark.parametrize("answer", ["No", "Yes", "Cancel"])
def test_share_asks_whether_to_include_the_atlas(
    answer: str, imported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default is to leave it out, and the message after sharing is true of what is in the file."""
    import qt

    from HiEndMAECore.models import folder

    questions: list[Any] = []

    def question(*arguments: Any) -> Any:
        questions.append(arguments)
        return getattr(qt.QMessageBox, answer)

    file = tmp_path / "model.zip"
    monkeypatch.setattr(qt.QFileDialog, "getSaveFileName", lambda *_: str(file))
    monkeypatch.setattr(qt.QMessageBox, "question", question)
    imported.models.strip.show_message("")
    imported.models.ui.shareButton.click()
    ((_parent, _title, text, _buttons, default),) = questions
    assert "no intensities; it shows the shapes of organs and the body's outline" in text
    assert default == qt.QMessageBox.No
    if answer == "Cancel":
        assert (file.exists(), message_of(imported.models)) == (False, "")
        return
    assert len(folder.read_description(file).atlas) == (1 if answer == "Yes" else 0)
    message = message_of(imported.models)
    assert ("no image and no patient data" in message, "was left out" in message) == (answer == "No", answer == "No")
    assert ("the body's outline" in message) == (answer == "Yes")


def test_share_of_a_model_without_atlas_asks_nothing(
    module: Any, shared_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import qt

    add_model_without_atlas(module.session.library, shared_model)
    module.session.models_changed()
    monkeypatch.setattr(qt.QFileDialog, "getSaveFileName", lambda *_: str(tmp_path / "model.zip"))
    monkeypatch.setattr(qt.QMessageBox, "question", lambda *_: pytest.fail("there is nothing to ask"))
    module.models.ui.shareButton.click()
    assert message_of(module.models).endswith("no image and no patient data.")
    assert "Atlas" not in module.models.ui.cardLabel.text


def test_models_panel_deletes_only_after_confirmation(imported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import slicer.util

    answers = iter([False, True])
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda *_, **__: next(answers))
    imported.models.ui.deleteButton.click()
    assert len(imported.session.library.models()) == 1
    imported.models.ui.deleteButton.click()
    assert imported.session.library.models() == []
    assert not imported.models.ui.shareButton.enabled
    assert "No model yet" in imported.models.ui.cardLabel.text


def test_import_of_a_file_without_a_model_shows_a_message(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import qt

    (tmp_path / "x.zip").write_bytes(b"nothing")
    monkeypatch.setattr(qt.QFileDialog, "getOpenFileName", lambda *_: str(tmp_path / "x.zip"))
    module.models.ui.importButton.click()
    assert "There is no model" in message_of(module.models)


@pytest.mark.parametrize(
    ("estimate", "expected"),
    [
        (None, ""),
        ({"mean": None, "structures": []}, ""),
        (
            {"mean": 0.5, "error": 0.07},
            "expect a Dice of about 0.50 on other scans (± 0.07 for a structure, as measured on head-and-neck CT)",
        ),
        (
            {
                "mean": 0.75,
                "calibrated": False,
                "structures": [{"name": "liver", "expected": 0.75}, {"name": "spleen", "expected": None}],
            },
            "expect a Dice of about 0.75 on other scans (an estimate that was not tested on patients): liver 0.75",
        ),
    ],
)
def test_expected_dice_text_states_mean_error_and_structures(module: Any, estimate: Any, expected: str) -> None:
    from HiEndMAESegmentationLib.panels.model_card import expected_dice_text

    assert expected_dice_text({"self_check": estimate}) == expected


@pytest.mark.usefixtures("engine")
def test_check_this_computer_shows_a_sentence(module: Any) -> None:
    module.models.ui.doctorButton.click()
    wait(lambda: not module.session.busy)
    assert message_of(module.models).startswith("This computer can run HiEndMAE, on: ")


def test_doctor_warnings_give_advice_without_command_lines(module: Any, tmp_path: Path) -> None:
    """Advice with command lines is replaced, and warnings on what Slicer does not need are not shown."""
    engine = """
import json, sys
config = json.load(open(sys.argv[sys.argv.index("--config") + 1], encoding="utf-8"))
findings = dict(devices=[dict(name="CPU")], cores=2, memory_gb=4.0, disk_free_gb=9.0)
json.dump(findings, open(config["output"], "w"))
def send(**event): print(json.dumps(dict(v=1, **event)), flush=True)
send(event="warning", code="extra_missing", message="matplotlib is absent.", advice="pip install")
send(event="warning", code="torch_without_cuda", message="torch is for the CPU.", advice="x --force")
send(event="warning", code="driver_too_old", message="The driver is old.", advice="Update the NVIDIA driver.")
send(event="finished", outputs={})
"""
    use_fake_engine(tmp_path, engine)
    module.models.ui.doctorButton.click()
    wait(lambda: not module.session.busy)
    advice = "Open the module 'PyTorch Util', uninstall PyTorch, and install it again for the card."
    assert message_of(module.models).split("\n") == [
        "This computer can run HiEndMAE, on: CPU. It has 2 cores, 4.0 GB of memory, 9.0 GB of disk free.",
        f"torch is for the CPU. {advice}",
        "The driver is old. Update the NVIDIA driver.",
    ]


def test_module_opens_with_bad_models_and_lists_them_with_their_reasons(
    imported: Any, shared_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bad models can be deleted, but neither renamed, shared nor chosen anywhere; the readable one stays usable."""
    import slicer.util

    from HiEndMAESegmentation import HiEndMAESegmentationWidget

    library = imported.session.library
    for key, (path, value) in BAD_VALUES.items():
        add_model(library, shared_model, key.replace(" ", "-"), path, value)
    parent = slicer.qMRMLWidget()
    parent.setLayout(qt_layout())
    parent.setMRMLScene(slicer.mrmlScene)
    module = HiEndMAESegmentationWidget(parent)
    module.setup()
    try:
        panel = module.models
        assert panel.ui.modelsList.count == 1 + len(BAD_VALUES)
        assert module.apply.ui.modelCombo.count == 1
        assert [module.train.ui.startCombo.findText(key.replace(" ", "-")) for key in BAD_VALUES] == [-1] * len(
            BAD_VALUES
        )
        monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda *_, **__: True)
        for key, (path, value) in BAD_VALUES.items():
            panel.choose(key.replace(" ", "-"))
            assert panel.ui.modelsList.currentItem().text() == f"{key.replace(' ', '-')} (unreadable)"
            assert "model" in panel.ui.cardLabel.text, (path, value)
            enabled = [panel.ui.deleteButton.enabled, panel.ui.renameButton.enabled, panel.ui.shareButton.enabled]
            assert enabled == [True, False, False]
        panel.choose("color-text")
        assert "'labels[0].colour' is 'red', must be three whole numbers from 0 to 255" in panel.ui.cardLabel.text
        panel.ui.deleteButton.click()
        assert "'color-text' was deleted." in message_of(panel)
        assert panel.ui.modelsList.count == len(BAD_VALUES)
    finally:
        module.cleanup()


def qt_layout() -> Any:
    """Return a layout for the module's parent widget."""
    import qt

    return qt.QVBoxLayout()
