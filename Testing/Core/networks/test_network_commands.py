"""Every network through the commands: finetune, resume, segment from a folder and from a zip; and a network of one new file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from HiEndMAECore import finetune, segment
from HiEndMAECore.errors import Cancelled, InputError, UsageError
from HiEndMAECore.models.folder import copy_model, read_description
from HiEndMAECore.networks import list_networks, list_variants
from HiEndMAECore.networks.registry import find_network
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.training import finetuning

REPOSITORY = Path(__file__).resolve().parents[3]
NETWORKS = list_networks()
FORMAT_1_KEYS = {
    "image_size", "patch_size", "in_channels", "classes", "encoder_dim", "encoder_depth", "encoder_heads", "feature_size",
}  # fmt: skip


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A CT of 28 x 24 x 20 voxels at 4 mm: soft tissue with a bright and a dark structure."""
    folder = tmp_path_factory.mktemp("scan")
    rng = np.random.default_rng(0)
    image = np.full((28, 24, 20), -1000.0, np.float32)
    image[2:26, 2:22, 1:19] = 40 + rng.normal(0, 5, (24, 20, 18))
    labels = np.zeros(image.shape, np.uint8)
    labels[5:13, 6:14, 4:12], labels[15:23, 10:18, 8:16] = 1, 2
    image[labels == 1] += 120
    image[labels == 2] -= 120
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    nib.save(nib.Nifti1Image(image, affine), folder / "scan.nii.gz")
    nib.save(nib.Nifti1Image(labels, affine), folder / "labels.nii.gz")
    return folder / "scan.nii.gz", folder / "labels.nii.gz"


class StopAfter(Reporter):
    """A reporter that cancels the run after some steps of training, as a control file would."""

    def __init__(self, steps: int) -> None:
        super().__init__(quiet=True)
        self.last_step = steps

    def progress(self, stage: str, step: int, total: int, **values: object) -> None:
        if stage == "learning" and step == self.last_step:
            self.cancel()
        super().progress(stage, step, total, **values)


def arguments(scan: tuple[Path, Path], output: Path, **options: object) -> list[str]:
    given = {"image": scan[0], "label": scan[1], "output": output, "steps": 2, "device": "cpu", **options}
    return [part for name, value in given.items() for part in (f"--{name}", str(value))]


