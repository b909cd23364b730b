"""Which processor to compute on, and how many threads.

torch is imported inside the functions, so that doors and `doctor` can import this file on a bare Python.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from HiEndMAECore.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    import torch


def require_torch() -> None:
    """Raise the typed error when torch is not installed."""
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingDependencyError.of("torch", "to compute") from error


def choose_device(name: str = "auto") -> torch.device:
    """The torch device for `auto`, `cpu`, `cuda`, `cuda:1` or `mps`, a graphics card always with its number; raises
    `UsageError` when it is not there or this torch cannot use it."""
    require_torch()
    import torch

    rank, cards = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        usable = [index for index in range(cards) if card_is_usable(index)]
        if usable:
            return torch.device("cuda", usable[rank % len(usable)])  # a cluster may show each process a single card
        return torch.device("mps" if torch.backends.mps.is_available() and _mps_is_usable() else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        index = rank % max(1, cards) if device.index is None else device.index
        if index >= cards:
            raise _absent(name)
        if not card_is_usable(index):
            raise UsageError("device_unfit", f"This torch has no code for the card {name}.", "See: doctor.")
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise _absent(name)
    if device.type == "mps" and not _mps_is_usable():
        raise UsageError("device_unfit", "This torch lacks what the networks need on mps.", "Use --device cpu.")
    return device


def _absent(name: str) -> UsageError:
    return UsageError("device_absent", f"This computer has no usable {name}.", "Use --device cpu, or see: doctor.")


def card_is_usable(index: int) -> bool:
    """Has this torch code for the graphics card of this number?"""
    import torch

    if torch.version.hip is not None:
        return True
    card = torch.cuda.get_device_properties(index)
    return compiled_for((card.major, card.minor), torch.cuda.get_arch_list())


def compiled_for(capability: tuple[int, int], built: Sequence[str]) -> bool:
    """Does a torch built for `built` (`sm_80`, `sm_90a`, `compute_90`) run on a card of this compute capability?

    Machine code (sm) runs on its own major version from its minor version on; PTX (compute) on every newer card.
    """
    for arch in built:
        kind, _, digits = arch.partition("_")
        number = int(re.sub(r"\D", "", digits))
        major, minor = divmod(number, 10)
        if (kind == "compute" and (major, minor) <= capability) or (major == capability[0] and minor <= capability[1]):
            return True
    return False


@functools.cache
def _mps_is_usable() -> bool:
    """Apple's graphics: torch before 2.8 had no 3D convolutions there, and later ones not all 3D sampling."""
    import torch
    from torch.nn import functional as F

    try:
        volume = torch.rand(1, 1, 4, 4, 4, device="mps", requires_grad=True)
        F.conv_transpose3d(volume, torch.rand(1, 1, 2, 2, 2, device="mps"), stride=2).sum().backward()
        places = torch.zeros(1, 4, 4, 4, 3, device="mps")
        for mode in ("bilinear", "nearest"):
            F.grid_sample(volume.detach(), places, mode=mode, align_corners=True)
    except (RuntimeError, NotImplementedError):
        return False
    return True


PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def autocast(
    device: torch.device, *, smallest_edge: int = 99, precision: str = "auto", inference: bool = False
) -> torch.autocast:
    """Autocast to `precision`; auto: bf16 where the processor has bf16 arithmetic, else a context that does nothing; but in
    `inference`, which needs no scaling of a loss, fp16 on NVIDIA cards that only imitate bf16.

    Chosen by what the processor can do, not by timing it, so that the same machine gives the same model. Not for maps whose
    `smallest_edge` is below 3: there losses of bf16 convolutions on a CPU were NaN now and then. On a CPU with bf16 units
    one step of the smallest UNETR (batch 2, 48^3) took 0.57 of the fp32 time.
    """
    import torch

    if precision != "auto":
        use = precision != "fp32"
    elif device.type == "cuda":
        real = torch.cuda.get_device_capability(device)[0] >= 8  # older cards only imitate bf16
        use, precision = real or inference, "auto" if real else "fp16"
    else:
        use = device.type == "cpu" and smallest_edge >= 3 and cpu_has_bf16()
    kind = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(
        device.type if device.type != "mps" or precision != "auto" else "cpu", dtype=kind, enabled=use
    )


def gradient_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """Scales the loss so that fp16 gradients do not vanish; does nothing for every other precision."""
    import torch

    if not hasattr(torch.amp, "GradScaler"):  # torch 2.2
        return torch.cuda.amp.GradScaler(enabled=precision == "fp16")
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def cpu_has_bf16() -> bool:
    """Does this processor multiply bf16 in hardware (AVX-512 BF16 or AMX)? False where torch cannot tell."""
    import torch

    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(ask is not None and ask() for ask in asked)
