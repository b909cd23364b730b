"""The panel Improve: which training cases it uses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fake_engines import TRAINED_ENGINE, use_fake_engine
from module_help import draw_segments, message_of, wait


def test_corrected_training_case_is_used_once_and_absent_ones_are_reported(
    imported: Any, patient: Callable[..., Any], shared_model: Path, tmp_path: Path
) -> None:
    """A corrected training case is used with its training scan; a message names cases that are not in the scene."""
    from HiEndMAESegmentationLib.scene import provenance

    use_fake_engine(tmp_path, TRAINED_ENGINE.format(model=str(shared_model)))
    (model,) = imported.session.library.models()
    drawn_on, labels = patient(1, "MR A")
    training_scan, _ = patient(1, "CT B")
    segmentation = draw_segments(drawn_on, labels)
    provenance.mark_as_training_case(segmentation, model.key, training_scan)
    (case,) = imported.refine.training_cases(model, segmentation)
    assert case[0] is training_scan
    imported.session.parameters.corrected = segmentation
    imported.refine.ui.refineButton.click()
    wait(lambda: not imported.session.busy)
    assert "was trained on the corrected scan" in message_of(imported.refine)
    assert "not in this scene" not in message_of(imported.refine)

    segmentation.RemoveAttribute(provenance.TRAINED_MODELS_ATTRIBUTE)  # as in a scene where the model was imported
    imported.refine.ui.refineButton.click()
    wait(lambda: not imported.session.busy)
    message = "1 of the 1 scans that it was trained on are not in this scene, and were not used."
    assert message in message_of(imported.refine)
