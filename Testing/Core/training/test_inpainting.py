"""Inpainting: the decoder reconstructs masked patches on top of a frozen encoder; fine-tuning starts from both."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_examples import CPU, RequestAt

from HiEndMAECore import pretrain
from HiEndMAECore.data import crop_store
from HiEndMAECore.data.crop_store import CropStore
from HiEndMAECore.data.store_writer import write_manifest, write_scan
from HiEndMAECore.errors import Cancelled, InputError, UsageError
from HiEndMAECore.models import conversion, pretrained
from HiEndMAECore.models.description import ModelDescription
from HiEndMAECore.models.folder import read_description, write_model
from HiEndMAECore.networks import HybridUNETR, build_network, segmentation_architecture
from HiEndMAECore.networks.layers.patches import patchify
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.training.crop_sampling import CropSampler
from HiEndMAECore.training.objectives.inpainting import Inpainting
from HiEndMAECore.training.training_log import read_log, step_records

TINY = "hi_end_mae_vit_tiny_8p"
SIZE = (16, 16, 16)


def inpainting() -> Inpainting:
    torch.manual_seed(0)
    return Inpainting(segmentation_architecture(TINY, classes=1, image_size=SIZE), mask_ratio=0.5)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two scans of a soft ball in air, at 3 mm."""
    axes = np.meshgrid(*(np.linspace(-1, 1, 28) for _ in range(3)), indexing="ij")
    ball = np.clip(1.3 - sum(axis**2 for axis in axes), 0, 0.8).astype(np.float32)[None]
    scans = [write_scan(tmp_path / "store", name, array) for name, array in (("a", ball), ("b", ball * 0.9))]
    plan = {"spacing": [3.0, 3.0, 3.0], "normalisation": {"kind": "window", "low": -175.0, "high": 250.0}}
    write_manifest(tmp_path / "store", {"scans": scans, "channels": 1, "preparation": plan})
    return tmp_path / "store"


def config(store: Path, output: Path, **changes: Any) -> pretrain.PretrainConfig:
    settings: dict[str, Any] = {"variant": TINY, "crop": SIZE, "batch_size": 2, "workers": 0, "learning_rate": 2e-3}
    settings |= {"objective": "inpainting", "init": "hi-end-mae-tiny", "mask_ratio": 0.5, "steps": 4, "device": "cpu"}
    return pretrain.PretrainConfig(data=store, output=output, **{**settings, **changes})


@pytest.fixture
def pretrained_run(store: Path) -> Path:
    pretrain.run(config(store, store.parent / "run"))
    return store.parent / "run"


def test_masked_voxels_are_targets_and_never_input() -> None:
    model = inpainting().eval()
    volume = torch.rand(2, 1, *SIZE)
    order = torch.stack([torch.arange(8), torch.arange(8).flip(0)])  # the first crop's last four patches are masked
    output = model(volume, order)
    assert output.prediction.shape == (2, 4, 512)
    other = volume.clone()
    other[0, :, 8:] = 0.3  # what is masked of the first crop
    changed = model(other, order)
    assert torch.equal(changed.prediction, output.prediction)
    errors = (output.prediction - (patchify(volume, 8) - 0.5)[[[0], [1]], [[4, 5, 6, 7], [3, 2, 1, 0]]]) ** 2
    assert torch.allclose(output.loss, errors.mean(), atol=1e-6)
    other[0, :, :8] = 0.3
    assert not torch.equal(model(other, order).prediction, output.prediction)
    inside = torch.ones(2, 1, *SIZE, dtype=torch.bool)
    assert torch.allclose(model(volume, order, inside).loss, output.loss, atol=1e-6)
    inside[0, :, 8:] = False
    assert torch.allclose(model(volume, order, inside).loss, errors[1].mean() / 2, atol=1e-6)


