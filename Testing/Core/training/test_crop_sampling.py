"""Samples of a pretraining run: keyed by seed and index, padded crops, epochs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from training_examples import CPU, small_mae, small_store

from HiEndMAECore.data.crop_store import CropStore
from HiEndMAECore.networks.hi_end_mae import normalize_patches
from HiEndMAECore.networks.layers.patches import gather_tokens, patchify
from HiEndMAECore.training.crop_sampling import CropSampler, draw_start, scan_index


@pytest.fixture
def store(tmp_path: Path) -> CropStore:
    return small_store(tmp_path / "store")


def sampler(store: CropStore, seed: int = 1) -> CropSampler:
    return CropSampler(store, (16, 16, 16), 64, seed)


def test_draw_depends_only_on_seed_and_index(store: CropStore) -> None:
    sample, again = sampler(store).draw(5), sampler(store).draw(5)
    assert torch.equal(sample.to(CPU)[0], again.to(CPU)[0])
    assert torch.equal(sample.permutation, again.permutation)
    for other in (sampler(store).draw(6), sampler(store, seed=2).draw(5)):
        assert not torch.equal(sample.to(CPU)[0], other.to(CPU)[0])
        assert not torch.equal(sample.permutation, other.permutation)
    assert sorted(sample.permutation[0].tolist()) == list(range(64))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_with_any_number_of_threads_equal_single_draws(store: CropStore, workers: int) -> None:
    parts = [range(first, first + 3) for first in range(0, 30, 3)]
    batches = list(sampler(store).batches(iter(parts), workers=workers, pinned=False))
    for part, batch in zip(parts, batches, strict=True):
        singles = torch.cat([sampler(store).draw(index).to(CPU)[0] for index in part])
        assert torch.equal(batch.to(CPU)[0], singles)


def test_batch_augmentation_transforms_valid_mask_like_the_volume(store: CropStore) -> None:
    """Padding stays 0 except for the intensity shift, whatever the flips and rotations."""
    samples = [sampler(store).draw(index) for index in range(60)]
    padded = [sample for sample in samples if sample.valid_mask is not None]
    assert len(padded) > 10
    for sample in padded:
        volume, _, valid_mask = sample.to(CPU)
        assert valid_mask is not None
        assert 0 < valid_mask.float().mean() < 1
        assert torch.allclose(volume[~valid_mask], torch.tensor(sample.flips[0].shift))


def test_loss_ignores_padded_patches() -> None:
    model = small_mae().eval()
    volume, order = torch.rand(2, 1, 16, 16, 16), model.random_masking(2)
    valid_mask = torch.ones(2, 1, 16, 16, 16, dtype=torch.bool)
    complete = model(volume, order)
    assert torch.allclose(model(volume, order, valid_mask).loss, complete.loss, atol=1e-6)
    patch = int(order[0, -1])  # a masked patch of the first crop that becomes padding as a whole
    h, w, d = patch // 16 * 4, patch // 4 % 4 * 4, patch % 4 * 4
    valid_mask[0, :, h : h + 4, w : w + 4, d : d + 4] = False
    target = normalize_patches(patchify(volume, 4))
    errors = (complete.prediction - gather_tokens(target, order[:, model.visible :])) ** 2
    expected = (errors[0, :-1].mean() + errors[1].mean()) / 2
    assert torch.allclose(model(volume, order, valid_mask).loss, expected, atol=1e-6)
    assert not torch.allclose(expected, complete.loss, atol=1e-5)


def test_normalize_patches_ignores_padding_inside_a_patch() -> None:
    """Half of a patch is padding: mean and standard deviation are those of the other half."""
    torch.manual_seed(0)
    patches, valid = torch.rand(3, 2, 64), torch.ones(3, 2, 64)
    torch.testing.assert_close(normalize_patches(patches, valid), normalize_patches(patches), atol=1e-5, rtol=1e-5)
    valid[..., 32:] = 0
    target = normalize_patches(patches, valid)[..., :32]
    torch.testing.assert_close(target, normalize_patches(patches[..., :32]), atol=1e-5, rtol=1e-5)
    assert torch.equal(normalize_patches(patches * 0, valid * 0), patches * 0)  # a patch of padding only


def test_scan_index_takes_eight_crops_of_every_scan_in_each_epoch() -> None:
    epochs = [[scan_index(index, 10, 0) for index in range(epoch * 80, epoch * 80 + 80)] for epoch in range(3)]
    assert all(sorted(epoch) == sorted([*range(10)] * 8) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert len(set(epochs[0][:8])) > 3  # a small batch contains several scans


def test_crop_of_a_small_scan_is_padded_with_air(store: CropStore) -> None:
    crop = store.crop(1, start=(-3, 0, 0), size=(16, 16, 16))
    assert crop.shape == (1, 16, 16, 16)
    assert not crop[:, :3].any()
    assert not crop[:, 13:].any()
    assert crop[:, 3:13, 4:].all()


def test_draw_start_centers_most_crops_on_tissue(store: CropStore) -> None:
    rng = np.random.default_rng(0)
    starts = np.array([draw_start(store, 0, (4, 4, 4), rng) for _ in range(400)])
    tissue = [store.crop(0, start=start, size=(4, 4, 4)).any() for start in starts]
    assert np.mean(tissue) > 0.8  # three of four by design, and some of the others by chance
    assert (starts >= 0).all()
    assert (starts + 4 <= store.shape(0)).all()
