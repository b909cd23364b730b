"""The out-of-memory fallback of inference: fewer tiles at a time, then sums in system memory, then the CPU.

A step is planned here as plain data; `sliding_window.SlidingWindow` applies it to its tensors and goes on with the tiles
that are not finished.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from HiEndMAECore.errors import OutOfMemoryError, classify_exception
from HiEndMAECore.runtime.memory import CPU

from .memory_plan import MemoryPlan
from .uncertainty import summarize_logits


@dataclass(frozen=True)
class FallbackStep:
    """One step of the fallback: the plan (None if there is none yet) and device from now on, and a phrase for the user."""

    plan: MemoryPlan | None
    device: torch.device
    description: str


def as_out_of_memory(error: Exception) -> OutOfMemoryError | None:
    """Return the typed error if `error` reports a lack of memory, else None."""
    known = error if isinstance(error, OutOfMemoryError) else classify_exception(error)
    return known if isinstance(known, OutOfMemoryError) else None


def can_reduce_memory(plan: MemoryPlan | None, device: torch.device) -> bool:
    """Return whether a step remains: the CPU with one tile at a time is the last resort."""
    return device != CPU or (plan is not None and plan.batch_size > 1)


def reduce_memory(plan: MemoryPlan | None, device: torch.device) -> FallbackStep:
    """Return the next step: half the batch size; then the sums in system memory; then everything on the CPU.

    Args:
        plan: The present plan; None if memory ran out before a plan was made.
        device: The device that computes the tiles now.
    """
    if plan is not None and plan.batch_size > 1:
        smaller = replace(plan, batch_size=plan.batch_size // 2)
        return FallbackStep(smaller, device, f"{smaller.batch_size} tile(s) at a time instead of {plan.batch_size}")
    if plan is not None and plan.sums_device != CPU:
        return FallbackStep(replace(plan, sums_device=CPU), device, "the sums are kept in system memory")
    return FallbackStep(plan, CPU, f"the CPU computes instead of {device}")


def summarize_logits_within_memory(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return `summarize_logits(logits)`, computed in system memory if the device has too little memory.

    Args:
        logits: (K, H, W, D), on any device.
    """
    try:
        return summarize_logits(logits)
    except Exception as error:
        if logits.device.type == "cpu" or as_out_of_memory(error) is None:
            raise
    return summarize_logits(logits.cpu())
