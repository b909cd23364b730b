"""AdamW as both loops use it, and the learning rate of every step."""

from __future__ import annotations

import math

import torch


def cosine_schedule(step: int, steps: int, *, warm_up: int) -> float:
    """Share of the base rate at 0-based `step` of `steps`: linear to 1 over `warm_up` steps, then a cosine towards 0."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def set_learning_rate(optimizer: torch.optim.Optimizer, share: float) -> float:
    """Give each group `share` of its base rate; returns the first group's rate."""
    for group in optimizer.param_groups:
        group.setdefault("base_lr", group["lr"])
        group["lr"] = group["base_lr"] * share
    return float(optimizer.param_groups[0]["lr"])
