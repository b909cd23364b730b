"""CPU inference kernels: the same logits as the plain network, and no effect on training."""

from __future__ import annotations

import pytest
import torch
from inference_helpers import ARGUMENTS

from HiEndMAECore.inference.cpu_kernels import CpuInferenceKernels
from HiEndMAECore.inference.forward import forward
from HiEndMAECore.networks import UNETR


@pytest.mark.parametrize("size", [(1, 24, 20, 28), (2, 16, 16, 16)])
def test_cpu_kernels_of_any_slab_equal_the_plain_network(
    size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every kernel runs, with slabs of a few planes and of one plane."""
    torch.manual_seed(0)
    network = UNETR(**{**ARGUMENTS, "image_size": size[1:], "patch_size": 4}).eval()
    tiles = torch.rand(size[0], 1, *size[1:])
    with torch.inference_mode():
        reference = network(tiles)
        for slab in (2**24, 2**14, 2**9):
            monkeypatch.setattr("HiEndMAECore.inference.cpu_kernels._SLAB", slab)
            with CpuInferenceKernels(full=True):
                torch.testing.assert_close(network(tiles), reference, atol=2e-5, rtol=1e-5)
        half = forward(network, tiles, exact=False)
        monkeypatch.setattr("HiEndMAECore.inference.cpu_kernels._SLAB", 2**9)
        torch.testing.assert_close(forward(network, tiles, exact=False), half, atol=5e-2, rtol=5e-2)


def test_cpu_kernels_in_training_leave_gradients_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("HiEndMAECore.inference.cpu_kernels._SLAB", 1)
    network, tile = UNETR(**ARGUMENTS), torch.rand(1, 1, 16, 16, 16)
    network(tile).sum().backward()
    expected = network.out.conv.conv.weight.grad.clone()
    network.zero_grad()
    with CpuInferenceKernels(full=True):
        network(tile).sum().backward()
    torch.testing.assert_close(network.out.conv.conv.weight.grad, expected)
