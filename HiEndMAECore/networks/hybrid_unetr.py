"""HybridUNETR: UNETR with a convolutional branch, for training on computers without a GPU. Not from the paper.

UNETR's convolutions at full resolution take most of its time, and read the image through one block alone. Here a small
residual U-Net computes on maps of half the resolution and below; the tokens of the pretrained encoder join it where the
sizes agree; the last convolution predicts the 2 x 2 x 2 voxels of each position at once.

    resolution    from the image         from the encoder (12 blocks)
    1/2           block                  state 3
    1/4           block, stride 2        state 6
    1/patch       blocks, stride 2       states 9 and 12
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .interface import NetworkTraits
from .layers.residual_block import ResidualBlock, shuffle_voxels
from .registry import register_network
from .vit_network import ViTNetworkConfig, ViTSegmentationNetwork, tokens_to_feature_map


@dataclass(frozen=True, kw_only=True)
class HybridUNETRConfig(ViTNetworkConfig):
    """Arguments of HybridUNETR. feature_size: channels at half resolution; they double with each halving."""

    feature_size: int = 24

    def __post_init__(self) -> None:
        super().__post_init__()
        patch = self.patch_size
        if patch < 4 or patch & (patch - 1):
            raise ValueError(f"a patch of {patch} voxels does not suit the hybrid network: use 4, 8 or 16")


@register_network("HybridUNETR", config=HybridUNETRConfig)
class HybridUNETR(ViTSegmentationNetwork):
    """HybridUNETR: (B, C, H, W, D) -> logits (B, classes, H, W, D). Arguments: see `HybridUNETRConfig`."""

    traits = NetworkTraits(
        inplace_normalization=True,
        input_layers=("encoder.patch_embed.proj", "stem"),
        head="out",
        pretrained_part="encoder",
        learning_rate=4e-3,
    )

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        config = self.config
        assert isinstance(config, HybridUNETRConfig)
        dim, patch_size = config.encoder_dim, config.patch_size
        halvings = patch_size.bit_length() - 1
        widths = [config.feature_size * 2**level for level in range(halvings)]
        self.stem = nn.Conv3d(config.in_channels, widths[0], kernel_size=4, stride=2, padding=1)
        self.down = nn.ModuleList(
            ResidualBlock(widths[max(0, level - 1)], width, stride=2 if level else 1)
            for level, width in enumerate(widths)
        )
        # Which states of the encoder join at which level: the deepest two on the token grid, the others from the top.
        shallow, middle, deep = self.encoder.feature_layers
        joined = {level: (layer,) for level, layer in enumerate((shallow, middle)) if level < halvings - 1}
        self.joined = {**joined, halvings - 1: (deep, config.encoder_depth)}
        self.tokens = nn.ModuleDict(
            {
                str(level): _TokenProjection(len(layers) * dim, widths[level], patch_size // 2 ** (level + 1))
                for level, layers in self.joined.items()
            }
        )
        self.up = nn.ModuleList(nn.ConvTranspose3d(2 * width, width, kernel_size=2, stride=2) for width in widths[:-1])
        self.merge = nn.ModuleList(
            ResidualBlock(width * (1 + (level < halvings - 1) + (level in self.joined)), width)
            for level, width in enumerate(widths)
        )
        self.out = nn.Conv3d(widths[0], 8 * config.classes, kernel_size=1)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits for image (B, C, H, W, D), every edge divisible by the patch."""
        states = self.encoder(image)
        grid = [size // self.encoder.patch_size for size in image.shape[2:]]
        x, maps = self.stem(image), []
        for block in self.down:
            x = block(x)
            maps.append(x)
        for level in reversed(range(len(maps))):
            parts = [maps[level]]
            if level < len(maps) - 1:
                parts.append(self.up[level](x))
            if level in self.joined:
                joined = [tokens_to_feature_map(states[layer], grid) for layer in self.joined[level]]
                parts.append(self.tokens[str(level)](torch.cat(joined, dim=1)))
            x = self.merge[level](torch.cat(parts, dim=1))
        return shuffle_voxels(self.out(x), 2)


class _TokenProjection(nn.Sequential):
    """Projects a map of tokens (B, dim, h, w, d) to (B, width, factor h, factor w, factor d), and normalizes it."""

    def __init__(self, dim: int, width: int, factor: int) -> None:
        super().__init__(nn.ConvTranspose3d(dim, width, kernel_size=factor, stride=factor), nn.InstanceNorm3d(width))
