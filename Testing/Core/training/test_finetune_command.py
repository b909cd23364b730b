"""The command `finetune` on all kinds of label maps: many structures, tiny and huge ones, two channels, real scans."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from HiEndMAECore import finetune
from HiEndMAECore.errors import InputError, UsageError
from HiEndMAECore.inference.predictor import Predictor
from HiEndMAECore.io.readers import read_volume
from HiEndMAECore.models.folder import read_description
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.training import finetuning, machine_plan, presets

SHAPE = (30, 28, 26)
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])


def scan(channels: int = 1) -> list[np.ndarray]:
    """Return the channels of a body of soft tissue in air, in HU; each channel has its own offset."""
    rng = np.random.default_rng(0)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    body = np.where((x / 0.9) ** 2 + (y / 0.8) ** 2 < 1, 40.0 + 60 * np.sin(3 * z + 2 * x), -1000.0)
    return [body + rng.normal(0, 10, SHAPE) + 100 * index for index in range(channels)]


def blocks(count: int) -> np.ndarray:
    """Return a label map with `count` structures side by side, each a block of about 4 x 4 x 4 voxels."""
    labels = np.zeros(SHAPE, np.int16)
    corners = [(x, y, z) for z in range(2, 24, 5) for y in range(6, 22, 5) for x in range(5, 25, 5)]
    for value, (x, y, z) in enumerate(corners[:count], start=1):
        labels[x : x + 4, y : y + 4, z : z + 4] = value
    return labels


def cuboid(*edges: slice) -> np.ndarray:
    labels = np.zeros(SHAPE, np.int16)
    labels[edges] = 1
    return labels


def with_tiny_structure() -> np.ndarray:
    labels = blocks(2)
    labels[20:25, 20:22, 20:22] = 3  # twenty voxels
    return labels


def with_gaps_in_the_values() -> np.ndarray:
    return np.array([0, 3, 7, 1000, 250], np.int16)[blocks(4)]


LABELS = {
    "1 structure": blocks(1),
    "3 structures": blocks(3),
    "7 structures": blocks(7),
    "61 structures": blocks(61),
    "20 voxels": with_tiny_structure(),
    "half the volume": cuboid(slice(0, 15)),
    "one voxel thick": cuboid(slice(5, 25), slice(6, 20), slice(12, 13)),
    "touching the border": cuboid(slice(0, 6), slice(0, 28), slice(20, 26)),
    "gaps in the label values": with_gaps_in_the_values(),
    "one voxel": cuboid(slice(10, 11), slice(10, 11), slice(10, 11)),
    "everything": cuboid(slice(0, 30)),
}


def write(folder: Path, name: str, array: np.ndarray) -> Path:
    path = folder / f"{name}.nii.gz"
    nib.save(nib.Nifti1Image(array.astype(np.int16 if array.dtype == np.int16 else np.float32), AFFINE), path)
    return path


def train(folder: Path, images: list[Path], labels: Path, **options: Any) -> Any:
    """Train a few steps on one case; return the description of the model."""
    config: dict[str, Any] = {"steps": 2, "device": "cpu", "output": folder / "model", **options}
    finetune.run(finetune.FinetuneConfig(image=(",".join(map(str, images)),), label=(labels,), **config))
    return read_description(config["output"])


def segment(model: Path, images: list[Path]) -> np.ndarray:
    import torch

    return Predictor.load(model, device=torch.device("cpu")).segment(read_volume(images)).labels


@pytest.mark.parametrize("kind", LABELS)
def test_finetune_trains_and_segments_any_kind_of_label_map(kind: str, tmp_path: Path) -> None:
    labels = LABELS[kind]
    values = sorted(set(np.unique(labels).tolist()) - {0})
    image = write(tmp_path, "scan", scan()[0])
    description = train(tmp_path, [image], write(tmp_path, "labels", labels))
    assert [label["value"] for label in description.labels] == values
    assert description.architecture["arguments"]["classes"] == len(values) + 1
    estimates = description.training["self_check"]["structures"]
    assert [estimate["value"] for estimate in estimates] == values
    few = {value for value in values if (labels == value).sum() < 20}
    assert {e["value"] for e in estimates if e["note"] == "too little to learn from"} >= few
    assert all((estimate["expected"] is None) == bool(estimate["note"]) for estimate in estimates)
    prediction = segment(tmp_path / "model", [image])
    assert prediction.shape == SHAPE
    assert set(np.unique(prediction).tolist()) <= {0, *values}


def test_finetune_refuses_cases_that_do_not_fit_together(tmp_path: Path) -> None:
    images = [write(tmp_path, f"ct_{index}", channel) for index, channel in enumerate(scan(3))]
    labels = [write(tmp_path, name, blocks(2)) for name in ("one", "other")]
    for first in (f"{images[0]},{images[1]}", str(images[2])):
        second = str(images[2]) if "," in first else f"{images[0]},{images[1]}"
        config = finetune.FinetuneConfig(image=(first, second), label=tuple(labels), output=tmp_path / "m", steps=1)
        with pytest.raises(InputError, match=r"channel\(s\)"):
            finetune.run(config)
    with pytest.raises(InputError, match="like those of a scan"):
        train(tmp_path, images[:1], write(tmp_path, "mr", np.rint(np.abs(scan()[0]))))
    nib.save(nib.Nifti1Image(blocks(1).astype(np.int32) * 100_000, AFFINE), tmp_path / "high.nii.gz")
    with pytest.raises(InputError, match="65535"):
        train(tmp_path, images[:1], tmp_path / "high.nii.gz")
    with pytest.raises(UsageError, match="--seed is -1"):
        train(tmp_path, images[:1], labels[0], seed=-1)


def test_finetune_warns_about_a_structure_outside_the_body(tmp_path: Path) -> None:
    """The structure lies in a separate part, which the body's bounding box leaves out."""
    apart = np.full((60, 28, 26), -1000.0)
    apart[:30], drawn = scan()[0], np.zeros((60, 28, 26), np.int16)
    apart[50:54, 10:14], drawn[50:54, 10:14], drawn[10:14, 10:14] = 40.0, 2, 1
    image, label = write(tmp_path, "arm", apart), write(tmp_path, "drawn", drawn)
    report = Reporter(quiet=True)
    settings = {"output": tmp_path / "m", "steps": 1, "device": "cpu"}
    finetune.run(finetune.FinetuneConfig(image=(str(image),), label=(label,), **settings), report)  # type: ignore[arg-type]
    messages = {warning["code"]: warning["message"] for warning in report.warnings}
    assert "structure 2 lies outside" in messages["labels_outside_body"]


