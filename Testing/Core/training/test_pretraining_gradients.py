"""The fast pretraining model against a literal reading of the specification: loss, prediction and every gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoder_macs import PUBLISHED, full_macs, paper_macs
from oracle import Oracle

from HiEndMAECore.networks import HiEndMAE
from HiEndMAECore.networks.variants import decoder_self_blocks

SIZES: dict[str, Any] = {
    "image_size": (16, 16, 16),
    "patch_size": 4,
    "encoder_dim": 24,
    "encoder_depth": 12,
    "encoder_heads": 2,
    "decoder_dim": 12,
    "decoder_heads": 2,
}
OBJECTIVES = [("mae", 0), *(("hi-end-mae", stages) for stages in range(4))]


def compare(arguments: dict[str, Any], channels: int = 1) -> None:
    torch.manual_seed(0)
    fast = HiEndMAE(**arguments, in_channels=channels)
    literal = Oracle(**arguments, in_channels=channels)
    for parameter in fast.parameters():  # biases and cls token are zero at the start: nothing would be seen of them
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    literal.load_state_dict(fast.state_dict())
    volume = torch.rand(2, channels, *arguments["image_size"])
    permutation = fast.random_masking(2)
    output = fast(volume, permutation)
    loss, prediction = literal(volume, permutation)
    output.loss.backward()
    loss.backward()
    assert torch.allclose(output.loss, loss, rtol=1e-5, atol=0)
    assert torch.allclose(output.prediction, prediction, atol=1e-5)
    expected = {name: parameter.grad for name, parameter in literal.named_parameters()}
    largest = max(float(grad.abs().max()) for grad in expected.values() if grad is not None)
    for name, parameter in fast.named_parameters():
        assert parameter.grad is not None, name
        wanted = expected[name]
        assert wanted is not None, name
        scale = max(float(wanted.abs().max()), 1e-3 * largest)  # a key's bias has no gradient but for rounding
        assert float((parameter.grad - wanted).abs().max()) <= 1e-5 * scale, name


@pytest.mark.parametrize("mask_ratio", [0.75, 0.8, 0.85, 0.9, 0.95])
@pytest.mark.parametrize(("objective", "stages"), OBJECTIVES)
def test_gradients_equal_those_of_the_literal_model(objective: str, stages: int, mask_ratio: float) -> None:
    blocks = decoder_self_blocks(objective, stages)
    compare({**SIZES, "self_blocks": blocks, "cross_stages": stages, "mask_ratio": mask_ratio})


@pytest.mark.parametrize("channels", [1, 2])
def test_gradients_of_anisotropic_crops_and_more_channels_are_equal(channels: int) -> None:
    compare({**SIZES, "image_size": (16, 8, 24)}, channels)


@pytest.mark.parametrize(("objective", "stages"), OBJECTIVES)
def test_gradient_checkpointing_gives_the_same_gradients(objective: str, stages: int) -> None:
    arguments = {**SIZES, "self_blocks": decoder_self_blocks(objective, stages), "cross_stages": stages}
    torch.manual_seed(0)
    model = HiEndMAE(**arguments)
    volume, permutation = torch.rand(2, 1, 16, 16, 16), model.random_masking(2)
    grads = []
    for recompute in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(recompute)
        model(volume, permutation).loss.backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


@pytest.mark.parametrize(("file", "mask_ratio"), [("tiny_cubic.npz", 0.75), ("tiny_mask90.npz", 0.9)])
def test_literal_model_gives_the_recorded_numbers(file: str, mask_ratio: float) -> None:
    known = np.load(Path(__file__).parents[1] / "parity" / file)
    literal = Oracle(**SIZES, mask_ratio=mask_ratio)
    state = {key[3:]: torch.from_numpy(known[key]) for key in known.files if key.startswith("sd/")}
    for table in ("encoder_pos_embed", "decoder_pos_embed"):
        stored = state.pop(table)[0]
        assert torch.allclose(stored, literal.get_buffer(table.replace("_pos_embed", "_position_embedding")), atol=1e-6)
    literal.load_state_dict(state)
    loss, prediction = literal(torch.from_numpy(known["x"]), torch.from_numpy(known["shuffle_indices"]))
    assert float(loss.detach()) == pytest.approx(float(known["out/loss"]), rel=1e-5)
    wanted = known["out/pred_all_tokens"][:, -prediction.shape[1] :]
    np.testing.assert_allclose(prediction.detach(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("key", sorted(PUBLISHED))
def test_decoder_costs_of_the_paper_are_reproduced(key: tuple[str, int]) -> None:
    """To the digits that Tables 6 and 7 print; they cut off instead of rounding."""
    macs = paper_macs(*key)
    assert int(macs * 100) / 100 == PUBLISHED[key]
    assert full_macs(*key, engine=True) < full_macs(*key, engine=False)