def config(scan: tuple[Path, Path], output: Path, **options: Any) -> finetune.FinetuneConfig:
    settings = {"image": (str(scan[0]),), "label": (scan[1],), "output": output, "steps": 2, "device": "cpu"}
    return finetune.FinetuneConfig(**{**settings, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NETWORKS)
def test_network_is_trained_resumed_shared_and_applied(
    name: str, scan: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetuning, "_CHECKPOINT_SECONDS", 0.0)  # a checkpoint after every step
    model = tmp_path / "model"
    with pytest.raises(Cancelled):
        finetune.run(config(scan, model, network=name), StopAfter(1))
    assert not model.exists()
    assert finetune.main([*arguments(scan, model, network=name), "--resume"]) == 0
    description = read_description(model)
    architecture = description.architecture
    assert architecture["network"] == find_network(name).name
    assert architecture["variant"] in list_variants(name)
    assert description.training["steps"] == 2
    if name in ("unetr", "hybrid_unetr"):  # written as ever
        assert set(architecture["arguments"]) == FORMAT_1_KEYS
    copy_model(model, tmp_path / "model.zip", keep_atlas=True)  # the result depends on it
    line = ["--input", str(scan[0]), "--device", "cpu", "--model"]
    for source in ("model", "model.zip") if name != "swinunetr" else ("model.zip",):  # the slowest here
        output = tmp_path / f"{source}.nii.gz"
        assert segment.main([*line, str(tmp_path / source), "--output", str(output)]) == 0
    archive = nib.load(tmp_path / "model.zip.nii.gz")
    assert archive.shape == nib.load(scan[0]).shape
    if (tmp_path / "model.nii.gz").exists():
        folder = nib.load(tmp_path / "model.nii.gz")
        np.testing.assert_array_equal(np.asarray(folder.dataobj), np.asarray(archive.dataobj))


@pytest.mark.parametrize("name", ["unet", "dynunet"])
def test_resumed_network_equals_one_that_was_never_stopped(
    name: str, scan: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetuning, "_CHECKPOINT_SECONDS", 0.0)
    finetune.run(config(scan, tmp_path / "whole", network=name, steps=3))
    with pytest.raises(Cancelled):
        finetune.run(config(scan, tmp_path / "halves", network=name, steps=3), StopAfter(2))
    finetune.run(config(scan, tmp_path / "halves", network=name, steps=3, resume=True))
    whole, halves = (read_description(tmp_path / part) for part in ("whole", "halves"))
    assert whole.weights_sha256 == halves.weights_sha256
    assert whole.training["losses"] == halves.training["losses"]


def test_training_goes_on_from_a_model_of_the_same_network(scan: tuple[Path, Path], tmp_path: Path) -> None:
    finetune.run(config(scan, tmp_path / "first", network="unet", steps=1))
    finetune.run(config(scan, tmp_path / "second", network="unet", init=str(tmp_path / "first"), steps=1))
    assert read_description(tmp_path / "second").training["init_taken"] == "network"
    finetune.run(config(scan, tmp_path / "third", improve=tmp_path / "first", steps=1))
    assert read_description(tmp_path / "third").architecture["network"] == "UNet"


# -- options -------------------------------------------------------------------------------------------------------------


def test_packaged_weights_are_the_default_for_their_own_network_alone(
    scan: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from HiEndMAECore.training.network_choice import choose_initial_weights

    report = Reporter(quiet=True)
    messages: list[str] = []
    monkeypatch.setattr(report, "info", messages.append)

    def choose(init: str | None = None, **options: str) -> Any:
        wanted = {"network": None, "variant": None, **options}
        return choose_initial_weights(init, from_scratch=False, report=report, **wanted)  # type: ignore[arg-type]

    assert choose() is not None
    assert choose(network="hybrid_unetr") is not None
    assert choose(variant="hi_end_mae_vit_tiny_8p") is not None
    assert messages == []
    for options in ({"network": "unet"}, {"network": "unetr"}, {"variant": "hi_end_mae_vit_small_8p"}):
        assert choose(**options) is None
    assert [message.split(":")[0] for message in messages] == ["The packaged weights are of HybridUNETR"] * 3
    assert choose("hi-end-mae-tiny", network="unetr") is not None  # its encoder fits
    assert choose("none", network="unet") is None
    with pytest.raises(InputError, match="cannot initialize the network UNet") as caught:
        choose("hi-end-mae-tiny", network="unet")
    assert "--init none" in caught.value.advice
    with pytest.raises(InputError, match="cannot initialize the network UNet"):
        finetune.run(config(scan, tmp_path / "model", network="unet", init="hi-end-mae-tiny"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"network": "unnet"}, "There is no network 'unnet'; known are dynunet"),
        ({"variant": "unet_huge"}, "There is no variant 'unet_huge'"),
        ({"network": "unet", "variant": "dynunet_small"}, "size of the network DynUNet, not of unet"),
        ({"network": "unetr", "variant": "unet_small"}, "size of the network UNet, not of unetr"),
        ({"network": "unet", "improve": Path("model")}, "--improve keeps"),
    ],
)
def test_wrong_network_option_is_named_before_anything_is_read(
    options: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        config((tmp_path / "absent.nii", tmp_path / "absent.nii"), tmp_path / "model", **options)
    assert sentence in caught.value.message


def test_variant_chooses_network_and_size(scan: tuple[Path, Path], tmp_path: Path) -> None:
    from HiEndMAECore.training.presets import PRESETS, choose_architecture

    def choose(**options: str) -> tuple[str, str, tuple[int, ...]]:
        found = choose_architecture(PRESETS["cpu"], None, classes=3, channels=1, **options)
        return found["network"], found["variant"], tuple(found["arguments"]["image_size"])

    assert choose(variant="unet_base") == ("UNet", "unet_base", (96, 96, 96))
    assert choose(network="UNet") == ("UNet", "unet_small", (48, 48, 48))
    assert choose(network="unetr") == ("UNETR", "hi_end_mae_vit_tiny_8p", (48, 48, 48))
    assert choose(network="unetr", variant="hi_end_mae_vit_base_16p")[0] == "UNETR"
    assert choose(variant="hi_end_mae_vit_small_8p")[0] == "UNETR"
    with pytest.raises(UsageError, match="a patch of 12 voxels does not suit the hybrid network"):
        choose(network="hybrid_unetr", variant="hi_end_mae_vit_large_12p")


# -- one new file --------------------------------------------------------------------------------------------------------

TOY = '''
"""A U-Net of three convolutions: everything that a network needs is in this file."""

from dataclasses import dataclass

from torch import nn

from HiEndMAECore.networks import NetworkConfig, NetworkTraits, SegmentationNetwork, group_by_depth, register_network

VARIANTS = {"toy_small": {"title": "Toy", "image_size": (30, 30, 30), "network": {"width": 4}}}


@dataclass(frozen=True, kw_only=True)
class ToyConfig(NetworkConfig):
    width: int = 8


@register_network("ToyUNet", config=ToyConfig)
class ToyUNet(SegmentationNetwork):
    traits = NetworkTraits(input_layers=("down",), head="up", pretrained_part="down", learning_rate=1e-2)

    def __init__(self, config):
        super().__init__(config)
        self.down = nn.Conv3d(config.in_channels, config.width, 3, stride=2, padding=1)
        self.middle = nn.Conv3d(config.width, config.width, 3, padding=1)
        self.up = nn.ConvTranspose3d(config.width, config.classes, 2, stride=2)

    @staticmethod
    def size_divisor(config):
        return (2, 2, 2)

    def features(self, image):
        return [self.down(image).relu()]

    def forward(self, image):
        return self.up(self.middle(self.features(image)[0]).relu())

    def layer_groups(self):
        return group_by_depth([self.down], head=[self.middle, self.up])
'''


def test_network_is_one_new_file_of_another_package(scan: tuple[Path, Path], tmp_path: Path) -> None:
    """Installed as any package is: a module and an entry point; no file of the engine changes."""
    site = tmp_path / "site"
    (site / "toy_package").mkdir(parents=True)
    (site / "toy_package" / "__init__.py").write_text("import torch  # a package may need what a bare Python lacks\n")
    (site / "toy_package" / "toy_unet.py").write_text(TOY)
    info = site / "toy_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-package\nVersion: 1.0\n")
    points = "toy_unet = toy_package.toy_unet\nbroken = no_such_package.network\n"
    (info / "entry_points.txt").write_text(f"[hiendmae.networks]\n{points}")
    path = os.pathsep.join([str(site), str(REPOSITORY), os.environ.get("PYTHONPATH", "")])

    def run(*line: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, line)]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}
        )
        assert done.returncode == 0, done.stderr
        return done

    listing = (
        "import sys; from HiEndMAECore.networks.registry import *; print(list_networks(), list_variants('toy_unet'))"
    )
    listed = run("-c", f"{listing}; assert 'torch' not in sys.modules").stdout
    assert "'toy_unet'" in listed
    assert "('toy_small',)" in listed
    assert "broken" not in listed
    model, archive = tmp_path / "model", tmp_path / "model.zip"
    run("-m", "HiEndMAECore.finetune", *arguments(scan, model, network="toy_unet", steps=4))
    architecture = json.loads((model / "model.json").read_text())["architecture"]
    assert (architecture["network"], architecture["variant"]) == ("ToyUNet", "toy_small")
    assert architecture["arguments"] == {
        "in_channels": 1, "classes": 3, "image_size": [30, 30, 30], "spatial_dims": 3, "width": 4,
    }  # fmt: skip
    copy_model(model, archive)
    output = tmp_path / "result.nii.gz"
    run("-m", "HiEndMAECore.segment", "--model", archive, "--input", scan[0], "--output", output, "--device", "cpu")
    assert nib.load(output).shape == nib.load(scan[0]).shape
    # Where the package is not installed, the model names the network that is missing.
    again = segment.SegmentConfig(model=archive, input=(scan[0],), output=tmp_path / "again.nii.gz", device="cpu")
    with pytest.raises(InputError, match="there is no network 'ToyUNet'"):
        segment.run(again)
