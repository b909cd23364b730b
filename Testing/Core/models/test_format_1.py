"""Files that version 0.1.0 wrote (commit 493a06a) are read, and give the results and losses that it computed.

`fixtures/format_1/README.md` says how they were made. Losses are compared with a relative tolerance, because their last bits
depend on the processor.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from HiEndMAECore import finetune, pretrain
from HiEndMAECore.data.crop_store import CropStore
from HiEndMAECore.inference.predictor import Predictor
from HiEndMAECore.io.readers import read_volume
from HiEndMAECore.models.folder import read_description
from HiEndMAECore.models.pretrained import read_pretrained
from HiEndMAECore.networks import variants
from HiEndMAECore.networks.variants import Variant
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.training import presets
from HiEndMAECore.training.presets import Preset
from HiEndMAECore.training.training_log import read_log

FORMAT_1 = Path(__file__).parents[1] / "fixtures" / "format_1"
# The models of the fixtures are smaller than every variant of the package.
TINY = Variant("fixture_tiny_4p", "fixture, tiny", (8, 8, 8), 4, 6, 4, 2, 6, 2, 3, "HybridUNETR")
MINIMAL = replace(TINY, name="fixture_minimal_4p", title="fixture, minimal", feature_size=1)


def expected(name: str) -> Any:
    return json.loads((FORMAT_1 / f"{name}_expected.json").read_text(encoding="utf-8"))


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


class StepRecorder(Reporter):
    """A reporter that records how many steps of training are done at each report."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.steps_done: list[int] = []

    def progress(self, stage: str, step: int, total: int, **values: Any) -> None:
        if stage in ("learning", "pretraining"):
            self.steps_done.append(step)
        super().progress(stage, step, total, **values)


