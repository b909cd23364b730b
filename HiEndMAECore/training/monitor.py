"""What a pretraining run is measured by while it runs: the loss on the same crops each time, and two predictors that
learn nothing, in the same units.

- zero: every masked patch is predicted as its mean (about 1, less where patches are constant), or left
  grey by inpainting.
- nearest: the nearest visible patch is copied, normalised where the target is.
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

NUM_VALIDATION_CROPS = 32  # crops


@dataclass(frozen=True)
class ValidationCrops:
    """Fixed crops; `batches` of the run's size hold them."""

    batches: tuple[Batch, ...]

    @torch.no_grad()
    def loss(self, model: PretrainingObjective, device: torch.device, precision: str) -> tuple[float, Reconstruction]:
        """(loss of `model` on the watched crops, its reconstruction of the first batch)."""
        total, first = 0.0, None
        training = model.training
        model.eval()
        for batch in self.batches:
            volume, permutation, inside = batch.on(device)
            with autocast(device, smallest_edge=min(model.grid), precision=precision):
                output = model(volume, permutation, inside)
            total += float(output.loss) * len(volume)
            first = first or output
        model.train(training)
        assert first is not None
        return total / sum(len(batch.volume) for batch in self.batches), first

    def trivial_losses(self, model: PretrainingObjective) -> tuple[float, float]:
        """(zero, nearest) on the watched crops, on the processor."""
        sums, crops = torch.zeros(2), 0
        for batch in self.batches:
            volume, permutation, inside = batch.on(torch.device("cpu"))
            inside = torch.ones_like(volume, dtype=torch.bool) if inside is None else inside.expand_as(volume)
            patches = model.targets(volume)
            seen, hidden = split_patches(permutation, model.visible)
            target = gather_tokens(patches, hidden)
            copied = gather_tokens(patches, nearest_visible_patch(seen, hidden, model.grid))
            counted = gather_tokens(patchify(inside.float(), model.patch_size), hidden)
            losses = [mean_over_crops(errors**2, counted) for errors in (target, copied - target)]
            sums += torch.stack(losses) * len(volume)
            crops += len(volume)
        zero, nearest = (sums / crops).tolist()
        return zero, nearest


def nearest_visible_patch(seen: Tensor, hidden: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """For each masked patch the visible one with the nearest centre: seen (B, S), hidden (B, M) -> (B, M) indices."""
    places = torch.cartesian_prod(*(torch.arange(edge) for edge in grid)).float()
    return seen.gather(1, torch.cdist(places[hidden], places[seen]).argmin(dim=2))
