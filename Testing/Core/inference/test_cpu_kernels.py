"""The CPU inference kernels change no result: where they cannot be used they are not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from HiEndMAECore.inference.cpu_kernels import CpuInferenceKernels
from HiEndMAECore.inference.forward import forward
from HiEndMAECore.networks import build_network, segmentation_architecture
from HiEndMAECore.networks.interface import SegmentationNetwork


@pytest.fixture(autouse=True)
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat every tensor of 256 bytes as large."""
    monkeypatch.setattr("HiEndMAECore.inference.cpu_kernels._SLAB", 2**7)


def pre_activation_network() -> SegmentationNetwork:
    """SegResNet with instance normalization: its blocks normalize first and add their own input at the end."""
    torch.manual_seed(0)
    architecture = segmentation_architecture("segresnet_small", classes=3, image_size=(16, 16, 16))
    architecture["arguments"] |= {"filters": 8, "norm": "instance"}
    return build_network(architecture).eval()


def test_inplace_normalization_would_corrupt_a_pre_activation_network() -> None:
    """The reason for the trait: without it the same network silently computes something else."""
    network, tiles = pre_activation_network(), torch.rand(1, 1, 16, 16, 16)
    with torch.inference_mode():
        expected = network(tiles)
        with CpuInferenceKernels(full=True, inplace_normalization=True):
            corrupted = network(tiles)
        with CpuInferenceKernels(full=True):
            safe = network(tiles)
    assert (corrupted - expected).abs().max() > 0.1
    torch.testing.assert_close(safe, expected, atol=1e-4, rtol=1e-4)


def test_inference_asks_the_network_before_it_normalizes_in_place() -> None:
    network, tiles = pre_activation_network(), torch.rand(1, 1, 16, 16, 16)
    assert not network.traits.inplace_normalization
    with torch.inference_mode():
        torch.testing.assert_close(forward(network, tiles, exact=True), network(tiles), atol=1e-4, rtol=1e-4)


def test_module_without_traits_is_not_normalized_in_place() -> None:
    class Residual(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + F.instance_norm(x)

    tiles = torch.rand(1, 2, 8, 8, 8)
    with torch.inference_mode():
        expected = Residual()(tiles.clone())
        torch.testing.assert_close(forward(Residual(), tiles.clone(), exact=True), expected)


def test_inplace_normalization_saves_the_copy_where_it_is_allowed() -> None:
    x = torch.rand(1, 2, 8, 8, 8)
    expected = F.instance_norm(x)
    with torch.inference_mode(), CpuInferenceKernels(full=True, inplace_normalization=True):
        result = F.instance_norm(x)
    assert result.data_ptr() == x.data_ptr()
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def test_normalization_with_weights_is_left_alone() -> None:
    layer, x = nn.InstanceNorm3d(2, affine=True), torch.rand(1, 2, 8, 8, 8)
    nn.init.constant_(layer.weight, 3.0)
    with torch.inference_mode():
        expected = layer(x)
        with CpuInferenceKernels(full=True, inplace_normalization=True):
            assert torch.equal(layer(x), expected)


@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (1, 0), (5, 2), (3, 2), (3, 0), (5, 1), (2, 1), (4, 1)])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolution_keeps_every_plane(kernel: int, padding: int, groups: int) -> None:
    """A kernel of 3 with a padding of 2 makes 114 planes of 112; slabs would return 112."""
    torch.manual_seed(0)
    layer, x = nn.Conv3d(2, 4, kernel, padding=padding, groups=groups), torch.rand(1, 2, 112, 6, 6)
    with torch.inference_mode():
        expected = layer(x)
        assert expected.shape[2] == 112 + 2 * padding - kernel + 1
        for full in (True, False):
            with CpuInferenceKernels(full=full):
                torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("padding", ["same", (1, 0, 2), (2, 1, 1)])
def test_convolution_with_uneven_padding_is_unchanged(padding: object) -> None:
    layer, x = nn.Conv3d(1, 2, 3, padding=padding), torch.rand(1, 1, 20, 9, 9)  # type: ignore[arg-type]
    with torch.inference_mode():
        expected = layer(x)
        with CpuInferenceKernels(full=True):
            torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose3d(4, 4, 2, stride=2, bias=False),
        nn.ConvTranspose3d(4, 4, 2, stride=2, bias=False, groups=2),
        nn.ConvTranspose3d(4, 4, 2, stride=2, bias=False, dilation=2),
        nn.ConvTranspose3d(4, 2, 3, stride=2, padding=1, output_padding=1),
        nn.ConvTranspose3d(4, 2, (2, 2, 1), stride=(2, 2, 1), bias=False),
    ],
    ids=["matrix product", "groups", "dilation", "overlap", "anisotropic"],
)
def test_transposed_convolution_is_unchanged(layer: nn.Module) -> None:
    x = torch.rand(2, 4, 5, 6, 7)
    with torch.inference_mode():
        expected = layer(x)
        with CpuInferenceKernels(full=True):
            torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)
