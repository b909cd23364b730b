"""Validation of a pretraining run: the loss on fixed crops, and the losses of two trivial predictors in the same units.

- zero: every masked patch is predicted as its mean (a loss of about 1, and less where patches are constant); for inpainting,
  as the fill value.
- nearest: the nearest visible patch is copied, normalized where the target is normalized.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from HiEndMAECore.networks.hi_end_mae import Reconstruction, mean_over_crops
from HiEndMAECore.networks.layers.patches import gather_tokens, patchify
from HiEndMAECore.networks.masking import split_patches
from HiEndMAECore.runtime.devices import autocast

from .crop_sampling import Batch
from .objectives.base import PretrainingObjective

NUM_VALIDATION_CROPS = 32


@dataclass(frozen=True)
class ValidationCrops:
    """Fixed validation crops with fixed masks, in batches of the size that the run uses."""

    batches: tuple[Batch, ...]

    @torch.no_grad()
    def loss(self, model: PretrainingObjective, device: torch.device, precision: str) -> tuple[float, Reconstruction]:
        """Compute the loss of `model` on the validation crops. Its training mode is preserved.

        Args:
            model: Model in training, on `device`.
            device: Device to compute on.
            precision: Precision of the run.

        Returns:
            The mean loss, and the model's reconstruction of the first batch.
        """
        total, first = 0.0, None
        training = model.training
        model.eval()
        for batch in self.batches:
            volume, permutation, valid_mask = batch.to(device)
            with autocast(device, smallest_edge=min(model.grid), precision=precision):
                output = model(volume, permutation, valid_mask)
            total += float(output.loss) * len(volume)
            first = first or output
        model.train(training)
        assert first is not None
        return total / sum(len(batch.volume) for batch in self.batches), first

    def trivial_losses(self, model: PretrainingObjective) -> tuple[float, float]:
        """Return the losses of the predictors "zero" and "nearest" on the validation crops, computed on the CPU."""
        sums, crops = torch.zeros(2), 0
        for batch in self.batches:
            volume, permutation, valid_mask = batch.to(torch.device("cpu"))
            if valid_mask is None:
                valid_mask = torch.ones_like(volume, dtype=torch.bool)
            patches = model.targets(volume)
            visible, masked = split_patches(permutation, model.visible)
            target = gather_tokens(patches, masked)
            copied = gather_tokens(patches, nearest_visible_patch(visible, masked, model.grid))
            weights = patchify(valid_mask.expand_as(volume).float(), model.patch_size)
            counted = gather_tokens(weights, masked)
            losses = [mean_over_crops(errors**2, counted) for errors in (target, copied - target)]
            sums += torch.stack(losses) * len(volume)
            crops += len(volume)
        zero, nearest = (sums / crops).tolist()
        return zero, nearest


def nearest_visible_patch(visible: Tensor, masked: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Return for each masked patch the visible patch with the nearest center.

    Args:
        visible: Indices (B, V) of the visible patches.
        masked: Indices (B, M) of the masked patches.
        grid: Number of patches along each axis.

    Returns:
        Indices (B, M) of visible patches.
    """
    centers = torch.cartesian_prod(*(torch.arange(edge) for edge in grid)).float()
    return visible.gather(1, torch.cdist(centers[masked], centers[visible]).argmin(dim=2))
