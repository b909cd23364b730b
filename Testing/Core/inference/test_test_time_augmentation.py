"""Test-time augmentation: averages with the mirrored scan, only for models that were trained on mirrored scans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from inference_helpers import make_predictor, segment_config, write_scan, write_untrained_model

from HiEndMAECore.inference.test_time_augmentation import mirrored_classes
from HiEndMAECore.io.readers import read_label_map
from HiEndMAECore.models.folder import read_description, read_weights, write_model
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.segment import run


@pytest.mark.parametrize("swaps", [[], [[3, 300]]])
def test_mirroring_a_mirrored_scan_gives_the_mirrored_logits(swaps: list[list[int]]) -> None:
    """The classes of a left/right pair change places."""
    predictor = make_predictor()
    predictor.description.training["mirroring"] = {"allowed": True, "swaps": swaps}  # type: ignore[index]
    order = [0, 2, 1] if swaps else [0, 1, 2]
    array = np.random.default_rng(1).random((1, 16, 16, 16), dtype=np.float32)
    averaged = predictor.logits(array, mirror=True)
    mirrored = predictor.logits(np.ascontiguousarray(array[:, ::-1]), mirror=True).flip(1)[order]
    torch.testing.assert_close(averaged, mirrored, atol=2e-2, rtol=1e-2)
    assert (predictor.logits(array) - averaged).abs().max() > 1e-3
    upside_down = predictor.logits(np.ascontiguousarray(array[..., ::-1]), mirror=True).flip(-1)
    assert (upside_down - averaged).abs().max() > 1e-3  # the other axes are not mirrored


def test_mirroring_is_ignored_where_the_model_does_not_allow_it(tmp_path: Path) -> None:
    model = write_untrained_model(tmp_path / "model")
    description = read_description(model)
    paired = [{"value": 3, "name": "left kidney"}, {"value": 9, "name": "right kidney"}]
    models = {  # (description, is it mirrored?)
        "no rules": (description, True),
        "no rules, lateral names": (replace(description, labels=paired), False),
        "swapped": (replace(description, training={"mirroring": {"allowed": True, "swaps": [[3, 9]]}}), True),
        "refused": (replace(description, training={"mirroring": {"allowed": False, "swaps": []}}), False),
    }
    scan = write_scan(tmp_path / "scan.nii.gz")
    run(segment_config(model, scan, tmp_path / "plain.nii.gz"), Reporter(quiet=True))
    plain = read_label_map(tmp_path / "plain.nii.gz", allow_empty=True).array
    for name, (changed, expected) in models.items():
        write_model(tmp_path / name, changed, read_weights(model, description))
        report = Reporter(quiet=True)
        run(segment_config(tmp_path / name, scan, tmp_path / f"{name}.nii.gz", mirror=True), report)
        assert ("mirror_confuses_sides" in {warning["code"] for warning in report.warnings}) != expected, name
        labels = read_label_map(tmp_path / f"{name}.nii.gz", allow_empty=True).array
        assert np.array_equal(labels, plain) != expected, name


def test_mirroring_rules_with_an_unknown_value_allow_no_mirroring(tmp_path: Path) -> None:
    """A file with such rules is refused on reading; a description in memory was not read from a file."""
    description = read_description(write_untrained_model(tmp_path / "model"))
    rules = {"mirroring": {"allowed": True, "swaps": [[3, 77]]}}
    assert mirrored_classes(replace(description, training=rules)) is None
