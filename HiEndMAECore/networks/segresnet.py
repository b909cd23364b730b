"""MONAI's SegResNet: a residual encoder with pre-activation blocks and a light decoder (arXiv 1810.11654)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from monai.networks.nets import SegResNet as MonaiSegResNet
from torch import Tensor, nn

from .encoder_decoder import EncoderDecoderNetwork, require_levels
from .interface import NetworkConfig, NetworkTraits
from .registry import register_network

VARIANTS = {
    "segresnet_small": {
        "title": "SegResNet, for computers without a GPU",
        "image_size": (48, 48, 48),
        "network": {"filters": 16, "blocks_down": (1, 1, 1, 2)},
    },
    "segresnet_base": {
        "title": "SegResNet, for a GPU",
        "image_size": (96, 96, 96),
        "network": {"filters": 32, "blocks_down": (1, 2, 2, 4)},
    },
}
_NORMS = ("group", "instance")


@dataclass(frozen=True, kw_only=True)
class SegResNetConfig(NetworkConfig):
    """Arguments of SegResNet.

    filters: channels at full resolution, a multiple of 8. blocks_down: residual blocks of each level, finest first.
    norm: "group" (8 groups) or "instance".
    """

    filters: int = 16
    blocks_down: tuple[int, ...] = (1, 1, 1, 2)
    norm: str = "group"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_levels("blocks_down", self.blocks_down, 2)
        if self.filters < 8 or self.filters % 8:
            raise ValueError(f"filters is {self.filters}; it must be a multiple of 8")
        if self.norm not in _NORMS:
            raise ValueError(f"norm is {self.norm!r}; it must be one of {_NORMS}")


@register_network("SegResNet", config=SegResNetConfig)
class SegResNet(EncoderDecoderNetwork):
    """SegResNet: (B, C, H, W, D) -> logits (B, classes, H, W, D).

    Its blocks normalize first and add their own input at the end, so normalization must not overwrite that input.
    """

    traits = NetworkTraits(
        inplace_normalization=False,
        input_layers=("encoder.0.0.conv",),
        head="head.2.conv",
        pretrained_part="encoder",
    )

    def __init__(self, config: SegResNetConfig) -> None:
        super().__init__(config)
        built = MonaiSegResNet(
            config.spatial_dims, config.filters, config.in_channels, config.classes,
            norm=("group", {"num_groups": 8}) if config.norm == "group" else "instance",
            blocks_down=config.blocks_down, blocks_up=(1,) * (len(config.blocks_down) - 1),
        )  # fmt: skip
        first, *deeper = built.down_layers
        self.encoder = nn.ModuleList([nn.Sequential(built.convInit, *first), *deeper])
        self.decoder = nn.ModuleList(
            nn.ModuleDict({"up": up, "blocks": blocks}) for up, blocks in zip(built.up_samples, built.up_layers)
        )
        self.head = built.conv_final

    @staticmethod
    def size_divisor(config: SegResNetConfig) -> tuple[int, ...]:
        return (2 ** (len(config.blocks_down) - 1),) * config.spatial_dims

    @classmethod
    def min_size(cls, config: SegResNetConfig) -> tuple[int, ...]:
        """Return one voxel on the coarsest level for group normalization; instance normalization needs two."""
        voxels = 2 if config.norm == "instance" else 1
        return tuple(voxels * edge for edge in cls.size_divisor(config))

    def forward(self, image: Tensor) -> Tensor:
        """Return logits for image (B, C, H, W, D)."""
        *skips, x = self.features(image)
        decoder: Any = self.decoder
        for level, skip in zip(decoder, reversed(skips)):
            x = level["blocks"](level["up"](x) + skip)
        return self.head(x)
