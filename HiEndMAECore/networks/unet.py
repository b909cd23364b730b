"""MONAI's U-Net with residual units, one of the most used baselines.

The parts of MONAI's recursive module are kept in flat lists, so that encoder, decoder and output layer have names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from monai.networks.nets import UNet as MonaiUNet
from torch import Tensor, nn

from .encoder_decoder import EncoderDecoderNetwork, require_levels
from .interface import NetworkConfig, NetworkTraits
from .registry import register_network

VARIANTS = {
    "unet_small": {
        "title": "U-Net, for computers without a GPU",
        "image_size": (48, 48, 48),
        "network": {"channels": (16, 32, 64, 128), "res_units": 2},
    },
    "unet_base": {
        "title": "U-Net, for a GPU",
        "image_size": (96, 96, 96),
        "network": {"channels": (32, 64, 128, 256, 512), "res_units": 2},
    },
}


@dataclass(frozen=True, kw_only=True)
class UNetConfig(NetworkConfig):
    """Arguments of U-Net. channels: of each level, finest first. res_units: convolutions of a residual unit."""

    channels: tuple[int, ...] = (16, 32, 64, 128)
    res_units: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_levels("channels", self.channels, 2)
        if self.res_units < 1:
            raise ValueError(f"res_units is {self.res_units}; it must be 1 or more")


@register_network("UNet", config=UNetConfig)
class UNet(EncoderDecoderNetwork):
    """U-Net: (B, C, H, W, D) -> logits (B, classes, H, W, D)."""

    traits = NetworkTraits(
        inplace_normalization=True,
        input_layers=("encoder.0.conv.unit0.conv", "encoder.0.residual"),
        head="head",
        pretrained_part="encoder",
    )

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        levels = len(config.channels) - 1
        block: Any = MonaiUNet(
            config.spatial_dims, config.in_channels, config.classes, channels=config.channels, strides=(2,) * levels,
            num_res_units=config.res_units,
        ).model  # fmt: skip
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for _ in range(levels):  # MONAI nests the levels: (down, skip around the next level, up)
            down.append(block[0])
            up.append(block[2])
            block = block[1].submodule
        self.encoder = nn.ModuleList([*down, block])
        self.decoder = nn.ModuleList(reversed(up[1:]))
        self.head = up[0]

    @staticmethod
    def size_divisor(config: UNetConfig) -> tuple[int, ...]:
        return (2 ** (len(config.channels) - 1),) * config.spatial_dims

    @classmethod
    def min_size(cls, config: UNetConfig) -> tuple[int, ...]:
        """Return two voxels on the coarsest level: a single one cannot be normalized."""
        return tuple(2 * edge for edge in cls.size_divisor(config))

    def forward(self, image: Tensor) -> Tensor:
        """Return logits for image (B, C, H, W, D)."""
        *skips, x = self.features(image)
        for up, skip in zip((*self.decoder, self.head), reversed(skips)):
            x = up(torch.cat([skip, x], dim=1))
        return x