@pytest.fixture(autouse=True)
def small_variants(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Register the variants of the fixtures, and compute with one thread as they did."""
    monkeypatch.setattr(variants, "_VARIANTS", (*variants._VARIANTS, TINY, MINIMAL))
    monkeypatch.setitem(presets.PRESETS, "cpu", Preset(TINY.name, 1, 1.5e6))
    option = next(item for item in fields(pretrain.PretrainConfig) if item.name == "variant")
    monkeypatch.setattr(option, "metadata", {**option.metadata, "choices": variants.list_vit_variants()})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def unpack(name: str, folder: Path) -> Path:
    """Unpack an archive of the fixtures and return the folder that it holds."""
    with tarfile.open(FORMAT_1 / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / name


@pytest.fixture
def store(tmp_path: Path) -> Path:
    pytest.importorskip("blosc2", reason="the store of the fixtures is compressed with blosc2")
    return shutil.copytree(FORMAT_1 / "store", tmp_path / "store")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a pretraining run that was cancelled after 6 of 12 steps."""
    return unpack("run", tmp_path)


def pretrain_config(store: Path, output: Path, **options: Any) -> pretrain.PretrainConfig:
    same: dict[str, Any] = {
        "variant": MINIMAL.name, "batch_size": 4, "workers": 0, "precision": "fp32", "device": "cpu", "seed": 0, "keep": 1,
    }  # fmt: skip
    return pretrain.PretrainConfig(data=store, output=output, **{**same, **options})


def finetune_config(output: Path, **options: Any) -> finetune.FinetuneConfig:
    image, label = FORMAT_1 / "small.nii.gz", FORMAT_1 / "small_truth.nii.gz"
    return finetune.FinetuneConfig(image=(str(image),), label=(label,), output=output, device="cpu", seed=0, **options)


def assert_losses(losses: list[tuple[int, float]], reference: list[list[float]]) -> None:
    assert [step for step, _ in losses] == [step for step, _ in reference]
    assert [loss for _, loss in losses] == pytest.approx([loss for _, loss in reference], rel=1e-4)


def assert_expected_dice(training: dict[str, Any], reference: dict[str, Any]) -> None:
    """Compare the performance estimates, in which a few voxels may depend on the processor."""
    assert training["self_check"]["mean"] == pytest.approx(reference["self_check"]["mean"], abs=0.005)


# -- models --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model", "model.zip"])
def test_model_segments_with_the_same_labels(name: str) -> None:
    predictor = Predictor.load(FORMAT_1 / name, device=torch.device("cpu"), exact=True)
    scan = read_volume(FORMAT_1 / "scan.nii.gz")
    result = predictor.segment(scan)
    reference = nib.load(FORMAT_1 / "scan_labels_fp32.nii.gz")
    assert np.array_equal(result.labels, np.asarray(reference.dataobj))
    assert sha256(result.labels.astype(np.uint8)) == expected("segment")["fp32"]["sha256"]
    np.testing.assert_array_equal(scan.affine.astype(np.float32), reference.affine.astype(np.float32))
    assert [(structure.value, structure.name, structure.color) for structure in predictor.structures] == [
        (3, "Leber ß", (221, 130, 80)),
        (12, "vertebral column", (241, 214, 120)),
    ]
    assert predictor.structures[0].terminology["type"]["CodeMeaning"] == "Liver"
    report = expected("segment")["fp32"]["report"]
    confidence = {row["value"]: row["confidence"] for row in report["structures"]}
    assert result.confidence == pytest.approx(confidence, abs=2e-4)  # stored with four digits
    assert result.review_slices == report["review_slices"]


def test_model_computes_the_same_logits() -> None:
    predictor = Predictor.load(FORMAT_1 / "model", device=torch.device("cpu"), exact=True)
    logits = predictor.logits(predictor.preprocess(read_volume(FORMAT_1 / "scan.nii.gz")).array)
    reference = expected("segment")["fp32"]
    assert list(logits.shape) == reference["logits_shape"]
    assert float(logits.abs().mean()) == pytest.approx(reference["logits_mean_abs"], rel=1e-4)


def test_model_keeps_its_digest() -> None:
    """Results are bound to their model by this digest; another one would make them all again."""
    digests = {read_description(FORMAT_1 / name).model_sha256 for name in ("model", "model.zip")}
    assert digests == {"ff1f792e3fed1c12112940688c774bb892713d5b996e18eee3ad708e6642dcca"}


def test_model_improves_with_the_same_losses(tmp_path: Path) -> None:
    finetune.run(finetune_config(tmp_path / "improved", improve=FORMAT_1 / "model", steps=8))
    improved = read_description(tmp_path / "improved")
    assert_losses(improved.training["losses"], expected("finetune")["improved"]["losses"])
    assert improved.labels == read_description(FORMAT_1 / "model").labels
    assert_expected_dice(improved.training, expected("finetune")["improved"])


# -- stores --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["store", "store_npy"])
def test_store_holds_the_same_scans(name: str) -> None:
    if name == "store":
        pytest.importorskip("blosc2")
    store, reference = CropStore.open(FORMAT_1 / name), expected("store")[name]
    assert store.digest == reference["digest"]
    assert [entry["name"] for entry in store.manifest["scans"]] == [scan["name"] for scan in reference["scans"]]
    for index, scan in enumerate(reference["scans"]):
        assert list(store.shape(index)) == scan["shape"]
        crop = store.crop(index, start=scan["crop"]["start"], size=scan["crop"]["size"])
        assert sha256(crop) == scan["crop"]["sha256_float32"]
        whole = store.crop(index, start=(0, 0, 0), size=store.shape(index))
        assert sha256(np.rint(whole * 255).astype(np.uint8)) == scan["voxels_sha256_uint8"]
        assert sha256(np.asarray(store.tissue(index))) == scan["tissue_sha256_int16"]


# -- training ------------------------------------------------------------------------------------------------------------


def test_pretraining_run_resumes_with_the_same_losses(run: Path, store: Path) -> None:
    report = StepRecorder()
    pretrain.run(pretrain_config(store, run, steps=12, learning_rate=0.003, resume=True), report)
    assert min(report.steps_done) == 6, "the first six steps are in the training checkpoint"
    reference, lines = expected("run"), read_log(run)
    for name, key in (("loss", "losses"), ("learning_rate", "learning_rates"), ("watch_loss", "watch_losses")):
        assert_losses([(line["step"], line[name]) for line in lines if name in line], reference["resumed"][key])
    assert read_description(run / "model").training["steps"] == 12


def test_pretraining_on_a_store_has_the_same_losses(store: Path, tmp_path: Path) -> None:
    pretrain.run(pretrain_config(store, tmp_path / "mae", objective="mae", steps=4, learning_rate=0.003))
    reference, lines = expected("run")["mae"], read_log(tmp_path / "mae")
    for name, key in (("loss", "losses"), ("watch_loss", "watch_losses")):
        assert_losses([(line["step"], line[name]) for line in lines if name in line], reference[key])


def test_pretraining_run_initializes_inpainting_with_the_same_losses(run: Path, store: Path, tmp_path: Path) -> None:
    config = pretrain_config(
        store, tmp_path / "inpainting", objective="inpainting", init=str(run), steps=4, learning_rate=0.002
    )
    pretrain.run(config)
    reference = expected("run")["started_from_run"]["inpainting"]
    lines = read_log(tmp_path / "inpainting")
    assert_losses([(line["step"], line["loss"]) for line in lines if "loss" in line], reference["losses"])
    assert read_description(tmp_path / "inpainting" / "model").training["init_sha256"] == reference["init_sha256"]


def test_pretraining_run_initializes_fine_tuning_with_the_same_losses(run: Path, tmp_path: Path) -> None:
    initial = read_pretrained(str(run))
    assert initial is not None
    assert (initial.network, initial.variant) == ("HiEndMAE", MINIMAL.name)
    finetune.run(finetune_config(tmp_path / "model", names=FORMAT_1 / "names.json", init=str(run), steps=8))
    model = read_description(tmp_path / "model")
    assert_losses(model.training["losses"], expected("finetune")["from_run"]["losses"])
    assert model.architecture["variant"] == MINIMAL.name
    assert_expected_dice(model.training, expected("finetune")["from_run"])


def test_fine_tuning_run_resumes_with_the_same_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "cpu", Preset(MINIMAL.name, 1, 1.5e6))
    unpack("tiny.training", tmp_path)
    report = StepRecorder()
    config = finetune_config(tmp_path / "tiny", names=FORMAT_1 / "names.json", init="none", steps=12, resume=True)
    finetune.run(config, report)
    assert min(report.steps_done) >= 5, "the first five steps are in the training checkpoint"
    assert "snapshot_unchecked" in [warning["code"] for warning in report.warnings]
    reference = expected("finetune")["resumed_from_tiny.training"]
    training = read_description(tmp_path / "tiny").training
    assert_losses(training["losses"], reference["losses"])
    assert_expected_dice(training, reference)
