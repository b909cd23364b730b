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


def autocast(device: torch.device, enabled: bool = True) -> torch.autocast:
    """bf16 autocast where the device is fast with it (CUDA with bf16), else a context that does nothing.

    On the CPU bf16 pays for large networks only; small variants are faster in fp32, so it stays off here.
    """
    import torch

    use = enabled and device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type if device.type != "mps" else "cpu", dtype=torch.bfloat16, enabled=use)
