"""The device to compute on, and the precision of its arithmetic.

torch is imported inside the functions, so that every command can import this module on a bare Python.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from HiEndMAECore.errors import MissingDependencyError, UsageError

from .processes import local_rank_from_environment

if TYPE_CHECKING:
    import torch

_TOLERANCE = 1e-3  # of the largest value: 32-bit arithmetic in another order is much closer
_CHECK = "Run: python -m HiEndMAECore.doctor"


def require_torch() -> None:
    """Raise `MissingDependencyError` when torch is not installed."""
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingDependencyError.of("torch", "to compute") from error


def choose_device(name: str = "auto") -> torch.device:
    """Return the torch device that a name stands for.

    Args:
        name: `auto` (a usable NVIDIA or AMD card, else Apple's graphics, else the CPU), `cpu`, `cuda`, `cuda:1` or `mps`.
            Under `torchrun`, `auto` and `cuda` give each process of a machine a card of its own.

    Returns:
        The device; a graphics card always with its index.

    Raises:
        UsageError: `device_absent`, when this computer does not have it; `device_unfit`, when this torch cannot use it.
        MissingDependencyError: torch is not installed.
    """
    require_torch()
    import torch

    local_rank = local_rank_from_environment()
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        usable = [index for index in range(cards) if card_is_usable(index)]
        if usable:
            return torch.device(
                "cuda", usable[local_rank % len(usable)]
            )  # a cluster may show each process a single card
        return torch.device("mps" if mps_is_usable() else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        index = local_rank % max(1, cards) if device.index is None else device.index
        if index >= cards:
            raise _absent(name)
        if not card_is_usable(index):
            raise UsageError("device_unfit", f"This PyTorch build does not support the GPU {name}.", _CHECK)
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise _absent(name)
    if device.type == "mps" and not mps_is_usable():
        raise UsageError(
            "device_unfit",
            f"PyTorch {torch.__version__} does not compute the 3D operations of the networks on mps as the CPU does.",
            "Use --device cpu, or a newer version of PyTorch.",
        )
    return device


def _absent(name: str) -> UsageError:
    """Return the error for a device that this computer does not have."""
    return UsageError("device_absent", f"This computer has no usable {name}.", f"Use --device cpu. {_CHECK}")


def card_is_usable(index: int) -> bool:
    """Return whether this torch has code for the graphics card with this index."""
    import torch

    if torch.version.hip is not None:
        return True
    card = torch.cuda.get_device_properties(index)
    return compiled_for((card.major, card.minor), torch.cuda.get_arch_list())


def compiled_for(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Return whether code for some architectures runs on a card.

    Machine code (`sm`) runs on its own major version from its minor version on; PTX (`compute`) runs on every newer card.

    Args:
        capability: Compute capability of the card, (major, minor).
        architectures: What torch was built for: `sm_80`, `sm_90a`, `compute_90`.
    """
    for architecture in architectures:
        kind, _, digits = architecture.partition("_")
        number = int(re.sub(r"\D", "", digits))
        major, minor = divmod(number, 10)
        if (kind == "compute" and (major, minor) <= capability) or (major == capability[0] and minor <= capability[1]):
            return True
    return False


@functools.cache
def mps_is_usable() -> bool:
    """Return whether this torch computes the networks on Apple's graphics; False where there are none."""
    import torch

    return torch.backends.mps.is_available() and computes_networks(torch.device("mps"))


def computes_networks(device: torch.device) -> bool:
    """Return whether a device computes the 3D operations of the default networks, and their gradients, as the CPU does.

    Two things are needed of Apple's graphics: torch before 2.8 has no transposed 3D convolution there; and as torch's own
    tests leave out the 3D convolution, which is wrong on some of the processors, the values are compared. See docs/mps.md.
    """
    import torch

    try:
        expected, found = _network_operations(torch.device("cpu")), _network_operations(device)
    except (RuntimeError, TypeError):  # TypeError: a data type that the device lacks
        return False
    return all((one - other).abs().max() <= _TOLERANCE * one.abs().max() for one, other in zip(expected, found))


def _network_operations(device: torch.device) -> list[torch.Tensor]:
    """Return the result and the gradients of a small network of the default networks' 3D operations, on the CPU."""
    import torch
    from torch.nn import functional as F

    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return (torch.rand(shape, generator=generator) - 0.5).to(device).requires_grad_()

    image, stem, block = random(2, 1, 16, 16, 16), random(24, 1, 4, 4, 4), random(24, 24, 3, 3, 3)
    strided, spread, out = random(48, 24, 3, 3, 3), random(48, 24, 2, 2, 2), random(3, 48, 1, 1, 1)
    fine = F.leaky_relu(F.instance_norm(F.conv3d(F.conv3d(image, stem, stride=2, padding=1), block, padding=1)))
    coarse = F.conv_transpose3d(F.gelu(F.conv3d(fine, strided, stride=2, padding=1)), spread, stride=2)
    result = F.conv3d(torch.cat([fine, coarse], dim=1), out)
    result.square().sum().backward()
    gradients = [tensor.grad for tensor in (image, stem, block, strided, spread, out)]
    return [tensor.detach().cpu() for tensor in (result, *gradients) if tensor is not None]


def sampling_device(device: torch.device) -> torch.device:
    """Return the device that samples for a network on `device` (crops, registration): the CPU for Apple's graphics.

    There, torch 2.8 has no 3D `grid_sample` and torch 2.9 none for label maps (mode nearest), and no version has float64.
    """
    import torch

    return torch.device("cpu") if device.type == "mps" else device


PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def autocast(
    device: torch.device, *, smallest_edge: int = 99, precision: str = "auto", inference: bool = False
) -> torch.autocast:
    """Return the autocast context for a device.

    With `auto` the choice depends on what the processor can do and never on a timing, so that the same machine gives the
    same model: bf16 where the processor has bf16 arithmetic, otherwise fp32; and for inference, which needs no loss
    scaling, fp16 on NVIDIA cards that only emulate bf16. On a CPU with bf16 units one step of the smallest UNETR (batch 2,
    48^3) took 0.57 of the fp32 time.

    Args:
        device: Where to compute.
        smallest_edge: Smallest edge of a feature map in voxels. Below 3, `auto` chooses fp32 on a CPU, where losses of
            bf16 convolutions became NaN at times.
        precision: One of `PRECISIONS`.
        inference: True when no gradients are computed.
    """
    import torch

    if precision != "auto":
        enabled = precision != "fp32"
    elif device.type == "cuda":
        has_bf16 = torch.cuda.get_device_capability(device)[0] >= 8  # older cards only emulate bf16
        enabled, precision = has_bf16 or inference, "auto" if has_bf16 else "fp16"
    else:
        enabled = device.type == "cpu" and smallest_edge >= 3 and cpu_has_bf16()
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(
        device.type if device.type != "mps" or precision != "auto" else "cpu", dtype=dtype, enabled=enabled
    )


def gradient_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """Return the loss scaler that keeps fp16 gradients from vanishing; for other precisions it does nothing.

    Args:
        device: Where the gradients are computed.
        precision: One of `PRECISIONS`.
    """
    import torch

    if not hasattr(torch.amp, "GradScaler"):  # torch 2.2
        return torch.cuda.amp.GradScaler(enabled=precision == "fp16")
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def cpu_has_bf16() -> bool:
    """Return whether this CPU multiplies bf16 in hardware (AVX-512 BF16 or AMX); False where torch does not know.

    False, too, where torch is limited to AVX2 by the environment variable ATEN_CPU_CAPABILITY.
    """
    import torch

    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check is not None and check() for check in checks)
