"""Learning-rate schedule of both training loops: linear warm-up, then cosine decay."""

from __future__ import annotations

import math

import torch


def cosine_schedule(step: int, steps: int, *, warm_up: int) -> float:
    """Return the fraction of the base learning rate at 0-based `step`.

    The rate rises linearly to 1 over `warm_up` steps, so that no step has a rate of zero, and then follows a cosine
    towards 0.

    Args:
        step: The step, counted from 0.
        steps: Steps of the whole run.
        warm_up: Steps of the warm-up.
    """
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def set_learning_rate(optimizer: torch.optim.Optimizer, fraction: float) -> float:
    """Set every parameter group to `fraction` of its base rate; return the rate of the first group."""
    for group in optimizer.param_groups:
        group.setdefault("base_lr", group["lr"])
        group["lr"] = group["base_lr"] * fraction
    return float(optimizer.param_groups[0]["lr"])
