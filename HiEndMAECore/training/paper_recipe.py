"""The paper's fine-tuning recipe (section 4.1 and supplement, as in the authors' code), for `--preset paper-one-shot`.

AdamW with one learning rate of 1e-4 and weight decay 1e-5; linear warm-up over 50 epochs, then cosine decay. A step takes
one volume and four crops, of which half are centered on labelled voxels and half on unlabelled voxels of the body.
Augmentation: mirroring of each axis and quarter turns in the plane of the first two axes with probability 0.2; scaling and
shifting of the intensities by up to a tenth with probability 0.1 each. The loss is Dice plus cross-entropy with the
background. The last weights are used, without averaging. One-shot runs take 5,000 epochs; data sets take fewer, depending
on the share of their cases.

The recipe is slow, and it ignores laterality: like the paper, it mirrors left and right structures into each other.

Three details differ from the authors' code: the position embedding is computed for the grid at hand; the cls token is kept,
so that the encoder computes the function that was pretrained; and the learning rate changes in every step instead of every
epoch, so that the first epoch is not trained at a rate of zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.losses import DiceCELoss, DiceLoss
from torch import Tensor, nn
from torch.nn import functional as F

from HiEndMAECore.preprocessing.laterality import names_with_side
from HiEndMAECore.reporting.reporter import Reporter

from .augmentation import Augmentation, draw_paper_augmentation, sample_generator
from .plans import FinetuningPlan
from .training_cases import IGNORED, TrainingCase

EPOCHS = {None: 5000, 1: 5000, 10: 2000, 100: 1000}  # by the share of the data set in percent; None: one shot
_WARM_UP_EPOCHS = 50
_CROPS_PER_STEP = 4
_MAX_CENTERS = 200_000  # candidate voxels of one kind in one volume
_ORDER_KEY = 1  # third word in the key of the generators that order the volumes; those of the crops have two words


def paper_plan(
    *, crop: tuple[int, int, int], cases: int, share: int | None = None, steps: int | None = None, seed: int = 0
) -> FinetuningPlan:
    """Return the paper's schedule.

    Args:
        crop: Edges of a crop in voxels.
        cases: Number of training volumes; an epoch takes one step for each.
        share: Percent of the data set's cases that these are; None for one-shot training.
        steps: Length of the run, instead of the paper's; warm-up and decay are scaled with it.
        seed: Seed of the run.
    """
    paper_steps = EPOCHS[share] * cases
    return FinetuningPlan(
        crop=crop,
        steps=steps or paper_steps,
        batch_size=_CROPS_PER_STEP,
        learning_rate=1e-4,
        encoder_rate=1e-4,
        weight_decay=1e-5,
        warm_up=_WARM_UP_EPOCHS * cases / paper_steps,
        ema=0.0,
        clip=None,
        seed=seed,
    )


def warn_about_flips(names: Sequence[str], report: Reporter) -> None:
    """Warn when structures have a side, because the recipe mirrors left and right into each other."""
    lateral = names_with_side(names)
    if lateral:
        report.warning(
            "paper_flips_sides",
            f"The paper's recipe flips crops left-right without swapping labels, but '{lateral[0]}' is on one side.",
            "Use another --preset: the default recipe swaps the labels of left-right pairs.",
        )


class PaperLoss(nn.Module):
    """Dice loss with squared denominator plus cross-entropy, both with the background.

    Args:
        has_ignored: Whether the classes may have ignored voxels, which are left out of both.
    """

    def __init__(self, *, has_ignored: bool = False) -> None:
        super().__init__()
        self.has_ignored = has_ignored
        self.loss = DiceCELoss(to_onehot_y=True, softmax=True, squared_pred=True, smooth_nr=0.0, smooth_dr=1e-6)
        self.dice = DiceLoss(squared_pred=True, smooth_nr=0.0, smooth_dr=1e-6)

    def forward(self, logits: Tensor, classes: Tensor, *, done: float) -> Tensor:
        """Return the scalar loss of logits (B, K, H, W, D) and classes (B, 1, H, W, D); `done` is not used."""
        if not self.has_ignored:
            return self.loss(logits, classes)
        judged = classes != IGNORED
        target = F.one_hot(classes[:, 0].clamp(min=0).long(), logits.shape[1]).movedim(-1, 1) * judged
        log_own = logits.log_softmax(1).gather(1, classes.clamp(min=0).long())
        cross_entropy = -(log_own * judged).sum() / judged.sum().clamp(min=1)
        return self.dice(logits.softmax(1) * judged, target.to(logits.dtype)) + cross_entropy


class PaperRecipe:
    """Crops and loss of the paper (see `default_recipe.Recipe`).

    Args:
        cases: Training cases.
        seed: Seed of the run.
    """

    swaps: tuple[tuple[int, int], ...] = ()

    def __init__(self, cases: Sequence[TrainingCase], *, seed: int) -> None:
        self.seed = seed
        self.criterion: nn.Module = PaperLoss(has_ignored=any(bool((case.classes < 0).any()) for case in cases))
        self._shapes = [np.array(case.classes.shape) for case in cases]
        self._labelled = [_candidate_centers(case.classes > 0, seed) for case in cases]
        self._body = [_candidate_centers((case.classes == 0) & (case.image[0] > 0), seed) for case in cases]

    def draw(self, index: int, crop: Sequence[int]) -> tuple[int, np.ndarray, Augmentation]:
        """Draw crop `index` of the run: (index of the case, center in voxels, augmentation)."""
        rng = sample_generator(self.seed, index)
        epoch, position = divmod(index // _CROPS_PER_STEP, len(self._shapes))
        order = np.random.default_rng((self.seed, epoch, _ORDER_KEY)).permutation(len(self._shapes))
        case = int(order[position])
        kinds = [self._labelled[case], self._body[case]]
        centers = kinds[int(rng.random() < 0.5)]
        if not len(centers):
            centers = kinds[0] if len(kinds[0]) else kinds[1]
        size = np.array(crop)
        if len(centers):
            start = centers[int(rng.integers(len(centers)))] - size // 2
        else:
            start = (self._shapes[case] - size) // 2
        start = np.clip(start, 0, np.maximum(self._shapes[case] - size, 0))  # crops lie within the volume
        return case, start + (size - 1) / 2, draw_paper_augmentation(rng, square=crop[0] == crop[1])


def _candidate_centers(mask: Tensor, seed: int) -> np.ndarray:
    """Return the voxels (N, 3) of `mask`, at most `_MAX_CENTERS` of them."""
    voxels = torch.nonzero(mask).cpu().numpy()
    if len(voxels) > _MAX_CENTERS:
        voxels = np.random.default_rng((seed, len(voxels))).choice(voxels, _MAX_CENTERS, replace=False)
    return voxels
