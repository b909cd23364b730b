"""Training recipes: which crops a step takes, how they are augmented, and the loss. Defines the default recipe.

The paper's own recipe is in `paper_recipe`. All crops of a step are drawn first and then cut out of the whole scans, with
rotation, scaling and elastic deformation in one interpolation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor, nn

from HiEndMAECore.preprocessing.laterality import Mirroring

from .augmentation import (
    Augmentation,
    crop_batch_augmented,
    draw_augmentation,
    is_mirrored,
    mirror_augmentation,
    sample_generator,
)
from .foreground_sampling import ForegroundSampler
from .losses import WeightedDiceCELoss
from .plans import FinetuningPlan
from .training_cases import TrainingCase


class Recipe(Protocol):
    """Crops, augmentation and loss of a fine-tuning run (`DefaultRecipe`, `PaperRecipe`).

    Attributes:
        criterion: Loss module, called as `criterion(logits, classes, done=fraction of the run)`; returns a scalar.
        swaps: Pairs of classes that are exchanged in mirrored crops.
    """

    criterion: nn.Module
    swaps: tuple[tuple[int, int], ...]

    def draw(self, index: int, crop: Sequence[int]) -> tuple[int, np.ndarray, Augmentation]:
        """Draw crop `index` of the run: (index of the case, center in voxels, augmentation)."""
        ...


class DefaultRecipe:
    """Crops evenly around all structures with strong augmentation, mirrored where the labels allow it.

    Args:
        cases: Training cases.
        classes: Number of classes with the background.
        plan: Settings of the run; the seed and the probability of mirroring are used.
        mirroring: Whether crops may be mirrored, and which classes are exchanged then. None: no crop is mirrored.
    """

    def __init__(
        self, cases: Sequence[TrainingCase], *, classes: int, plan: FinetuningPlan, mirroring: Mirroring | None = None
    ) -> None:
        self.seed = plan.seed
        self.centers = ForegroundSampler(cases, seed=plan.seed)
        self.criterion: nn.Module = WeightedDiceCELoss(cases, classes=classes)
        self.swaps = mirroring.swaps if mirroring else ()
        self.mirror_probability = plan.mirror_probability if mirroring and mirroring.allowed else 0.0

    def draw(self, index: int, crop: Sequence[int]) -> tuple[int, np.ndarray, Augmentation]:
        """Draw crop `index` of the run: (index of the case, center in voxels, augmentation)."""
        rng = sample_generator(self.seed, index)
        case, center = self.centers.draw(rng, crop)
        augmentation = draw_augmentation(rng, crop)
        if self.mirror_probability and rng.random() < self.mirror_probability:
            augmentation = mirror_augmentation(augmentation)
        return case, center, augmentation


class CropBatch(NamedTuple):
    """The crops of one step.

    Attributes:
        images: (B, C, *crop).
        classes: (B, 1, *crop).
        unknown: The classes that the case of each crop does not label, see `TrainingCase`.
    """

    images: Tensor
    classes: Tensor
    unknown: tuple[tuple[int, ...], ...]


def draw_batch(cases: Sequence[TrainingCase], recipe: Recipe, *, step: int, plan: FinetuningPlan) -> CropBatch:
    """Draw and cut the batch of one step.

    Args:
        cases: Training cases on the device that cuts the crops.
        recipe: Recipe that draws the crops.
        step: The step, counted from 0.
        plan: Settings of the run; crop and batch size are used.
    """
    first = step * plan.batch_size
    draws = [recipe.draw(index, plan.crop) for index in range(first, first + plan.batch_size)]
    image, classes = cases[0].image, cases[0].classes
    images = image.new_empty((len(draws), len(image), *plan.crop))
    targets = classes.new_empty((len(draws), 1, *plan.crop))
    for index in sorted({case for case, _, _ in draws}):
        rows = [row for row, (case, _, _) in enumerate(draws) if case == index]
        centers, augmentations = [draws[row][1] for row in rows], [draws[row][2] for row in rows]
        images[rows], targets[rows, 0] = crop_batch_augmented(
            cases[index].image, cases[index].classes, centers, plan.crop, augmentations
        )
    unknown = [cases[index].unknown for index, _, _ in draws]
    if recipe.swaps:
        mirrored = [row for row, (_, _, augmentation) in enumerate(draws) if is_mirrored(augmentation)]
        targets[mirrored] = swap_classes(targets[mirrored], recipe.swaps)
        partners = {**dict(recipe.swaps), **{other: one for one, other in recipe.swaps}}
        for row in mirrored:
            unknown[row] = tuple(partners.get(value, value) for value in unknown[row])
    return CropBatch(images, targets, tuple(unknown))


def swap_classes(classes: Tensor, swaps: Sequence[tuple[int, int]]) -> Tensor:
    """Return `classes` with the two values of each pair exchanged."""
    swapped = classes.clone()
    for one, other in swaps:
        swapped[classes == one] = other
        swapped[classes == other] = one
    return swapped
