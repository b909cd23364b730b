"""Every registered network keeps the contract of `networks.interface`: sizes, weights, parameter groups, CPU kernels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from network_builders import NETWORKS, TINY, build, smallest_architecture

from HiEndMAECore.errors import InputError
from HiEndMAECore.inference.forward import forward
from HiEndMAECore.inference.predictor import Predictor
from HiEndMAECore.models.description import ModelDescription
from HiEndMAECore.models.folder import write_model
from HiEndMAECore.models.pretrained import PretrainedWeights, load_pretrained
from HiEndMAECore.networks import build_network, registry
from HiEndMAECore.networks.interface import SegmentationNetwork, fit_size
from HiEndMAECore.networks.transfer import Drop, LoadReport, Recompute, Rename, is_under
from HiEndMAECore.training.objectives.base import (
    ObjectiveRequest,
    PretrainingObjective,
    build_objective,
)
from HiEndMAECore.training.objectives.inpainting import Inpainting
from HiEndMAECore.training.optimizer import freeze_encoder, layer_decay_groups


def weights_of(network: SegmentationNetwork, *, kind: str = "segmentation") -> PretrainedWeights:
    """Return the network's weights as they would be read from a model folder."""
    description = describe({"network": network.registered_name, "variant": "", "arguments": {}}, kind=kind)
    return PretrainedWeights("test", "", "", network.state_dict(), description)


def describe(architecture: dict[str, Any], *, kind: str = "segmentation") -> ModelDescription:
    plan = {
        "spacing": [3.0] * 3,
        "normalisation": {"kind": "window", "low": -175.0, "high": 250.0},
        "orientation": "RAS",
    }
    labels = [{"value": value, "name": str(value), "colour": [0, 0, 255], "terminology": {}} for value in (1, 2)]
    return ModelDescription(
        kind=kind, name="test", architecture=architecture, channels=["CT"], preparation=plan,
        labels=labels if kind == "segmentation" else [],
    )  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_network_maps_images_to_logits_of_the_same_size(name: str) -> None:
    network = build(name, in_channels=2).eval()
    size = network.config.image_size
    longer = (size[0] + network.size_divisor(network.config)[0], *size[1:])
    for edges in (size, longer) if name != "swinunetr" else (size,):
        image = torch.rand(1, 2, *edges)
        with torch.no_grad():
            logits = network(image)
            maps = network.features(image)
        assert logits.shape == (1, 3, *edges)
        assert network.classes == 3
        volumes = [part.shape[2:].numel() for part in maps]
        assert volumes == sorted(volumes, reverse=True)  # finest first
        coarsest = min(maps[-1].shape[2:])
        assert network.smallest_feature_edge(network.config, edges) == coarsest


@pytest.mark.parametrize("name", NETWORKS)
def test_network_refuses_sizes_that_it_cannot_process(name: str) -> None:
    architecture = smallest_architecture(name)
    network, config = registry.network_class(name), registry.network_config(architecture)
    divisor, least, size = network.size_divisor(config), network.min_size(config), config.image_size
    arguments = architecture["arguments"]
    with pytest.raises(ValueError, match="not divisible by"):
        build_network({**architecture, "arguments": {**arguments, "image_size": (size[0] + 1, *size[1:])}})
    if least[0] > divisor[0]:
        with pytest.raises(ValueError, match="too small"):
            build_network({**architecture, "arguments": {**arguments, "image_size": divisor}})
        with pytest.raises((ValueError, RuntimeError)):  # the rule is needed: training fails below it
            build_network(architecture).train()(torch.rand(1, 1, *divisor))
    wanted = fit_size(network, config, (1, size[1] + 1, size[2]))
    assert all(edge % part == 0 and edge >= shortest for edge, part, shortest in zip(wanted, divisor, least))
    assert wanted == (least[0], size[1] + divisor[1], size[2])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"classes": 0}, "classes is 0"),
        ({"in_channels": 0}, "in_channels is 0"),
        ({"image_size": (32, 32)}, r"image_size is \(32, 32\)"),
        ({"spatial_dims": 4}, "spatial_dims is 4"),
        ({"widht": 3}, "no argument 'widht'"),
    ],
)
def test_impossible_argument_is_named(name: str, change: dict[str, Any], sentence: str) -> None:
    architecture = smallest_architecture(name)
    with pytest.raises(ValueError, match=sentence):
        build_network({**architecture, "arguments": {**architecture["arguments"], **change}})