def test_finetune_trains_on_two_channels(tmp_path: Path) -> None:
    images = [write(tmp_path, f"mr_000{index}", channel) for index, channel in enumerate(scan(2))]
    description = train(tmp_path, images, write(tmp_path, "labels", blocks(3)))
    assert len(description.channels) == description.architecture["arguments"]["in_channels"] == 2
    assert description.preparation["normalisation"]["kind"] == "percentiles"
    assert segment(tmp_path / "model", images).shape == SHAPE


def test_finetune_trains_a_pretrained_encoder_at_a_lower_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates, run_loop = {}, finetuning.finetune
    for init in ("hi-end-mae-tiny", "none"):

        def record_rate(*args: Any, init: str = init, **options: Any) -> Any:
            rates[init] = options["plan"].encoder_rate
            return run_loop(*args, **options)

        monkeypatch.setattr(finetuning, "finetune", record_rate)
        image, labels = write(tmp_path, "scan", scan()[0]), write(tmp_path, "labels", blocks(1))
        train(tmp_path, [image], labels, init=init, output=tmp_path / init, steps=1)
    assert rates["hi-end-mae-tiny"] < 0.5 * rates["none"]


def test_model_card_says_why_mirroring_is_off(tmp_path: Path) -> None:
    image = write(tmp_path, "scan", scan()[0])
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"labels": {"liver": 1}}))
    description = train(tmp_path, [image], write(tmp_path, "labels", blocks(1)), names=names)
    assert description.training["mirroring"] == {
        "allowed": False,
        "swaps": [],
        "reason": "off: 'liver' lies on one side of the body",
    }


def test_finetune_on_a_slow_processor_trains_the_cheaper_preset_and_states_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processor's speed is a stand-in; the budget of a minute is shortened."""
    monkeypatch.setattr(presets, "MIN_STEPS", 10**6)
    monkeypatch.setattr(machine_plan, "MIN_STEPS", 10**6)
    monkeypatch.setitem(finetune.BUDGETS, "1min", 8.0)
    image, labels = write(tmp_path, "scan", scan()[0]), write(tmp_path, "labels", blocks(2))
    config = finetune.FinetuneConfig(
        image=(str(image),), label=(labels,), output=tmp_path / "model", budget="1min", device="cpu"
    )
    finetune.run(config)
    description = read_description(tmp_path / "model")
    assert description.architecture["network"] == "ResUNet"
    assert description.training["preset"] == "auto"
    assert description.training["machine_plan"]["preset"] == "cpu-slow"
    assert description.training["machine_plan"]["steps_a_minute"] > 0
    assert segment(tmp_path / "model", [image]).shape == SHAPE