def test_reconstructed_image_shows_the_prediction_of_masked_patches() -> None:
    model, volume, order = inpainting().eval(), torch.rand(1, 1, *SIZE), torch.arange(8)[None]
    masked, reconstructed = model.reconstruct_images(volume, model(volume, order))
    assert torch.equal(masked[:, :, :8], volume[:, :, :8])
    assert torch.equal(reconstructed[:, :, :8], volume[:, :, :8])
    assert not masked[:, :, 8:].any()
    seen = volume.clone()
    seen[:, :, 8:] = 0.5
    assert torch.allclose(reconstructed[:, :, 8:], model.network(seen)[:, :, 8:] + 0.5, atol=1e-6)


def test_inpainting_crops_are_not_turned(store: Path) -> None:
    sampler = CropSampler.for_model(CropStore.open(store), inpainting(), seed=0)
    flips = [sampler.draw(index).flips[0] for index in range(40)]
    assert {flip.axes for flip in flips} == {(), (0,)}
    assert {flip.quarter_turns for flip in flips} == {0}
    assert len({flip.scale for flip in flips}) == 40


def test_inpainting_trains_the_decoder_and_leaves_the_encoder_as_it_is(pretrained_run: Path, store: Path) -> None:
    initial, found = pretrained.read_pretrained("hi-end-mae-tiny"), pretrained.read_pretrained(str(pretrained_run))
    assert initial is not None
    assert found is not None
    for key, value in initial.encoder.items():
        assert torch.equal(value.float(), found.encoder[key]), key
    description = read_description(pretrained_run / "model")
    assert description.kind == "pretraining"
    assert description.architecture["network"] == "HybridUNETR"
    assert description.training["init_sha256"] == initial.sha256
    long = store.parent / "long"
    pretrain.run(config(store, long, steps=40))
    losses = [record.loss for record in step_records(read_log(long))]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_resumed_inpainting_equals_one_that_was_never_stopped(pretrained_run: Path, store: Path) -> None:
    halves = store.parent / "halves"
    with pytest.raises(Cancelled):
        pretrain.run(config(store, halves), RequestAt(2, "cancel"))
    pretrain.run(config(store, halves, resume=True))
    whole, joined = (pretrained.read_pretrained(str(run)) for run in (pretrained_run, halves))
    assert whole is not None
    assert joined is not None
    for key, value in whole.state.items():
        assert torch.equal(value, joined.state[key]), key


def test_inpainting_weights_initialize_all_but_the_head(pretrained_run: Path) -> None:
    initial = pretrained.read_pretrained(str(pretrained_run))
    assert initial is not None
    for channels in (1, 2):
        network = build_network(segmentation_architecture(TINY, classes=3, in_channels=channels, image_size=SIZE))
        assert isinstance(network, HybridUNETR)
        last = network.out.weight.detach().clone()
        assert pretrained.load_pretrained(network, initial)["init_taken"] == "network"
        assert torch.equal(network.out.weight, last)
        assert torch.equal(network.merge[0].conv1.conv.weight, initial.state["merge.0.conv1.conv.weight"])
        volume = torch.rand(1, 1, *SIZE)
        alike = network.stem(volume.expand(-1, channels, -1, -1, -1))
        assert torch.allclose(alike, _stem(initial, volume), atol=1e-5)
    unetr = segmentation_architecture(TINY, classes=3, image_size=SIZE)
    unetr["network"], unetr["arguments"]["feature_size"] = "UNETR", 8
    other = build_network(unetr)
    assert pretrained.load_pretrained(other, initial)["init_taken"] == "encoder"  # all that another network has of it
    assert torch.equal(other.encoder.norm.weight, initial.encoder["norm.weight"])


def _stem(initial: pretrained.PretrainedWeights, volume: torch.Tensor) -> torch.Tensor:
    weight, bias = initial.state["stem.weight"], initial.state["stem.bias"]
    return torch.nn.functional.conv3d(volume.to(CPU), weight, bias, stride=2, padding=1)


def test_encoder_of_another_spacing_is_warned_about(store: Path) -> None:
    """A frozen encoder cannot adapt: the store's spacing is not the one it was trained on."""
    manifest = json.loads((store / crop_store.MANIFEST).read_text())
    manifest["preparation"]["spacing"] = [1.5, 1.5, 1.5]
    write_manifest(store, manifest)
    report = Reporter(quiet=True)
    pretrain.run(config(store, store.parent / "run", steps=1), report)
    messages = [warning["message"] for warning in report.warnings if warning["code"] == "encoder_of_other_scans"]
    assert len(messages) == 1
    assert "spacing" in messages[0]


