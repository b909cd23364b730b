"""UNETR with a convolutional branch, for computers without a GPU: what one label teaches in minutes.

UNETR's convolutions at full resolution take most of its time, and see the image through one block alone. Here a small
residual U-Net computes on maps of half the resolution and below; the tokens of the pretrained encoder join it where the
sizes agree; the last convolution predicts the 2 x 2 x 2 voxels of each place at once. Ours, not the paper's.

    resolution    from the image         from the encoder (12 blocks)
    1/2           block                  state 3
    1/4           block, stride 2        state 6
    1/patch       blocks, stride 2       states 9 and 12
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import UnetResBlock
from monai.networks.utils import pixelshuffle
from torch import Tensor, nn

from HiEndMAECore.networks.layers.vit import NORM_EPS, ViTEncoder

from .unetr import tokens_to_feature_map

_NORM = "instance"


class HybridUNETR(nn.Module):
    """Segmentation network: (B, C, H, W, D) -> logits (B, classes, H, W, D). Arguments as of `UNETR`.

    feature_size: channels at half resolution; they double with each halving. Raises `ValueError` when the patch is no
    power of two of 4 or more.
    """

    def __init__(
        self,
        *,
        image_size: Sequence[int],
        patch_size: int,
        in_channels: int = 1,
        classes: int,
        encoder_dim: int,
        encoder_depth: int = 12,
        encoder_heads: int,
        feature_size: int = 24,
        class_token: bool = True,
        norm_eps: float = NORM_EPS,
    ) -> None:
        super().__init__()
        if patch_size < 4 or patch_size & (patch_size - 1):
            raise ValueError(f"a patch of {patch_size} voxels does not suit the hybrid network: use 4, 8 or 16")
        self.classes = classes
        self.encoder = ViTEncoder(
            image_size=image_size,
            patch_size=patch_size,
            in_channels=in_channels,
            dim=encoder_dim,
            depth=encoder_depth,
            heads=encoder_heads,
            class_token=class_token,
            norm_eps=norm_eps,
        )
        halvings = patch_size.bit_length() - 1
        widths = [feature_size * 2**level for level in range(halvings)]
        self.stem = nn.Conv3d(in_channels, widths[0], kernel_size=4, stride=2, padding=1)
        self.down = nn.ModuleList(
            UnetResBlock(3, widths[max(0, level - 1)], width, kernel_size=3, stride=2 if level else 1, norm_name=_NORM)
            for level, width in enumerate(widths)
        )
        # Which states of the encoder join at which level: the deepest two on the token grid, the others from the top.
        shallow, middle, deep = self.encoder.feature_layers
        joined = {level: (tap,) for level, tap in enumerate((shallow, middle)) if level < halvings - 1}
        self.joined = {**joined, halvings - 1: (deep, encoder_depth)}
        self.tokens = nn.ModuleDict(
            {
                str(level): _Tokens(len(feature_layers) * encoder_dim, widths[level], patch_size // 2 ** (level + 1))
                for level, feature_layers in self.joined.items()
            }
        )
        self.up = nn.ModuleList(nn.ConvTranspose3d(2 * width, width, kernel_size=2, stride=2) for width in widths[:-1])
        self.merge = nn.ModuleList(
            UnetResBlock(3, width * (1 + (level < halvings - 1) + (level in self.joined)), width, 3, 1, norm_name=_NORM)
            for level, width in enumerate(widths)
        )
        self.out = nn.Conv3d(widths[0], 8 * classes, kernel_size=1)

    def forward(self, volume: Tensor) -> Tensor:
        """volume (B, C, H, W, D), every edge divisible by the patch."""
        states = self.encoder(volume)
        grid = [size // self.encoder.patch_size for size in volume.shape[2:]]
        x, maps = self.stem(volume), []
        for block in self.down:
            x = block(x)
            maps.append(x)
        for level in reversed(range(len(maps))):
            parts = [maps[level]]
            if level < len(maps) - 1:
                parts.append(self.up[level](x))
            if level in self.joined:
                feature_layers = [tokens_to_feature_map(states[tap], grid) for tap in self.joined[level]]
                parts.append(self.tokens[str(level)](torch.cat(feature_layers, dim=1)))
            x = self.merge[level](torch.cat(parts, dim=1))
        return pixelshuffle(self.out(x), spatial_dims=3, scale_factor=2)


class _Tokens(nn.Sequential):
    """Tokens' map (B, dim, h, w, d) to (B, width, factor h, factor w, factor d), normalised like what it joins."""

    def __init__(self, dim: int, width: int, factor: int) -> None:
        super().__init__(nn.ConvTranspose3d(dim, width, kernel_size=factor, stride=factor), nn.InstanceNorm3d(width))
