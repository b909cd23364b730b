"""Optimizer and learning rates: AdamW, weight decay, rates by layer, warm-up and cosine decay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from training_examples import small_mae, small_unetr

from HiEndMAECore.training.optimizer import build_adamw, layer_decay_groups, weight_decay_groups
from HiEndMAECore.training.schedule import cosine_schedule


def test_build_adamw_without_fused_support_keeps_the_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.2 and 2.3 refuse fused AdamW on a CPU only after they have written it into the groups (a stand-in)."""

    class OldAdamW(torch.optim.AdamW):
        def __init__(self, groups: Any, *, fused: bool = False, **arguments: Any) -> None:
            super().__init__(groups, fused=fused, **arguments)
            if fused:
                raise RuntimeError("`fused=True` requires all the params to be on CUDA")

    monkeypatch.setattr(torch.optim, "AdamW", OldAdamW)
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": 1e-2}]
    optimizer = build_adamw(groups, learning_rate=1e-3, betas=(0.9, 0.999), weight_decay=0.0)
    assert not optimizer.param_groups[0]["fused"]


def test_weight_decay_groups_spare_norms_and_biases() -> None:
    model = small_mae()
    decayed, spared = weight_decay_groups(model, 0.05)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.05, 0.0)
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))
    assert all(parameter.ndim == 1 for parameter in spared["params"])


def test_layer_decay_groups_have_higher_rates_in_deeper_layers() -> None:
    network = small_unetr()
    groups = layer_decay_groups(network.layer_groups(), 1e-3, decay=0.5)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    named = dict(network.encoder.named_parameters())
    assert len(rates) == len(named) == sum(len(group["params"]) for group in groups)

    def rate_of(name: str) -> float:
        return rates[id(named[name])]

    assert rate_of("norm.weight") == rate_of("blocks.3.attn.qkv.weight") == 1e-3
    assert rate_of("blocks.2.mlp.fc1.bias") == pytest.approx(5e-4)
    assert rate_of("blocks.0.norm1.weight") == pytest.approx(1.25e-4)
    assert rate_of("patch_embed.proj.weight") == rate_of("cls_token") == pytest.approx(6.25e-5)
    assert len(layer_decay_groups(network.layer_groups(), 1e-3, decay=1.0)) == 1
    with pytest.raises(ValueError, match="is 0"):
        layer_decay_groups(network.layer_groups(), 1e-3, decay=0)


def test_cosine_schedule_rises_and_decays_without_a_zero_rate() -> None:
    rates = [cosine_schedule(step, 100, warm_up=10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert (np.diff(rates[10:]) < 0).all()
    assert 0 < rates[-1] < 1e-3
