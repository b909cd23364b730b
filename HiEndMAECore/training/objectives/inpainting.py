"""The second stage of pretraining: a segmentation network learns to paint back the masked patches of a crop.

The masked autoencoder teaches the encoder alone; the convolutions that are taught with it would start from nothing. Here they
learn from the same unlabelled scans, beneath the encoder as it is (frozen). Ours, not the paper's: as in SimMIM
(arXiv 2111.09886), the whole crop goes in with its masked patches painted over, and only those count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from HiEndMAECore.networks.hi_end_mae import Reconstruction, mean_over_crops
from HiEndMAECore.networks.layers.patches import gather_tokens, patch_grid, patchify, unpatchify
from HiEndMAECore.networks.masking import num_visible_patches
from HiEndMAECore.networks.registry import build_network

FILL_VALUE = 0.5  # what masked patches are painted with: the middle of the intensities


class Inpainting(nn.Module):
    """A segmentation network whose last convolution predicts the crop's channels; behind the interface of `HiEndMAE`.

    architecture: of `segmentation_architecture`; its `classes` must be the channels. network: what learns, and what is kept.
    """

    def __init__(self, architecture: Mapping[str, Any], *, mask_ratio: float = 0.75) -> None:
        super().__init__()
        arguments = architecture["arguments"]
        if arguments["classes"] != arguments["in_channels"]:
            raise ValueError(f"{arguments['classes']} predictions cannot rebuild {arguments['in_channels']} channels")
        self.network = build_network(architecture)
        self.network.encoder.requires_grad_(False)
        self.patch_size = int(arguments["patch_size"])
        self.grid = patch_grid(arguments["image_size"], self.patch_size)
        self.visible = num_visible_patches(self.grid[0] * self.grid[1] * self.grid[2], mask_ratio)

    def set_grad_checkpointing(self, on: bool = True) -> None:
        """Nothing to do: a frozen encoder keeps no activations."""

    def forward(self, volume: Tensor, permutation: Tensor, inside: Tensor | None = None) -> Reconstruction:
        """volume (B, C, H, W, D), about [0, 1]; permutation (B, L) and inside as of `HiEndMAE`. The loss is the mean squared
        error of intensities over the masked voxels; `prediction` is the difference from `GREY`."""
        masked = permutation[:, self.visible :]
        painted = self.network(torch.where(self._hidden(permutation), FILL_VALUE, volume))
        prediction = gather_tokens(patchify(painted.float(), self.patch_size), masked)
        target = gather_tokens(self.targets(volume), masked)
        if inside is None:
            loss = F.mse_loss(prediction, target)
        else:
            counted = gather_tokens(patchify(inside.expand_as(volume).float(), self.patch_size), masked)
            loss = mean_over_crops((prediction - target) ** 2, counted)
        return Reconstruction(loss, prediction, {}, permutation)

    def targets(self, volume: Tensor) -> Tensor:
        """(B, L, p * p * p * C): what is to be predicted of each patch; 0 is to leave it grey."""
        return patchify(volume, self.patch_size) - FILL_VALUE

    def _hidden(self, permutation: Tensor) -> Tensor:
        """(B, 1, H, W, D) bool: the masked voxels."""
        flags = torch.zeros(permutation.shape, device=permutation.device)
        flags = flags.scatter(1, permutation[:, self.visible :], 1.0).view(-1, 1, *self.grid)
        return F.interpolate(flags, scale_factor=self.patch_size) > 0

    @torch.no_grad()
    def reconstruct_images(self, volume: Tensor, output: Reconstruction) -> tuple[Tensor, Tensor]:
        """(masked volume, rebuilt volume), both (B, C, H, W, D): masked patches are zero, then predicted."""
        patches = patchify(volume, self.patch_size)
        masked = output.permutation[:, self.visible :, None].expand(-1, -1, patches.shape[2])
        hidden = patches.scatter(1, masked, torch.zeros_like(output.prediction))
        rebuilt = patches.scatter(1, masked, output.prediction + FILL_VALUE)
        return unpatchify(hidden, self.grid, self.patch_size), unpatchify(rebuilt, self.grid, self.patch_size)
