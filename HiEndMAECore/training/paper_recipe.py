"""The paper's own fine-tuning (section 4.1 and its supplement, as in the authors' code), for `--preset paper-one-shot`.

AdamW with one rate of 1e-4, weight decay 1e-5, linear warm-up over 50 epochs and a cosine; a step is one volume with four
crops, as many around labelled voxels as around unlabelled ones of the body; flips and quarter turns p .2 (a flip an axis,
a turn in the plane of the first two), intensities scaled and shifted by up to a tenth, p .1 each; Dice and cross-entropy
with the background; the last weights, no average. 5,000 epochs for one shot, and by the share of a data set.

What it is not: quick. Nor does it know of left and right: it flips both into each other, as the paper does.
Ours all the same: the position table is computed, the cls token is kept (the function that was pretrained), and the rate
moves every step instead of every epoch, so that the first epoch does not learn at a rate of zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn

from HiEndMAECore.preprocessing.laterality import names_with_side
from HiEndMAECore.reporting.reporter import Reporter

from .augmentation import Augmentation, draw_paper_augmentation, sample_generator
from .plans import FinetuningPlan
from .training_cases import TrainingCase

EPOCHS = {None: 5000, 1: 5000, 10: 2000, 100: 1000}  # by the share of the data set, in percent; None: one shot
_WARM_UP = 50  # epochs
_CROPS = 4
_MOST = 200_000  # voxels of a kind to choose centres from
_ORDER = 1  # third word of the generators' key that order the volumes


def paper_plan(
    *, crop: tuple[int, int, int], cases: int, share: int | None = None, steps: int | None = None, seed: int = 0
) -> FinetuningPlan:
    """The paper's schedule for `cases` volumes; `steps` shortens (or lengthens) it as a whole."""
    whole = EPOCHS[share] * cases
    return FinetuningPlan(
        crop=crop,
        steps=steps or whole,
        batch_size=_CROPS,
        learning_rate=1e-4,
        encoder_rate=1e-4,
        weight_decay=1e-5,
        warm_up=_WARM_UP * cases / whole,
        ema=0.0,
        clip=None,
        seed=seed,
    )


def warn_about_flips(names: Sequence[str], report: Reporter) -> None:
    """Tell whoever asks for the paper's schedule what its flips do to left and right."""
    sided = names_with_side(names)
    if sided:
        report.warning(
            "paper_flips_sides",
            f"The paper's schedule flips left and right into each other; this scan tells them apart ('{sided[0]}').",
            "Use another --preset, which exchanges the names of mirrored pairs.",
        )


class PaperLoss(nn.Module):
    """Dice (squared) plus cross-entropy, background included: logits (B, K, H, W, D), classes (B, 1, H, W, D)."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = DiceCELoss(to_onehot_y=True, softmax=True, squared_pred=True, smooth_nr=0.0, smooth_dr=1e-6)

    def forward(self, logits: Tensor, classes: Tensor, *, done: float) -> Tensor:
        """`done`, the share of the run that is over, makes no difference."""
        return self.loss(logits, classes)


class PaperRecipe:
    """Crops and loss of the paper, see `finetuning.Method`."""

    swaps: tuple[tuple[int, int], ...] = ()

    def __init__(self, scans: Sequence[TrainingCase], *, seed: int) -> None:
        self.seed = seed
        self.criterion: nn.Module = PaperLoss()
        self._shapes = [np.array(scan.classes.shape) for scan in scans]
        self._labelled = [_some(scan.classes > 0, seed) for scan in scans]
        self._body = [_some((scan.classes == 0) & (scan.image[0] > 0), seed) for scan in scans]

    def draw(self, index: int, crop: Sequence[int]) -> tuple[int, np.ndarray, Augmentation]:
        """Crop `index` of the run: (scan, centre, change)."""
        rng = sample_generator(self.seed, index)
        volume = index // _CROPS
        epoch, place = divmod(volume, len(self._shapes))
        scan = int(np.random.default_rng((self.seed, epoch, _ORDER)).permutation(len(self._shapes))[place])
        kinds = [self._labelled[scan], self._body[scan]]
        places = kinds[int(rng.random() < 0.5)]
        if not len(places):
            places = kinds[0] if len(kinds[0]) else kinds[1]
        size = np.array(crop)
        start = places[int(rng.integers(len(places)))] - size // 2 if len(places) else (self._shapes[scan] - size) // 2
        start = np.clip(start, 0, np.maximum(self._shapes[scan] - size, 0))  # crops lie within the volume
        return scan, start + (size - 1) / 2, draw_paper_augmentation(rng, square=crop[0] == crop[1])


def _some(mask: Tensor, seed: int) -> np.ndarray:
    places = torch.nonzero(mask).cpu().numpy()
    if len(places) > _MOST:
        places = np.random.default_rng((seed, len(places))).choice(places, _MOST, replace=False)
    return places
