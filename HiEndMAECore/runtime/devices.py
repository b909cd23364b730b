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
        return torch.device("mps" if torch.backends.mps.is_available() and _mps_is_usable() else "cpu")
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
    if device.type == "mps" and not _mps_is_usable():
        raise UsageError(
            "device_unfit",
            "This PyTorch version lacks 3D operations on mps that the networks need.",
            "Use --device cpu.",
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
def _mps_is_usable() -> bool:
    """Return whether torch has the 3D operations of the networks on Apple's graphics.

    torch before 2.8 had no 3D convolutions there, and later versions lack a part of the 3D sampling.
    """
    import torch
    from torch.nn import functional as F

    try:
        volume = torch.rand(1, 1, 4, 4, 4, device="mps", requires_grad=True)
        F.conv_transpose3d(volume, torch.rand(1, 1, 2, 2, 2, device="mps"), stride=2).sum().backward()
        grid = torch.zeros(1, 4, 4, 4, 3, device="mps")
        for mode in ("bilinear", "nearest"):
            F.grid_sample(volume.detach(), grid, mode=mode, align_corners=True)
    except (RuntimeError, NotImplementedError):
        return False
    return True


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
    """Return whether this CPU multiplies bf16 in hardware (AVX-512 BF16 or AMX); False where torch does not know."""
    import torch

    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check is not None and check() for check in checks)
