"""The CPU kernels of training compute what torch computes: results and gradients, of single layers and of every network."""

from __future__ import annotations

import copy

import pytest
import torch
from network_builders import NETWORKS, build
from torch import nn

from HiEndMAECore.networks import cpu_convolution as module
from HiEndMAECore.networks.cpu_convolution import CpuTrainingKernels

needs_onednn = pytest.mark.skipif(
    CpuTrainingKernels().capability not in module._MIN_CHANNELS, reason="the kernels are for x86 processors with AVX2"
)
LAYERS = {
    "plain": (nn.Conv3d(8, 12, 3, padding=1), (1, 8, 12, 10, 9)),
    "odd": (nn.Conv3d(8, 12, 3, padding=1, bias=False), (1, 8, 11, 9, 10)),
    "strided": (nn.Conv3d(8, 12, 3, stride=2, padding=1), (1, 8, 13, 12, 11)),
    "even kernel": (nn.Conv3d(6, 8, 4, stride=2, padding=1), (1, 6, 12, 14, 10)),
    "flat kernel": (nn.Conv3d(8, 8, (1, 3, 3), padding=(0, 1, 1)), (1, 8, 6, 9, 9)),
    "deep kernel": (nn.Conv3d(8, 8, (3, 1, 1), padding=(1, 0, 0)), (1, 8, 6, 9, 9)),
    "without padding": (nn.Conv3d(8, 8, 3), (1, 8, 9, 9, 9)),
    "much padding": (nn.Conv3d(8, 8, 3, padding=2), (1, 8, 9, 9, 9)),
    "batch": (nn.Conv3d(8, 12, 3, padding=1), (3, 8, 9, 10, 9)),
}


@pytest.fixture(params=("AVX2", "AVX512"))
def kernels(request: pytest.FixtureRequest) -> CpuTrainingKernels:
    """Kernels as they are chosen for a processor; both choices run on every x86 processor."""
    chosen = CpuTrainingKernels()
    chosen.capability = request.param
    return chosen


def gradients(module_: nn.Module, x: torch.Tensor, loss_weights: torch.Tensor) -> list[torch.Tensor]:
    """Return the result, and the gradients of the input and of all weights."""
    module_.zero_grad()
    x = x.clone().requires_grad_()
    result = module_(x)
    (result * loss_weights).sum().backward()
    assert x.grad is not None
    return [result.detach(), x.grad, *(p.grad.clone() for p in module_.parameters() if p.grad is not None)]


@needs_onednn
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_has_torchs_result_and_gradients(
    name: str, kernels: CpuTrainingKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, shape = LAYERS[name]
    torch.manual_seed(0)
    x = torch.randn(shape)
    weights = torch.randn_like(layer(x))
    calls = []
    original = module._slab_gradients
    monkeypatch.setattr(module, "_slab_gradients", lambda *args: calls.append(name) or original(*args))
    with kernels:
        result = gradients(layer, x, weights)
    expected = gradients(copy.deepcopy(layer).double(), x.double(), weights.double())
    for value, wanted in zip(result, expected, strict=True):
        assert float((value - wanted).abs().max() / wanted.abs().max()) < 1e-5
    by_torch = kernels.capability == "AVX512" and name in ("even kernel", "batch")
    assert bool(calls) is not by_torch, "another kernel was chosen than the test is about"


@needs_onednn
def test_frozen_weights_and_images_get_no_gradient(kernels: CpuTrainingKernels) -> None:
    layer = nn.Conv3d(8, 8, 3, padding=1)
    layer.weight.requires_grad_(False)
    x = torch.randn(1, 8, 8, 8, 8)
    with kernels:
        layer(x).sum().backward()
    assert [name for name, value in layer.named_parameters() if value.grad is not None] == ["bias"]
    assert x.grad is None


@needs_onednn
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv3d(1, 8, 3, padding=1), (1, 1, 9, 9, 9)),
        (nn.Conv3d(8, 8, 1), (1, 8, 9, 9, 9)),
        (nn.Conv3d(8, 8, 3, padding=1, groups=8), (1, 8, 9, 9, 9)),
        (nn.Conv3d(8, 8, 3, padding=2, dilation=2), (1, 8, 9, 9, 9)),
        (nn.Conv3d(8, 8, 3, padding=1), (1, 8, 4, 4, 4)),
        (nn.Conv3d(8, 8, 3, padding="same"), (1, 8, 9, 9, 9)),
        (nn.Conv3d(8, 8, 3, padding=1), (8, 9, 9, 9)),
    ],
)
def test_other_layers_stay_with_torch(layer: nn.Module, shape: tuple[int, ...], kernels: CpuTrainingKernels) -> None:
    x = torch.randn(shape)
    with kernels:
        result = layer(x)
    assert torch.equal(result, layer(x))
    assert "_Convolution" not in str(result.grad_fn)


@needs_onednn
def test_autocast_stays_with_torch(kernels: CpuTrainingKernels) -> None:
    layer = nn.Conv3d(8, 8, 3, padding=1)
    with torch.autocast("cpu", torch.bfloat16), kernels:
        assert layer(torch.randn(1, 8, 8, 8, 8)).dtype == torch.bfloat16


@needs_onednn
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_torchs_gradients(name: str, kernels: CpuTrainingKernels) -> None:
    network = build(name).train()
    image = torch.randn(1, 1, *network.config.image_size)

    def run() -> list[torch.Tensor]:
        network.zero_grad()
        logits = network(image)
        logits = logits if isinstance(logits, torch.Tensor) else logits[0]
        (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).mean().backward()
        return [logits.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)]

    expected = run()
    with kernels:
        found = run()
    scale = max(float(value.abs().max()) for value in expected[1:])
    assert len(found) == len(expected)
    assert float((found[0] - expected[0]).abs().max() / expected[0].abs().max()) < 1e-4
    for value, wanted in zip(found[1:], expected[1:]):
        assert float((value - wanted).abs().max()) < 1e-4 * scale
