"""The panel Train: weights to start from, and structures to train on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_engines import OPTIONS_WRITER, failing_engine, use_fake_engine
from module_help import draw_segments, wait


def test_start_list_offers_packaged_weights_first(
    imported: Any, shared_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scene stores the name of packaged weights, and the engine gets their path."""
    from HiEndMAECore.models import catalogue

    folder = tmp_path / catalogue.DEFAULT_WEIGHTS
    monkeypatch.setattr(catalogue, "_PACKAGED", tmp_path)
    imported.session.models_changed()
    combo = imported.train.ui.startCombo
    assert (combo.currentText, imported.train.start()) == ("Nothing (train from scratch)", "none")
    shutil.unpack_archive(shared_model, folder)
    imported.session.models_changed()
    assert combo.currentText == catalogue.find_entry(catalogue.DEFAULT_WEIGHTS).title
    assert imported.train.start() == str(folder)
    assert [combo.itemText(row) for row in range(combo.count)][1:3] == ["Nothing (train from scratch)", "Bauch"]
    imported.session.parameters.start = "none"
    assert imported.train.start() == "none"
    imported.session.parameters.start = catalogue.DEFAULT_WEIGHTS
    assert imported.train.start() == str(folder)
    imported.session.parameters.start = "weights of another computer"
    assert imported.train.start() == str(folder)
    assert "hi_end_mae_10k.pth" in combo.toolTip


def test_unticked_structures_are_excluded(module: Any, patient: Callable[..., Any]) -> None:
    import qt

    labelled, labels = patient(1, "CT (Müller)")
    assert "Choose the segmentation" in module.train.ui.estimateLabel.text
    module.session.parameters.teachSegmentation = draw_segments(labelled, labels)
    assert module.train.ui.trainButton.enabled
    assert "Müller" not in module.train.suggested_name()
    for row in range(3):
        module.train.ui.segmentsList.item(row).setCheckState(qt.Qt.Unchecked)
    assert not module.train.ui.trainButton.enabled
    assert "Tick at least one" in module.train.ui.estimateLabel.text
    module.train.ui.segmentsList.item(1).setCheckState(qt.Qt.Checked)
    assert len(module.train.ticked_segments()) == 1


@pytest.mark.parametrize("keep", [True, False])
def test_atlas_is_left_out_of_new_models_if_it_is_unticked(
    keep: bool, imported: Any, patient: Callable[..., Any], tmp_path: Path
) -> None:
    """It is kept by default, and *Improve* follows the same choice."""
    note = tmp_path / "options.json"
    use_fake_engine(tmp_path, OPTIONS_WRITER.format(file=str(note)) + failing_engine("x"))
    labelled, labels = patient(1, "CT")
    imported.session.parameters.teachSegmentation = draw_segments(labelled, labels)
    imported.session.parameters.corrected = imported.session.parameters.teachSegmentation
    assert imported.train.ui.atlasCheck.checked
    imported.train.ui.advancedSection.collapsed = False
    imported.train.ui.atlasCheck.checked = keep
    for button in (imported.train.ui.trainButton, imported.refine.ui.refineButton):
        button.click()
        wait(lambda: not imported.session.busy)
        assert json.loads(note.read_text(encoding="utf-8"))["no_atlas"] is not keep
        note.unlink()