@pytest.mark.parametrize("name", NETWORKS)
def test_layer_groups_hold_each_parameter_once(name: str) -> None:
    network = build(name)
    groups = network.layer_groups()
    grouped = [id(parameter) for group in groups for parameter in group.parameters]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in network.parameters()}
    encoder = [group for group in groups if group.is_encoder]
    names = {id(parameter): key for key, parameter in network.named_parameters()}
    part = network.traits.pretrained_part
    for group in groups:
        assert all(is_under(names[id(parameter)], part) == group.is_encoder for parameter in group.parameters)
    depths = [group.depth for group in encoder]
    assert depths == sorted(depths, reverse=True)  # the first layers are the deepest below the output
    assert depths[-1] == 0
    rates = [group["lr"] for group in layer_decay_groups(groups, 1e-3, decay=0.5)]
    assert rates == [1e-3 * 0.5**depth for depth in sorted(set(depths))]
    freeze_encoder(groups)
    assert {names[id(p)] for p in network.parameters() if not p.requires_grad} == {
        names[id(p)] for group in encoder for p in group.parameters
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_cpu_kernels_give_the_result_of_the_plain_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build(name).eval()
    tiles = torch.rand(2, 1, *network.config.image_size)
    with torch.inference_mode():
        expected = network(tiles)
        for slab in (2**12, 2**9) if name != "swinunetr" else (2**14,):  # so that every layer counts as large
            monkeypatch.setattr("HiEndMAECore.inference.cpu_kernels._SLAB", slab)
            torch.testing.assert_close(forward(network, tiles, exact=True), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_mixed_precision_gives_finite_logits_and_gradients(name: str) -> None:
    network = build(name).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(torch.rand(1, 1, *network.config.image_size))
    levels = logits if isinstance(logits, list) else [logits]
    sum(level.float().square().mean() for level in levels).backward()
    assert all(level.isfinite().all() for level in levels)
    missing = [key for key, parameter in network.named_parameters() if parameter.grad is None]
    assert missing == []  # nothing is built that is not trained
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_only_training_returns_several_levels(name: str) -> None:
    network = build(name)
    image = torch.rand(1, 1, *network.config.image_size)
    with torch.no_grad():
        assert isinstance(network.eval()(image), torch.Tensor)
        logits = network.train()(image)
    assert isinstance(logits, list) == network.traits.deep_supervision
    if isinstance(logits, list):
        edges = [level.shape[2] for level in logits]
        assert edges == [edges[0] // 2**level for level in range(len(edges))]
        assert {level.shape[1] for level in logits} == {3}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_model_folder_returns_the_same_network(name: str, suffix: str, tmp_path: Path) -> None:
    architecture = smallest_architecture(name)
    network = build(name).eval()
    path = tmp_path / f"model{suffix}"
    write_model(path, describe(architecture), network.state_dict())
    predictor = Predictor.load(path, device=torch.device("cpu"), exact=True)
    assert predictor.tile == tuple(architecture["arguments"]["image_size"])
    assert predictor.network.config == network.config
    for key, value in network.state_dict().items():
        assert torch.equal(value, predictor.network.state_dict()[key]), key


@pytest.mark.parametrize("name", NETWORKS)
def test_traits_name_the_layers_that_depend_on_channels_and_classes(name: str) -> None:
    one, channels, classes = (build(name, **change) for change in ({}, {"in_channels": 2}, {"classes": 5}))

    def changed(other: SegmentationNetwork) -> set[str]:
        return {key for key, value in one.state_dict().items() if value.shape != other.state_dict()[key].shape}

    traits = one.traits
    heads = (traits.head,) if isinstance(traits.head, str) else traits.head
    assert changed(channels) == {f"{layer}.weight" for layer in traits.input_layers}
    assert changed(classes)
    assert all(any(is_under(key, head) for head in heads) for key in changed(classes))


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_move_to_more_channels_and_other_classes(name: str) -> None:
    source = build(name).eval()
    torch.manual_seed(1)
    other = build_network(smallest_architecture(name, in_channels=3, classes=4)).eval()
    random_head = {key: value.clone() for key, value in other.state_dict().items()}
    found = other.load_pretrained(weights_of(source))
    assert found.part == "network"
    assert found.reset
    assert all(torch.equal(other.state_dict()[key], random_head[key]) for key in found.reset)
    assert {key.removesuffix(".weight") for key in found.inflated} == set(other.traits.input_layers)
    image = torch.rand(1, 1, *source.config.image_size)
    with torch.no_grad():  # equal channels give the old features
        for one, three in zip(source.features(image), other.features(image.expand(-1, 3, -1, -1, -1))):
            torch.testing.assert_close(one, three, atol=1e-4, rtol=1e-3)
    same = build_network(smallest_architecture(name))
    assert same.load_pretrained(weights_of(source)).reset == []  # the same number of classes keeps the head
    pretraining = same.load_pretrained(weights_of(source, kind="pretraining"))
    assert pretraining.reset  # what another task predicted is not kept
    assert set(other.encoder_state()) == {
        key for key in other.state_dict() if is_under(key, other.traits.pretrained_part)
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_of_another_network_are_refused_by_name(name: str) -> None:
    network, other = build(name), build("dynunet" if name == "unet" else "unet")
    with pytest.raises(
        InputError, match=f"network {other.registered_name} and cannot .* {network.registered_name}"
    ) as e:
        load_pretrained(network, weights_of(other))
    assert "--init none" in e.value.advice
    broken = weights_of(network)
    key = next(iter(network.encoder_state()))
    state = {**network.state_dict(), key: torch.zeros(7, 7, 7)}
    with pytest.raises(InputError, match=f"{key} is .7, 7, 7. instead of"):
        load_pretrained(network, replace(broken, state=state))


def test_vit_encoder_moves_between_its_networks() -> None:
    hybrid, unetr = build("hybrid_unetr"), build("unetr")
    found = unetr.load_pretrained(weights_of(hybrid))
    assert (found.part, found.reset, found.inflated) == ("encoder", [], [])
    assert all(torch.equal(value, hybrid.state_dict()[key]) for key, value in unetr.encoder_state().items())


def test_transfer_rules_change_names_and_report_what_they_drop() -> None:
    report, state = (
        LoadReport("network"),
        {"module.a.weight": torch.zeros(1), "cls": torch.zeros(1), "table": torch.ones(1)},
    )
    for rule in (Rename("module.", ""), Drop(("cls", "absent")), Recompute(("table",))):
        rule.apply(state, {}, report)
    assert list(state) == ["a.weight"]
    assert report.dropped == ["cls", "table"]


@pytest.mark.parametrize("name", NETWORKS)
def test_inpainting_lowers_its_loss_on_any_network(name: str) -> None:
    torch.manual_seed(0)
    model = Inpainting(smallest_architecture(name, classes=1), mask_ratio=0.5)
    assert isinstance(model, PretrainingObjective)
    size = [edge * model.patch_size for edge in model.grid]
    volume, permutation = torch.rand(1, 1, *size), torch.randperm(model.grid[0] * model.grid[1] * model.grid[2])[None]
    encoder = {key: value.clone() for key, value in model.network.encoder_state().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(3):
        output = model(volume, permutation)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(output.loss.detach()))
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, encoder[key]) for key, value in model.network.encoder_state().items())


@pytest.mark.parametrize("name", [name for name in NETWORKS if not registry.find_network(name).variants])
@pytest.mark.parametrize("objective", ["mae", "hi-end-mae"])
def test_masked_autoencoder_is_built_for_vit_networks(name: str, objective: str) -> None:
    built = build_objective(ObjectiveRequest(objective=objective, variant=TINY, image_size=(16, 16, 16)))
    assert isinstance(built.model, PretrainingObjective)
    assert built.architecture["network"] == "HiEndMAE"
    assert built.kept is built.model
    network = build(name)
    source = PretrainedWeights("run", "", TINY, built.kept.state_dict())
    assert network.load_pretrained(source).part == "encoder"
