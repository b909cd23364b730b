"""Inpainting: a segmentation network reconstructs the masked patches of a crop from the rest of it.

The masked autoencoder pretrains the encoder alone; the convolutions of fine-tuning would start from random weights. Here
they are pretrained on the same unlabelled scans, on top of the frozen encoder. Not from the paper: as in SimMIM
(arXiv 2111.09886), the network sees the whole crop with its masked patches in gray, and the loss counts only those.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from HiEndMAECore.networks.hi_end_mae import Reconstruction, mean_over_crops
from HiEndMAECore.networks.layers.patches import gather_tokens, patch_grid, patchify, unpatchify
from HiEndMAECore.networks.masking import num_visible_patches, split_patches
from HiEndMAECore.networks.registry import build_network, segmentation_architecture
from HiEndMAECore.training.optimizer import freeze_encoder

from .base import DenseForward, ObjectiveRequest, PretrainingSetup, register_objective

FILL_VALUE = 0.5  # intensity of masked patches in the input: the middle of the range
_PATCH_SIZES = (8, 4, 2, 1)  # for networks without patches, the largest that divides the crop


class Inpainting(nn.Module):
    """A segmentation network whose head predicts the channels of the crop; a `PretrainingObjective`.

    network: the segmentation network, whose encoder is frozen.
    """

    unrotated_crops = True  # as those of fine-tuning will be

    def __init__(self, architecture: Mapping[str, Any], *, mask_ratio: float = 0.75) -> None:
        """Build the network.

        Args:
            architecture: As of `segmentation_architecture`; its `classes` must be its `in_channels`.
            mask_ratio: Share of the patches that are masked.

        Raises:
            ValueError: If a size does not suit the network.
        """
        super().__init__()
        arguments = architecture["arguments"]
        if arguments["classes"] != arguments["in_channels"]:
            raise ValueError(f"{arguments['classes']} predictions cannot rebuild {arguments['in_channels']} channels")
        self.network = build_network(architecture)
        freeze_encoder(self.network.layer_groups())
        size = arguments["image_size"]
        divisors = [edge for edge in _PATCH_SIZES if all(length % edge == 0 for length in size)]
        self.patch_size = int(arguments.get("patch_size", divisors[0]))
        self.grid = patch_grid(size, self.patch_size)
        self.visible = num_visible_patches(self.grid[0] * self.grid[1] * self.grid[2], mask_ratio)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Do nothing: a frozen encoder keeps no activations."""

    def forward(self, volume: Tensor, permutation: Tensor, valid_mask: Tensor | None = None) -> Reconstruction:
        """Return the reconstruction; its prediction is the difference from `FILL_VALUE`.

        The loss is the mean squared error of intensities over the masked voxels.

        Args:
            volume: (B, C, H, W, D), about [0, 1].
            permutation: (B, L) long, see `random_masking`.
            valid_mask: (B, 1, H, W, D), False for padding, which the loss skips; None: all voxels count.
        """
        _, masked = split_patches(permutation, self.visible)
        logits = self.network(torch.where(self._masked_voxels(permutation), FILL_VALUE, volume))
        reconstructed = logits if isinstance(logits, Tensor) else logits[0]  # the finest level of deep supervision
        prediction = gather_tokens(patchify(reconstructed.float(), self.patch_size), masked)
        target = gather_tokens(self.targets(volume), masked)
        if valid_mask is None:
            loss = F.mse_loss(prediction, target)
        else:
            counted = gather_tokens(patchify(valid_mask.expand_as(volume).float(), self.patch_size), masked)
            loss = mean_over_crops((prediction - target) ** 2, counted)
        return Reconstruction(loss, prediction, {}, permutation)

    def targets(self, volume: Tensor) -> Tensor:
        """Return the target of each patch (B, L, p * p * p * C); 0 is to leave it gray."""
        return patchify(volume, self.patch_size) - FILL_VALUE

    def _masked_voxels(self, permutation: Tensor) -> Tensor:
        """Return which voxels are masked: (B, 1, H, W, D) bool."""
        flags = torch.zeros(permutation.shape, device=permutation.device)
        flags = flags.scatter(1, permutation[:, self.visible :], 1.0).view(-1, 1, *self.grid)
        return F.interpolate(flags, scale_factor=self.patch_size) > 0

    @torch.no_grad()
    def reconstruct_images(self, volume: Tensor, output: Reconstruction) -> tuple[Tensor, Tensor]:
        """Return the masked and the reconstructed volume, both (B, C, H, W, D): masked patches are zero, then predicted."""
        patches = patchify(volume, self.patch_size)
        masked = split_patches(output.permutation, self.visible)[1][:, :, None].expand(-1, -1, patches.shape[2])
        erased = patches.scatter(1, masked, torch.zeros_like(output.prediction))
        filled = patches.scatter(1, masked, output.prediction + FILL_VALUE)
        return unpatchify(erased, self.grid, self.patch_size), unpatchify(filled, self.grid, self.patch_size)


@register_objective("inpainting", requires=(DenseForward,), needs_init=True, frozen_encoder=True)
class InpaintingObjective(PretrainingSetup):
    """Inpainting with the segmentation network of the starting weights' variant, on top of their encoder."""

    def __init__(self, request: ObjectiveRequest) -> None:
        """Build the network and load the encoder.

        Raises:
            ValueError: If a size does not suit the network.
            InputError: If the weights do not fit.
        """
        initial = request.initial
        if initial is None:
            raise ValueError("inpainting needs weights to start from")
        architecture = segmentation_architecture(
            initial.variant,
            classes=request.in_channels,
            in_channels=request.in_channels,
            image_size=request.image_size,
        )
        model = Inpainting(architecture, mask_ratio=request.mask_ratio)
        model.network.load_pretrained(initial, encoder_only=True)
        origin = {"init": initial.source, "init_sha256": initial.sha256}
        super().__init__(model, model.network, architecture, origin)
