"""Segmentation loss of the default recipe: Dice plus weighted cross-entropy.

Partial labels: an ignored voxel (class `IGNORED`) is in none of the sums. A structure that a case does not label is merged with
the background of its crops before the loss, see `merge_unknown`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .training_cases import TrainingCase

_SMOOTH = 1e-5  # of the Dice term, in numerator and denominator


class WeightedDiceCELoss(nn.Module):
    """Batch Dice (MONAI's `batch=True`, nnU-Net's `batch_dice`) plus cross-entropy with class weights that fade.

    The Dice excludes the background and is computed over the whole batch, because a structure that is absent from one
    crop of a small batch must not count as a failure. The class weights start as the inverse square root of each
    class's voxel fraction and become uniform at half of the run; if they stayed, small structures would be predicted
    everywhere. Without any weights the background wins first, and small structures stay at exactly zero for hundreds
    of steps (demo patients at 6 mm, step 200 of 250: mean Dice 0.46 without and 0.73 with the weights). A class's fraction is
    that of the judged voxels in the cases that label it.

    Args:
        cases: Training cases, from whose labels the class fractions are counted.
        classes: Number of classes with the background.
    """

    def __init__(self, cases: Sequence[TrainingCase], *, classes: int) -> None:
        super().__init__()
        counts = torch.stack(
            [torch.bincount(case.classes.flatten().long() + 1, minlength=classes + 1) for case in cases]
        )
        counts, self.has_ignored = counts[:, 1:], bool(counts[:, 0].any())
        labelling = torch.ones_like(counts, dtype=torch.bool)  # (case, class)
        for row, case in zip(labelling, cases):
            row[list(case.unknown)] = False
        totals = (counts.sum(1, keepdim=True) * labelling).sum(0)
        fractions = counts.sum(0).double() / totals.clamp(min=1)
        self.register_buffer("class_fractions", fractions.clamp(min=1e-6).float(), persistent=False)

    class_fractions: Tensor

    def forward(self, logits: Tensor, classes: Tensor, *, done: float) -> Tensor:
        """Return the scalar loss.

        Args:
            logits: (B, K, H, W, D).
            classes: Labels (B, 1, H, W, D), `IGNORED` for voxels that do not count.
            done: Fraction of the run that is over, from 0 to 1.
        """
        weights = self.class_fractions ** (-0.5 * max(0.0, 1 - 2 * done))
        # The mean of the cross-entropy does not depend on this scale; it keeps the weights near 1.
        weights = weights / (weights * self.class_fractions).sum()
        classes = classes.flatten(2).long()
        judged = classes >= 0 if self.has_ignored else None
        return _DiceCE.apply(logits.flatten(2), classes, weights, judged)


def merge_unknown(logits: Tensor, unknown: Sequence[Sequence[int]]) -> Tensor:
    """Merge the classes that a crop's case does not label with its background.

    The merged background has the sum of their probabilities (marginal loss). The merged classes have the probability 0 in
    this crop, so that they are in no Dice there: their term has neither voxels of the reference nor of the prediction.

    Args:
        logits: (B, K, H, W, D).
        unknown: Classes that are unknown in each of the B crops.

    Returns:
        Logits of the same shape; the same tensor where nothing is unknown.
    """
    if not any(unknown):
        return logits
    merged = []
    for crop, classes in zip(logits, unknown):
        if classes:
            members = torch.tensor([0, *classes], device=crop.device)
            background = crop.index_select(0, members).logsumexp(0, keepdim=True)
            crop = torch.cat([background, crop.index_fill(0, members, -math.inf)[1:]])
        merged.append(crop)
    return torch.stack(merged)


class _DiceCE(torch.autograd.Function):
    """MONAI's `DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)` plus `F.cross_entropy`.

    One softmax serves both, the one-hot classes are never stored, and the gradient is computed in closed form.
    logits: (B, K, N). classes: (B, 1, N). weights: (K,), of the cross-entropy. judged: (B, 1, N) bool, False for ignored
    voxels; None: all voxels count.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, classes: Tensor, weights: Tensor, judged: Tensor | None) -> Tensor:
        count = logits.shape[1]
        kinds = classes.flatten()
        if judged is not None:
            kinds = torch.where(judged, classes, count).flatten()  # an ignored voxel is none of the classes
            classes = classes.clamp(min=0)
        log_probabilities = logits.log_softmax(1)
        own_log = log_probabilities.gather(1, classes)  # of the true class
        probabilities = log_probabilities.exp_()
        own, voxel_weights = own_log.exp(), weights[classes]
        if judged is not None:
            probabilities.mul_(judged)
            own, voxel_weights = own * judged, voxel_weights * judged
        overlap = own.new_zeros(count).index_add_(0, classes.flatten(), own.flatten())
        size = torch.bincount(kinds, minlength=count)[:count]
        total = probabilities.sum((0, 2)) + size + _SMOOTH
        dice = (2 * overlap + _SMOOTH) / total
        weight_sum = voxel_weights.sum()
        if judged is not None:
            weight_sum = weight_sum.clamp(min=torch.finfo(weights.dtype).tiny)  # all voxels may be ignored
        # Derivatives of the Dice term by the probabilities: of the true class, and in addition of every class.
        by_own, by_any = -2 / total / (count - 1), dice / total / (count - 1)
        by_own[0] = by_any[0] = 0  # the background is not a part of the Dice
        ctx.save_for_backward(probabilities, own, classes, by_own[classes], by_any, voxel_weights / weight_sum)
        return 1 - dice[1:].mean() - (voxel_weights * own_log).sum() / weight_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        probabilities, own, classes, by_own, by_any, voxel_weights = ctx.saved_tensors
        mean = (by_any @ probabilities)[:, None] + by_own * own  # of the derivatives over a voxel's probabilities
        result = probabilities * (by_any[:, None] + (voxel_weights - mean))
        result.scatter_add_(1, classes, own * by_own - voxel_weights)
        return result.mul_(gradient), None, None, None
