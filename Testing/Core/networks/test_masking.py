"""Masks are drawn in one place: by the data loading, by the model, and by tests."""

from __future__ import annotations

import numpy as np
import torch

from HiEndMAECore.networks import HiEndMAE
from HiEndMAECore.networks.masking import random_masking, split_patches


def test_random_masking_is_a_permutation_of_each_crop() -> None:
    order = random_masking(5, 64)
    assert order.shape == (5, 64)
    assert order.dtype == torch.long
    assert torch.equal(order.sort(dim=1).values, torch.arange(64).expand(5, -1))
    assert len({tuple(row.tolist()) for row in order}) == 5


def test_random_masking_follows_its_generator() -> None:
    for generator in (lambda seed: np.random.default_rng(seed), lambda seed: torch.Generator().manual_seed(seed)):
        first, again, other = (random_masking(2, 27, rng=generator(seed)) for seed in (3, 3, 4))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_random_masking_keeps_the_masks_of_recorded_runs() -> None:
    """Both generators give what earlier versions drew, so that runs resume with the same samples."""
    drawn = np.random.default_rng((7, 11)).random(216).argsort()
    assert torch.equal(random_masking(1, 216, rng=np.random.default_rng((7, 11)))[0], torch.from_numpy(drawn))
    torch.manual_seed(5)
    expected = torch.rand(2, 64).argsort(dim=1)
    torch.manual_seed(5)
    assert torch.equal(random_masking(2, 64), expected)


def test_model_without_a_permutation_draws_it_by_random_masking() -> None:
    model = HiEndMAE(
        image_size=(16, 16, 16), patch_size=4, encoder_dim=24, encoder_heads=2, decoder_dim=12, decoder_heads=2
    )
    torch.manual_seed(1)
    expected = random_masking(2, 64)
    torch.manual_seed(1)
    assert torch.equal(model(torch.rand(2, 1, 16, 16, 16, generator=torch.Generator())).permutation, expected)


def test_split_patches_puts_the_visible_ones_first() -> None:
    visible, masked = split_patches(torch.tensor([[3, 1, 0, 2]]), 1)
    assert visible.tolist() == [[3]]
    assert masked.tolist() == [[1, 0, 2]]
