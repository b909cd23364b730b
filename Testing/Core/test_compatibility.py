"""Names that scripts import and files that users have stay usable when the engine changes.

The files were written by version 0.1.0, see `fixtures/format_1/README.md`. Losses are compared to 1e-4, because the last
bits depend on the processor.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from bare_python import REPOSITORY

import HiEndMAECore
from HiEndMAECore.data.crop_store import CropStore
from HiEndMAECore.finetune import FinetuneConfig
from HiEndMAECore.finetune import run as finetune
from HiEndMAECore.inference.predictor import Predictor
from HiEndMAECore.io.readers import read_volume
from HiEndMAECore.models.folder import read_description
from HiEndMAECore.networks import variants
from HiEndMAECore.networks.variants import Variant
from HiEndMAECore.pretrain import PretrainConfig
from HiEndMAECore.pretrain import run as pretrain
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.training import presets
from HiEndMAECore.training.training_log import read_log

FIXTURES = Path(__file__).parent / "fixtures" / "format_1"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text(encoding="utf-8"))
# Sizes in the fixtures: crops of 8 voxels, patches of 4; only the width of the convolutions differs.
SIZES: dict[str, Any] = {
    "image_size": (8, 8, 8), "patch_size": 4, "encoder_dim": 6, "encoder_depth": 4, "encoder_heads": 2,
    "decoder_dim": 6, "decoder_heads": 2, "segmentation": "HybridUNETR",
}  # fmt: skip
TINY = Variant(name="fixture_tiny_4p", title="fixture, tiny", feature_size=3, **SIZES)
MINIMAL = Variant(name="fixture_minimal_4p", title="fixture, minimal", feature_size=1, **SIZES)

# -- names -----------------------------------------------------------------------------------------------------------------

# The public names of version 0.1.0 (commit 493a06a), and where they stand now.
OLD_NAMES = {
    "catalogue": {
        "CATALOGUE": "models.catalogue.CATALOGUE",
        "OURS": "models.catalogue.DEFAULT_WEIGHTS",
        "CatalogueEntry": "models.catalogue.CatalogueEntry",
        "check_known_file": "models.catalogue.check_known_file",
        "find_entry": "models.catalogue.find_entry",
        "in_the_box": "models.catalogue.packaged_weights",
    },
    "conversion": {
        "SUFFIXES": "models.conversion.SUFFIXES",
        "convert": "models.conversion.convert",
        "main": "models.conversion.main",
    },
    "model_folder": {
        "DESCRIPTION": "models.folder.DESCRIPTION",
        "FORMAT_VERSION": "models.description.FORMAT_VERSION",
        "KINDS": "models.description.KINDS",
        "ModelDescription": "models.description.ModelDescription",
        "WEIGHTS": "models.folder.WEIGHTS",
        "copy_model": "models.folder.copy_model",
        "is_model": "models.folder.is_model",
        "read_description": "models.folder.read_description",
        "read_weights": "models.folder.read_weights",
        "refuse_taken": "models.folder.check_output_free",
        "write_model": "models.folder.write_model",
    },
    "official": {
        "load_pretraining_state": "models.authors.load_pretraining_state",
        "load_strictly": "networks.transfer.load_strict",
        "read_authors_file": "models.authors.read_authors_checkpoint",
        "strip_wrapper": "models.authors.strip_module_prefix",
        "variant_of": "models.authors.infer_variant",
        "write_authors_file": "models.authors.write_authors_checkpoint",
    },
    "transfer": {
        "InitialWeights": "models.pretrained.PretrainedWeights",
        "inflate": "networks.transfer.inflate_input_weight",
        "read_initial": "models.pretrained.read_pretrained",
        "start_from": "models.pretrained.load_pretrained",
        "transfer_encoder": "models.pretrained.load_encoder",
    },
}


@pytest.mark.parametrize(
    ("module", "old", "new"), [(module, old, new) for module, names in OLD_NAMES.items() for old, new in names.items()]
)
def test_old_name_in_checkpoints_is_the_new_object(module: str, old: str, new: str) -> None:
    new_module, _, name = new.rpartition(".")
    expected = getattr(import_module(f"HiEndMAECore.{new_module}"), name)
    assert getattr(import_module(f"HiEndMAECore.checkpoints.{module}"), old) is expected


@pytest.mark.parametrize("module", OLD_NAMES)
def test_compatibility_module_exports_its_old_names_only(module: str) -> None:
    assert set(import_module(f"HiEndMAECore.checkpoints.{module}").__all__) == set(OLD_NAMES[module])


def test_conversion_runs_as_a_module_of_checkpoints() -> None:
    line = [sys.executable, "-m", "HiEndMAECore.checkpoints.conversion", "--help"]
    result = subprocess.run(line, capture_output=True, text=True, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    assert "usage:" in result.stdout
    assert "RuntimeWarning" not in result.stderr


def test_former_name_of_commands_is_the_same_object() -> None:
    assert HiEndMAECore.DOORS is HiEndMAECore.COMMANDS
    assert HiEndMAECore.COMMANDS[:5] == ("prepare", "pretrain", "finetune", "segment", "evaluate")


# -- files -----------------------------------------------------------------------------------------------------------------


class LossRecorder(Reporter):
    """A reporter that records (step, loss) of every training step that is taken."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.losses: list[tuple[int, float]] = []

    def progress(self, stage: str, step: int, total: int, **values: Any) -> None:
        if stage == "learning":
            self.losses.append((step, values["loss"]))
        super().progress(stage, step, total, **values)


