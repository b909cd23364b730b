"""AdamW as both training loops use it, and its parameter groups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from HiEndMAECore.networks.interface import LayerGroup


def build_adamw(
    groups: Iterable[dict[str, Any]] | Iterable[torch.nn.Parameter],
    *,
    learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> torch.optim.AdamW:
    """Build AdamW, fused where torch supports it on the parameters' device (5 times as fast on a CPU).

    Args:
        groups: Parameters, or parameter groups, which may have rates of their own.
        learning_rate: Rate of groups that have none.
        betas: Decays of the moments.
        weight_decay: Of groups that have none.
    """
    listed: list[Any] = list(groups)
    fresh = [dict(group) if isinstance(group, dict) else group for group in listed]  # AdamW writes into its groups
    arguments: dict[str, Any] = {"lr": learning_rate, "betas": betas, "weight_decay": weight_decay}
    try:
        return torch.optim.AdamW(fresh, fused=True, **arguments)
    except RuntimeError:  # this torch has no fused AdamW for this device
        return torch.optim.AdamW(listed, **arguments)


def weight_decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups with weight decay on matrices alone, as the paper's code names them; its release decays all."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def layer_decay_groups(groups: Sequence[LayerGroup], learning_rate: float, *, decay: float) -> list[dict[str, Any]]:
    """Return the encoder's parameter groups with one learning rate for each depth.

    The deepest layers are trained at `learning_rate`, every layer before at `decay` times the rate of the next. What
    early layers learned in pretraining, edges and textures, fits any patient, so they should change least.

    Args:
        groups: Layer groups of the network; those that are not of the encoder are skipped.
        learning_rate: Rate at depth 0.
        decay: Factor for each depth; 1: one group for the whole encoder.

    Raises:
        ValueError: If `decay` is not above 0 and at most 1.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"the layers' decay is {decay}, must lie above 0 and not above 1")
    depths: dict[int, list[torch.nn.Parameter]] = {}
    for group in groups:
        if group.is_encoder:
            depths.setdefault(group.depth if decay < 1 else 0, []).extend(group.parameters)
    return [{"params": depths[depth], "lr": learning_rate * decay**depth} for depth in sorted(depths)]


def freeze_encoder(groups: Sequence[LayerGroup], frozen: bool = True) -> None:
    """Exclude the encoder's parameters from training, or include them again."""
    for group in groups:
        for parameter in group.parameters if group.is_encoder else ():
            parameter.requires_grad_(not frozen)
