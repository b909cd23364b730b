"""MONAI's DynUNet, the network of nnU-Net, with residual blocks and deep supervision.

MONAI registers the blocks a second time in nested skip layers, which a safetensors file cannot hold; here they stand once.
"""

from __future__ import annotations

from dataclasses import dataclass

from monai.networks.nets import DynUNet as MonaiDynUNet
from torch import Tensor, nn

from .encoder_decoder import EncoderDecoderNetwork, require_levels
from .interface import NetworkConfig, NetworkTraits
from .registry import register_network

VARIANTS = {
    "dynunet_small": {
        "title": "DynUNet, for computers without a GPU",
        "image_size": (48, 48, 48),
        "network": {"filters": (16, 32, 64, 128), "res_block": True, "deep_supervision": 2},
    },
    "dynunet_base": {
        "title": "DynUNet, as large as nnU-Net's",
        "image_size": (128, 128, 128),
        "network": {"filters": (32, 64, 128, 256, 320, 320), "res_block": True, "deep_supervision": 3},
    },
}


@dataclass(frozen=True, kw_only=True)
class DynUNetConfig(NetworkConfig):
    """Arguments of DynUNet.

    filters: channels of each level, finest first. res_block: residual blocks instead of plain ones. deep_supervision:
    number of coarser levels that are supervised beside the finest; 0: none.
    """

    filters: tuple[int, ...] = (16, 32, 64, 128)
    res_block: bool = True
    deep_supervision: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_levels("filters", self.filters, 3)
        if not 0 <= self.deep_supervision < len(self.filters) - 1:
            most = len(self.filters) - 2
            raise ValueError(f"deep_supervision is {self.deep_supervision}; {most} levels or fewer can be supervised")


@register_network("DynUNet", config=DynUNetConfig)
class DynUNet(EncoderDecoderNetwork):
    """DynUNet: (B, C, H, W, D) -> logits (B, classes, H, W, D); while training a list of them, finest first."""

    traits = NetworkTraits(
        deep_supervision=True,
        inplace_normalization=True,
        input_layers=("encoder.0.conv1.conv", "encoder.0.conv3.conv"),
        head=("head", "coarse_heads"),
        pretrained_part="encoder",
    )

    def __init__(self, config: DynUNetConfig) -> None:
        super().__init__(config)
        levels = len(config.filters)
        built = MonaiDynUNet(
            config.spatial_dims, config.in_channels, config.classes, kernel_size=[3] * levels,
            strides=[1, *[2] * (levels - 1)], upsample_kernel_size=[2] * (levels - 1), filters=list(config.filters),
            res_block=config.res_block, deep_supervision=config.deep_supervision > 0,
            deep_supr_num=max(1, config.deep_supervision),
        )  # fmt: skip
        self.encoder = nn.ModuleList([built.input_block, *built.downsamples, built.bottleneck])
        self.decoder = built.upsamples
        self.head = built.output_block
        self.coarse_heads = built.deep_supervision_heads if config.deep_supervision else nn.ModuleList()

    @staticmethod
    def size_divisor(config: DynUNetConfig) -> tuple[int, ...]:
        return (2 ** (len(config.filters) - 1),) * config.spatial_dims

    @classmethod
    def min_size(cls, config: DynUNetConfig) -> tuple[int, ...]:
        """Return two voxels on the coarsest level: a single one cannot be normalized."""
        return tuple(2 * edge for edge in cls.size_divisor(config))

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Return logits for image (B, C, H, W, D); while training those of the supervised levels, finest first."""
        *skips, x = self.features(image)
        maps = []
        for up, skip in zip(self.decoder, reversed(skips)):
            x = up(x, skip)
            maps.append(x)
        logits = self.head(x)
        if not self.training or not len(self.coarse_heads):
            return logits
        return [logits, *(head(coarse) for head, coarse in zip(self.coarse_heads, maps[-2::-1]))]