def test_resume_with_another_encoder_is_refused(pretrained_run: Path, store: Path) -> None:
    """A run's folder may hold another encoder by now."""
    first = store.parent / "first"
    alone = {"objective": "hi-end-mae", "init": None, "steps": 1, "mask_ratio": 0.75}
    for run, seed in ((first, 0), (store.parent / "other", 1)):
        pretrain.run(config(store, run, seed=seed, **alone))
    run = store.parent / "second"
    with pytest.raises(Cancelled):
        pretrain.run(config(store, run, init=str(first)), RequestAt(2, "cancel"))
    shutil.rmtree(first)
    (store.parent / "other").rename(first)
    with pytest.raises(InputError, match="other initial weights"):
        pretrain.run(config(store, run, init=str(first), resume=True))


def test_wrong_inpainting_options_are_named(store: Path, pretrained_run: Path, tmp_path: Path) -> None:
    for changes in ({"init": None}, {"objective": "mae"}):
        with pytest.raises(UsageError, match="Give --init with --objective inpainting"):
            config(store, tmp_path / "new", **changes)
    with pytest.raises(UsageError, match="frozen"):
        config(store, tmp_path / "new", recompute=True)
    with pytest.raises(InputError, match="neither a file"):
        pretrain.run(config(tmp_path / "no scans", tmp_path / "new", init="typo"))  # reported before the scans are read
    with pytest.raises(InputError, match="--variant is hi_end_mae_vit_small_8p"):
        pretrain.run(config(store, tmp_path / "new", variant="hi_end_mae_vit_small_8p"))
    with pytest.raises(InputError, match="names no pretrained encoder"):
        pretrain.run(config(store, tmp_path / "new", init="none"))
    with pytest.raises(UsageError, match="started with init"):
        pretrain.run(replace(config(store, pretrained_run, resume=True), init=str(pretrained_run)))
    with pytest.raises(InputError, match="pretrained by inpainting"):
        conversion.convert(pretrained_run / "model", tmp_path / "authors.pth")


def test_inpainting_pretrains_a_network_without_patches(store: Path) -> None:
    """From a segmentation model of the same network; fine-tuning then starts from encoder and decoder."""
    architecture = segmentation_architecture("unet_small", classes=3, image_size=SIZE)
    torch.manual_seed(0)
    network = build_network(architecture)
    plan = {
        "spacing": [3.0] * 3,
        "normalisation": {"kind": "window", "low": -175.0, "high": 250.0},
        "orientation": "RAS",
    }
    labels = [{"value": value, "name": str(value), "colour": [0, 0, 255], "terminology": {}} for value in (1, 2)]
    description = ModelDescription(
        kind="segmentation", name="unet", architecture=architecture, channels=["CT"], preparation=plan, labels=labels
    )
    write_model(store.parent / "unet", description, network.state_dict())
    output = store.parent / "run"
    pretrain.run(config(store, output, variant="unet_small", init=str(store.parent / "unet")))
    found = pretrained.read_pretrained(str(output))
    assert found is not None
    assert (found.network, found.variant, found.is_segmentation) == ("UNet", "unet_small", False)
    for key, value in network.encoder_state().items():
        assert torch.equal(value, found.state[key]), key
    assert not torch.equal(
        network.state_dict()["decoder.0.1.conv.unit0.conv.weight"], found.state["decoder.0.1.conv.unit0.conv.weight"]
    )
    other = build_network(segmentation_architecture("unet_small", classes=5))
    assert pretrained.load_pretrained(other, found)["init_taken"] == "network"
    with pytest.raises(UsageError, match="--objective mae needs a ViT encoder; the network UNet"):
        pretrain.run(config(store, store.parent / "mae", variant="unet_small", objective="mae", init=None))
