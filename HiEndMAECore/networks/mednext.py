"""MONAI's MedNeXt: a U-Net of ConvNeXt blocks (arXiv 2303.09975). Needs MONAI 1.5."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from HiEndMAECore.errors import MissingDependencyError

from .encoder_decoder import EncoderDecoderNetwork, require_levels
from .interface import NetworkConfig, NetworkTraits
from .registry import register_network

VARIANTS = {
    "mednext_tiny": {
        "title": "MedNeXt with 16 channels, for computers without a GPU",
        "image_size": (48, 48, 48),
        "network": {"filters": 16, "blocks": (1, 1, 1), "bottleneck_blocks": 1},
    },
    "mednext_small": {
        "title": "MedNeXt-S, for a GPU",
        "image_size": (96, 96, 96),
        "network": {"filters": 32, "blocks": (2, 2, 2, 2), "bottleneck_blocks": 2},
    },
}


@dataclass(frozen=True, kw_only=True)
class MedNeXtConfig(NetworkConfig):
    """Arguments of MedNeXt.

    filters: channels at full resolution. blocks: of each level above the bottleneck, finest first. bottleneck_blocks: of
    the coarsest level. expansion: of the channels inside a block. kernel_size: of the depth-wise convolutions, odd.
    """

    filters: int = 16
    blocks: tuple[int, ...] = (1, 1, 1)
    bottleneck_blocks: int = 1
    expansion: int = 2
    kernel_size: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        require_levels("blocks", self.blocks, 1)
        if self.kernel_size < 3 or not self.kernel_size % 2:
            raise ValueError(f"kernel_size is {self.kernel_size}; it must be odd and 3 or more")


@register_network("MedNeXt", config=MedNeXtConfig)
class MedNeXt(EncoderDecoderNetwork):
    """MedNeXt: (B, C, H, W, D) -> logits (B, classes, H, W, D)."""

    traits = NetworkTraits(input_layers=("encoder.0.0",), head="head", pretrained_part="encoder")

    def __init__(self, config: MedNeXtConfig) -> None:
        super().__init__(config)
        try:
            from monai.networks.nets import MedNeXt as MonaiMedNeXt
        except ImportError as error:
            raise MissingDependencyError.of("monai>=1.5", "to build the network mednext") from error
        built = MonaiMedNeXt(
            config.spatial_dims, config.filters, config.in_channels, config.classes,
            encoder_expansion_ratio=config.expansion, decoder_expansion_ratio=config.expansion,
            bottleneck_expansion_ratio=config.expansion, kernel_size=config.kernel_size, use_residual_connection=True,
            blocks_down=config.blocks, blocks_bottleneck=config.bottleneck_blocks, blocks_up=config.blocks[::-1],
        )  # fmt: skip
        coarser = zip(built.down_blocks, (*built.enc_stages[1:], built.bottleneck))
        self.encoder = nn.ModuleList(
            [nn.Sequential(built.stem, built.enc_stages[0]), *(nn.Sequential(*pair) for pair in coarser)]
        )
        self.decoder = nn.ModuleList(
            nn.ModuleDict({"up": up, "blocks": blocks}) for up, blocks in zip(built.up_blocks, built.dec_stages)
        )
        self.head = built.out_0

    @staticmethod
    def size_divisor(config: MedNeXtConfig) -> tuple[int, ...]:
        return (2 ** len(config.blocks),) * config.spatial_dims

    @classmethod
    def min_size(cls, config: MedNeXtConfig) -> tuple[int, ...]:
        """Return two voxels on the coarsest level: a single one cannot be normalized."""
        return tuple(2 * edge for edge in cls.size_divisor(config))

    def forward(self, image: Tensor) -> Tensor:
        """Return logits for image (B, C, H, W, D)."""
        *skips, x = self.features(image)
        decoder: Any = self.decoder
        for level, skip in zip(decoder, reversed(skips)):
            x = level["blocks"](level["up"](x) + skip)
        return self.head(x)