@pytest.fixture
def tiny_variants(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Add the two variants of the fixtures, and compute on one thread."""
    monkeypatch.setattr(variants, "_VARIANTS", (*variants._VARIANTS, TINY, MINIMAL))
    option = PretrainConfig.__dataclass_fields__["variant"]
    monkeypatch.setattr(option, "metadata", MappingProxyType({**option.metadata, "choices": None}))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def store() -> Path:
    """Return the store in blosc2's format, which the pretraining run was trained on."""
    pytest.importorskip("blosc2", reason="blosc2 is an extra")
    return FIXTURES / "store"


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    """Return a copy of the pretraining run that was cancelled after 6 of 12 steps."""
    return unpack("run.tar.xz", tmp_path) / "run"


def unpack(archive: str, folder: Path) -> Path:
    with tarfile.open(FIXTURES / archive) as file:
        file.extractall(folder, filter="data")
    return folder


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def pretrain_config(store: Path, output: Path, **options: Any) -> PretrainConfig:
    """Return the options of the fixtures' pretraining runs."""
    values = {"steps": 4, "learning_rate": 3e-3, **options}
    return PretrainConfig(
        data=store, output=output, variant=MINIMAL.name, batch_size=4, workers=0, precision="fp32", device="cpu", seed=0,
        keep=1, **values,
    )  # fmt: skip


def finetune_config(output: Path, **options: Any) -> FinetuneConfig:
    """Return the options of the fixtures' fine-tuning runs."""
    image, label = str(FIXTURES / "small.nii.gz"), FIXTURES / "small_truth.nii.gz"
    return FinetuneConfig(image=(image,), label=(label,), output=output, device="cpu", seed=0, **options)


def assert_log_is(folder: Path, expected: dict[str, Any]) -> None:
    """Check the losses and learning rates in the log of a pretraining run."""
    lines = read_log(folder)
    for key, name in {"losses": "loss", "validation_losses": "watch_loss", "learning_rates": "learning_rate"}.items():
        if key in expected:
            logged = [[line["step"], line[name]] for line in lines if name in line]
            assert [step for step, _ in logged] == [step for step, _ in expected[key]]
            np.testing.assert_allclose(logged, expected[key], rtol=1e-4, err_msg=name)


def assert_fine_tuned_as(model: Path, report: LossRecorder, expected: dict[str, Any], *, first: int = 1) -> None:
    """Check the losses from step `first` as they were reported, all losses in the model's card, and the expected Dice."""
    np.testing.assert_allclose(report.losses, expected["losses"][first - 1 :], rtol=1e-4)
    training = read_description(model).training
    np.testing.assert_allclose(training["losses"], expected["losses"], rtol=1e-4, atol=5e-5)  # rounded to four digits
    assert training["self_check"]["mean"] == pytest.approx(expected["expected_dice"], abs=0.005)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_model_segments_as_before(kind: str, tmp_path: Path) -> None:
    path = FIXTURES / "model.zip"
    if kind == "folder":
        path = tmp_path / "model"
        shutil.unpack_archive(FIXTURES / "model.zip", path)
    predictor = Predictor.load(path, device=torch.device("cpu"), exact=True)
    assert (predictor.description.name, predictor.description.format_version) == ("Léber – fixture", 1)
    assert [(s.value, s.name) for s in predictor.structures] == [(3, "Leber ß"), (12, "vertebral column")]
    result = predictor.segment(read_volume(FIXTURES / "scan.nii.gz"))
    stored = np.asarray(nib.load(FIXTURES / "scan_labels.nii.gz").dataobj)
    assert result.labels.dtype == stored.dtype
    np.testing.assert_array_equal(result.labels, stored)
    expected = EXPECTED["segmentation"]
    assert result.confidence == pytest.approx({int(v): c for v, c in expected["confidence"].items()}, abs=2e-4)
    assert result.review_slices == expected["review_slices"]


@pytest.mark.parametrize("name", EXPECTED["stores"])
def test_store_has_the_same_digest_and_voxels(name: str) -> None:
    if name == "store":
        pytest.importorskip("blosc2", reason="blosc2 is an extra")
    store, expected = CropStore.open(FIXTURES / name), EXPECTED["stores"][name]
    assert store.digest == expected["digest"]
    assert [scan["name"] for scan in store.manifest["scans"]] == [scan["name"] for scan in expected["scans"]]
    for index, scan in enumerate(expected["scans"]):
        shape = store.shape(index)
        assert list(shape) == scan["shape"]
        voxels = np.rint(store.crop(index, start=(0, 0, 0), size=shape) * 255).astype(np.uint8)
        assert sha256(voxels) == scan["voxels_sha256"]
        assert sha256(store.crop(index, start=(-2, 3, 5), size=(8, 8, 8))) == scan["crop_sha256"]  # partly outside
        assert sha256(np.asarray(store.tissue(index))) == scan["tissue_sha256"]


@pytest.mark.usefixtures("tiny_variants")
def test_pretraining_run_resumes_with_the_same_losses(store: Path, run_directory: Path) -> None:
    assert len([line for line in read_log(run_directory) if "loss" in line]) == 6
    pretrain(pretrain_config(store, run_directory, steps=12, resume=True))
    assert_log_is(run_directory, EXPECTED["pretraining"]["resumed"])


@pytest.mark.usefixtures("tiny_variants")
def test_pretraining_on_a_store_has_the_same_losses(store: Path, tmp_path: Path) -> None:
    pretrain(pretrain_config(store, tmp_path / "mae", objective="mae"))
    assert_log_is(tmp_path / "mae", EXPECTED["pretraining"]["mae"])


@pytest.mark.usefixtures("tiny_variants")
def test_inpainting_from_a_pretraining_run_has_the_same_losses(store: Path, run_directory: Path) -> None:
    output = run_directory.with_name("inpainting")
    options = {"objective": "inpainting", "init": str(run_directory), "learning_rate": 2e-3}
    pretrain(pretrain_config(store, output, **options))
    assert_log_is(output, EXPECTED["pretraining"]["inpainting_from_run"])


@pytest.mark.usefixtures("tiny_variants")
def test_fine_tuning_run_resumes_with_the_same_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stored digest of settings and voxels has to be computed as before, or the checkpoint is refused."""
    monkeypatch.setitem(presets.PRESETS, "cpu", presets.Preset(MINIMAL.name, 1, 1.5e6))
    output, report = unpack("tiny.training.tar.xz", tmp_path) / "tiny", LossRecorder()
    finetune(finetune_config(output, names=FIXTURES / "names.json", init="none", steps=12, resume=True), report)
    assert_fine_tuned_as(output, report, EXPECTED["finetuning"]["resumed"], first=6)  # the checkpoint has five steps


@pytest.mark.usefixtures("tiny_variants")
def test_fine_tuning_from_a_pretraining_run_has_the_same_losses(run_directory: Path) -> None:
    output, report = run_directory.with_name("model"), LossRecorder()
    finetune(finetune_config(output, names=FIXTURES / "names.json", init=str(run_directory), steps=8), report)
    assert_fine_tuned_as(output, report, EXPECTED["finetuning"]["from_run"])


@pytest.mark.usefixtures("tiny_variants")
def test_improving_a_model_has_the_same_losses(tmp_path: Path) -> None:
    output, report = tmp_path / "model", LossRecorder()
    finetune(finetune_config(output, improve=FIXTURES / "model.zip", steps=8), report)
    assert_fine_tuned_as(output, report, EXPECTED["finetuning"]["improved"])
