"""AdamW as both loops use it, and the learning rate of every step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from HiEndMAECore.networks.layers.vit import ViTEncoder


def build_adamw(
    groups: Iterable[dict[str, Any]] | Iterable[torch.nn.Parameter],
    *,
    learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> torch.optim.AdamW:
    """AdamW, fused where torch has it for the parameters' device (specification, section 7: 5 times as fast on a CPU)."""
    listed: list[Any] = list(groups)
    fresh = [dict(group) if isinstance(group, dict) else group for group in listed]  # AdamW writes into its groups
    arguments: dict[str, Any] = {"lr": learning_rate, "betas": betas, "weight_decay": weight_decay}
    try:
        return torch.optim.AdamW(fresh, fused=True, **arguments)
    except RuntimeError:  # this torch has no fused AdamW for this device
        return torch.optim.AdamW(listed, **arguments)


def weight_decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups with weight decay on matrices alone: what the paper's code names, and its release does not do."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def layer_decay_groups(encoder: ViTEncoder, learning_rate: float, *, decay: float) -> list[dict[str, Any]]:
    """Parameter groups of an encoder: the last block and the final norm learn at `learning_rate`, every block before at
    `decay` times the rate of the next, patch embedding and cls token slowest. One group where `decay` is 1.

    What pretraining taught early layers, edges and textures, fits any patient: it should change least.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"the layers' decay is {decay}, must lie above 0 and not above 1")
    if decay == 1:
        return [{"params": list(encoder.parameters()), "lr": learning_rate}]
    depths: dict[int, list[torch.nn.Parameter]] = {}  # blocks between a parameter and the output
    for name, parameter in encoder.named_parameters():
        part, _, rest = name.partition(".")
        below = {"blocks": encoder.depth - 1 - int(rest.partition(".")[0]) if part == "blocks" else 0, "norm": 0}
        depths.setdefault(below.get(part, encoder.depth), []).append(parameter)
    return [{"params": depths[depth], "lr": learning_rate * decay**depth} for depth in sorted(depths)]
