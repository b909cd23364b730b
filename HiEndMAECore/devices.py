"""Which processor to compute on, and how many threads.

torch is imported inside the functions, so that doors and `doctor` can import this file on a bare Python.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    import torch


def require_torch() -> None:
    """Raise the typed error when torch is not installed."""
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingDependencyError.of("torch", "to compute") from error


def choose_device(name: str = "auto") -> torch.device:
    """The torch device for `auto`, `cpu`, `cuda`, `cuda:1` or `mps`; raises `UsageError` when it is not there."""
    require_torch()
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError("device_absent", f"This computer has no usable {name}.", "Use --device cpu, or see: doctor.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device_absent", "This computer has no usable mps device.", "Use --device cpu.")
    return device


PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def autocast(
    device: torch.device, *, smallest_edge: int = 99, precision: str = "auto", inference: bool = False
) -> torch.autocast:
    """Autocast to `precision`; auto: bf16 where the processor has bf16 arithmetic, else a context that does nothing; but in
    `inference`, which needs no scaling of a loss, fp16 on NVIDIA cards that only imitate bf16.

    Chosen by what the processor can do, not by timing it, so that the same machine gives the same model. On a CPU
    with bf16 units one step of the smallest UNETR (batch 2, 48^3) took 0.57 of the fp32 time.
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
