"""Augmented crops: the right voxels, the right orientation, labels that stay on their structures."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.layers import GaussianFilter
from torch.nn import functional as F
from training_examples import cube_case

from HiEndMAECore.training import augmentation
from HiEndMAECore.training.foreground_sampling import ForegroundSampler


def reference_crop(
    image: torch.Tensor, labels: torch.Tensor, center: np.ndarray, size: tuple[int, ...], parameters: Any
) -> Any:
    """Return one crop, computed with one operation after the other in double precision."""
    axes = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in size]
    positions = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1) @ torch.tensor(parameters.matrix.T)
    positions = positions + torch.tensor(np.asarray(center, float))
    lattice = torch.tensor(parameters.displacement)[None]
    displacement = F.interpolate(lattice, size=size, mode="trilinear", align_corners=True)[0].movedim(0, -1)
    positions = positions + displacement
    grid = ((positions * 2 + 1) / torch.tensor(image.shape[1:]) - 1).flip(-1)[None]
    crop = F.grid_sample(image[None].double(), grid, align_corners=False)[0].float()
    target = F.grid_sample(labels[None, None].double(), grid, mode="nearest", align_corners=False)[0, 0]
    if parameters.blur:
        crop = GaussianFilter(3, parameters.blur, truncated=2.0)(crop[None])[0]
    crop = crop.clamp(min=0) ** parameters.gamma * parameters.gain + parameters.shift
    if parameters.noise:
        generator = torch.Generator().manual_seed(parameters.seed)
        crop = crop + parameters.noise * torch.randn(crop.shape, generator=generator)
    return crop, target.to(labels.dtype)


@pytest.mark.parametrize("size", [(16, 16, 16), (15, 12, 9)])
@pytest.mark.parametrize("channels", [1, 2])
def test_crop_batch_augmented_equals_single_reference_crops(size: tuple[int, int, int], channels: int) -> None:
    """No crop's blur, gamma or noise reaches another crop of the batch."""
    case = cube_case()
    image = torch.cat([case.image, 1 - case.image][:channels]).clamp(0, 1)
    draws = [augmentation.draw_augmentation(augmentation.sample_generator(0, index), size) for index in range(40)]
    assert Counter(draw.blur > 0 for draw in draws)[True] >= 2
    assert Counter(draw.noise > 0 for draw in draws)[True] >= 2
    rng = np.random.default_rng(0)
    centers = list(rng.uniform(0, 27, (len(draws), 3)))
    crops, targets = augmentation.crop_batch_augmented(image, case.classes, centers, size, draws)
    assert crops.shape == (40, channels, *size)
    assert targets.dtype == case.classes.dtype
    for crop, target, center, draw in zip(crops, targets, centers, draws):
        expected, classes = reference_crop(image, case.classes, center, size, draw)
        torch.testing.assert_close(crop, expected, atol=2e-4, rtol=1e-4)
        assert (target != classes).float().mean() < 2e-3  # voxels halfway between two


def test_crop_augmented_with_identity_equals_the_scan() -> None:
    case = cube_case()
    image, classes = augmentation.crop_augmented(
        case.image, case.classes, np.array([11.5, 13.5, 9.5]), (8, 8, 8), augmentation.IDENTITY
    )
    torch.testing.assert_close(image, case.image[:, 8:16, 10:18, 6:14], atol=1e-5, rtol=1e-5)
    assert torch.equal(classes, case.classes[8:16, 10:18, 6:14])


def test_crop_augmented_with_quarter_turn_rotates_in_the_right_direction() -> None:
    image = torch.zeros(1, 21, 21, 21)
    image[0, 15, 10, 10] = 1  # five voxels from the center along the first axis
    quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    parameters = augmentation.Augmentation(quarter, np.zeros((3, 4, 4, 4)), 1.0, 0.0, 1.0, 0.0, 0.0, 0)
    crop, _ = augmentation.crop_augmented(image, image[0], np.array([10.0, 10, 10]), (21, 21, 21), parameters)
    # Offset o of the crop shows offset quarter @ o of the scan: (0, -5, 0) -> (5, 0, 0).
    assert tuple(int(index) for index in np.unravel_index(int(crop[0].argmax()), (21, 21, 21))) == (10, 5, 10)


def test_crop_augmented_outside_the_scan_is_air_and_background() -> None:
    case = cube_case()
    image, classes = augmentation.crop_augmented(
        case.image, case.classes, np.array([-20.0, 0, 0]), (8, 8, 8), augmentation.IDENTITY
    )
    assert not image.any()
    assert not classes.any()


def test_crop_augmented_keeps_labels_on_their_structures() -> None:
    case = cube_case()
    for index in range(10):
        rng = augmentation.sample_generator(0, index)
        draw = augmentation.draw_augmentation(rng, (24, 24, 24))
        spatial = augmentation.Augmentation(draw.matrix, draw.displacement, 1.0, 0.0, 1.0, 0.0, 0.0, 0)
        image, classes = augmentation.crop_augmented(
            case.image, case.classes, np.array([13.5] * 3), (24, 24, 24), spatial
        )
        assert float(image[0][classes == 1].mean()) > 0.8
        assert float(image[0][classes == 2].mean()) < 0.25


def test_foreground_sampler_centers_crops_on_every_structure() -> None:
    case = cube_case()
    centers = ForegroundSampler([case], seed=0)
    rng = np.random.default_rng(0)
    counts = np.zeros(3)
    for _ in range(300):
        _, center = centers.draw(rng, (0, 0, 0))  # an empty crop is not shifted
        counts[int(case.classes[tuple(center.astype(int))])] += 1
    assert counts.min() > 50
