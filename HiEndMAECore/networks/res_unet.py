"""ResUNet: a small residual U-Net from half resolution down, for computers whose processor is slow. Not from the papers.

It is the convolutional branch of `hybrid_unetr` without the encoder: the first convolution halves the resolution, and the
last one predicts the 2 x 2 x 2 voxels of each position at once, so that nothing is computed at full resolution.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .encoder_decoder import EncoderDecoderNetwork
from .interface import NetworkConfig, NetworkTraits
from .layers.residual_block import ResidualBlock, shuffle_voxels
from .registry import register_network

VARIANTS = {
    "res_unet_small": {
        "title": "ResUNet small, from half resolution down",
        "image_size": (48, 48, 48),
        "network": {"width": 16, "levels": 4},
    },
}

_MAX_WIDTH = 256


@dataclass(frozen=True, kw_only=True)
class ResUNetConfig(NetworkConfig):
    """Arguments of ResUNet. width: channels at half resolution; they double with each of the further `levels` - 1."""

    width: int = 16
    levels: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, least in (("width", self.width, 1), ("levels", self.levels, 2)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of {least} or more")


@register_network("ResUNet", config=ResUNetConfig)
class ResUNet(EncoderDecoderNetwork):
    """ResUNet: (B, C, H, W, D) -> logits (B, classes, H, W, D). Arguments: see `ResUNetConfig`."""

    traits = NetworkTraits(
        inplace_normalization=True,
        input_layers=("encoder.0.0",),
        head="head",
        pretrained_part="encoder",
        learning_rate=4e-3,
        encoder_learning_rate=4e-3,
    )

    def __init__(self, config: ResUNetConfig) -> None:
        super().__init__(config)
        widths = [min(_MAX_WIDTH, config.width * 2**level) for level in range(config.levels)]
        stem = nn.Conv3d(config.in_channels, widths[0], kernel_size=4, stride=2, padding=1)
        stages: list[nn.Module] = [nn.Sequential(stem, ResidualBlock(widths[0], widths[0]))]
        stages += [ResidualBlock(finer, width, stride=2) for finer, width in itertools.pairwise(widths)]
        self.encoder = nn.ModuleList(stages)
        self.up = nn.ModuleList(nn.ConvTranspose3d(2 * width, width, kernel_size=2, stride=2) for width in widths[:-1])
        self.decoder = nn.ModuleList(ResidualBlock(2 * width, width) for width in widths[:-1])
        self.head = nn.Conv3d(widths[0], 8 * config.classes, kernel_size=1)

    @staticmethod
    def size_divisor(config: ResUNetConfig) -> tuple[int, ...]:
        """Return the divisor of the image size along each axis, in voxels."""
        return (2**config.levels,) * config.spatial_dims

    @classmethod
    def min_size(cls, config: ResUNetConfig) -> tuple[int, ...]:
        """Return the smallest allowed edges in voxels: instance normalization needs two positions along every axis."""
        return tuple(2 * edge for edge in cls.size_divisor(config))

    def forward(self, image: Tensor) -> Tensor:
        """Return logits for image (B, C, H, W, D), every edge divisible by `size_divisor`."""
        *finer, x = self.features(image)
        for level in reversed(range(len(finer))):
            x = self.decoder[level](torch.cat([finer[level], self.up[level](x)], dim=1))
        return shuffle_voxels(self.head(x), 2)
