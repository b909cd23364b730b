"""The forward pass of a network in inference: its precision, and the kernels that it uses on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from HiEndMAECore.networks.interface import NetworkTraits
from HiEndMAECore.runtime.devices import autocast, cpu_has_bf16

from .cpu_kernels import CpuInferenceKernels


def forward(network: nn.Module, tiles: Tensor, *, exact: bool) -> Tensor:
    """Compute the logits of a batch of tiles.

    Args:
        network: A network in evaluation mode.
        tiles: (B, C, H, W, D), on the network's device.
        exact: Compute in 32 bits without TF32, instead of bf16 where the processor has it.

    Returns:
        Logits (B, classes, H, W, D), float32.
    """
    with contextlib.ExitStack() as stack:
        if exact:
            stack.enter_context(_no_tf32())
        else:
            stack.enter_context(autocast(tiles.device, inference=True))
            torch.set_autocast_cache_enabled(False)  # each weight is used once a tile, so a cast copy would be wasted
        if tiles.device.type == "cpu":
            # A module without traits permits nothing: its normalization is not done in place.
            inplace = getattr(network, "traits", NetworkTraits()).inplace_normalization
            stack.enter_context(CpuInferenceKernels(full=exact or not cpu_has_bf16(), inplace_normalization=inplace))
        return network(tiles).float()


def store_weights_in_bf16(network: nn.Module) -> None:
    """Round the weights of linear layers and convolutions to bf16, in place, as autocast would for every tile.

    The results do not change. For inference only: the network cannot be trained or computed in 32 bits afterwards.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv3d | nn.ConvTranspose3d):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.bfloat16()


@contextlib.contextmanager
def _no_tf32() -> Iterator[None]:
    """Turn off TF32 (10 bits of mantissa), which convolutions use on NVIDIA cards by default."""
    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, allowed in zip(backends, before):
            backend.allow_tf32 = allowed