def test_finetune_with_the_paper_preset_trains_on_a_share_of_a_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The paper's large network is replaced by a small one."""
    small = replace(presets.PRESETS["paper-one-shot"], variant="hi_end_mae_vit_tiny_8p", spacing=(4.0, 4.0, 4.0))
    monkeypatch.setitem(presets.PRESETS, "paper-one-shot", small)
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / part).mkdir()
    for index in range(12):
        write(tmp_path / "imagesTr", f"p{index:02d}_0000", scan()[0])
        write(tmp_path / "labelsTr", f"p{index:02d}", blocks(2))
    dataset = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "eye_left": 1, "eye_right": 2}}
    (tmp_path / "dataset.json").write_text(json.dumps({**dataset, "file_ending": ".nii.gz"}))
    settings = {"preset": "paper-one-shot", "steps": 1, "device": "cpu", "output": tmp_path / "model"}
    report = Reporter(quiet=True)
    for share, cases in ((10, 1), (1, 1)):
        config = finetune.FinetuneConfig(dataset=tmp_path, share=share, **settings)  # type: ignore[arg-type]
        finetune.run(config, report)
        training = read_description(tmp_path / "model").training
        assert (training["cases"], training["steps"], training["preset"]) == (cases, 1, "paper-one-shot")
    assert "paper_flips_sides" in [warning["code"] for warning in report.warnings]


def test_finetune_trains_61_structures_of_a_real_abdomen(tmp_path: Path) -> None:
    if not os.environ.get("HIENDMAE_DATA"):
        pytest.skip("HIENDMAE_DATA does not name the folder of real scans")
    folder = Path(os.environ["HIENDMAE_DATA"]) / "abdomen"
    image, labels = folder / "ct_abdomen_A" / "ct.nii.gz", folder / "ct_abdomen_A" / "seg_total.nii.gz"
    values = sorted(set(np.unique(np.asarray(nib.load(labels).dataobj)).tolist()) - {0})
    assert len(values) == 61
    description = train(tmp_path, [image], labels, spacing=(6.0, 6.0, 6.0))
    assert [label["value"] for label in description.labels] == values
    assert len(description.training["self_check"]["structures"]) == 61
    assert not description.training["mirroring"]["allowed"]
    assert segment(tmp_path / "model", [image]).shape == nib.load(image).shape


CHECKPOINT_EVERY_STEP = """
import sys
from HiEndMAECore import finetune
from HiEndMAECore.training import finetuning
finetuning._CHECKPOINT_SECONDS = 0.0  # instead of every 45 seconds
raise SystemExit(finetune.main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_finetune_resumed_after_sigkill_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    image, labels = write(tmp_path, "scan", scan()[0]), write(tmp_path, "labels", blocks(2))
    options = ("--image", image, "--label", labels, "--steps", 8, "--device", "cpu")
    command = [sys.executable, "-c", CHECKPOINT_EVERY_STEP, *options]

    def start(name: str, *more: str) -> subprocess.Popen[str]:
        arguments = [str(part) for part in (*command, "--output", tmp_path / name, "--events", *more)]
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    complete = start("complete")
    complete.communicate()
    assert complete.returncode == 0
    killed = start("killed")
    assert killed.stdout is not None
    for line in killed.stdout:
        event = json.loads(line)
        if event["event"] == "progress" and event["stage"] == "learning" and event["step"] >= 3:
            killed.send_signal(signal.SIGKILL)
            break
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    resumed = start("killed", "--resume")
    out, _ = resumed.communicate()
    assert resumed.returncode == 0
    steps = [e["step"] for e in map(json.loads, out.splitlines()) if e.get("stage") == "learning"]
    assert steps[0] > 2  # the run continued instead of starting again
    one, other = read_description(tmp_path / "complete"), read_description(tmp_path / "killed")
    assert one.weights_sha256 == other.weights_sha256
    assert one.training["losses"] == other.training["losses"]
    assert one.training["self_check"] == other.training["self_check"]
