"""UNETR: the pretrained ViT encoder read at three depths by a convolutional decoder (paper section 3.4).

The convolution blocks are MONAI's; the encoder is the same function as in pretraining. MONAI's UNETR needs a patch of 16;
here the levels of the decoder follow from the patch size:

    patch   levels above the token grid      last step to full resolution
    16      x2  x4  x8                       x2, transposed convolution
    12      x2  x4  x8                       x1.5, trilinear and convolution (as the authors do)
    8       x1  x2  x4                       x2, transposed convolution
    6       x1  x2  x4                       x1.5, trilinear and convolution
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetResBlock, UnetrPrUpBlock
from torch import Tensor, nn
from torch.nn import functional as F

from .interface import NetworkTraits
from .registry import register_network
from .vit_network import ViTNetworkConfig, ViTSegmentationNetwork

_NORM = "instance"


@dataclass(frozen=True, kw_only=True)
class UNETRConfig(ViTNetworkConfig):
    """Arguments of UNETR. feature_size: channels at full resolution."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch_size < 3:
            raise ValueError(f"a patch of {self.patch_size} voxels leaves the decoder no level; use 3 or more")


@register_network("UNETR", config=UNETRConfig)
class UNETR(ViTSegmentationNetwork):
    """UNETR: (B, C, H, W, D) -> logits (B, classes, H, W, D). Arguments: see `UNETRConfig`."""

    traits = NetworkTraits(
        inplace_normalization=True,
        input_layers=("encoder.patch_embed.proj", "from_image.layer.conv1.conv", "from_image.layer.conv3.conv"),
        head="out",
        pretrained_part="encoder",
        learning_rate=4e-3,
    )

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        config = self.config
        assert isinstance(config, UNETRConfig)
        dim, feature_size, patch_size = config.encoder_dim, config.feature_size, config.patch_size
        doublings = (patch_size - 1).bit_length() - 1  # powers of two strictly below the patch edge: 16 -> 2, 4, 8
        levels = [max(0, doublings - below) for below in range(3)]  # of the shallow, middle and deep skip
        widths = [feature_size * factor for factor in (2, 4, 8)]
        self.from_image = UnetrBasicBlock(3, config.in_channels, feature_size, 3, 1, _NORM, res_block=True)
        self.skips = nn.ModuleList(_skip(dim, width, level) for width, level in zip(widths, levels))
        self.merge_deep = _Merge(dim, widths[2], doubles=levels[2])
        self.merge_middle = _Merge(widths[2], widths[1], doubles=levels[1] - levels[2])
        self.merge_shallow = _Merge(widths[1], widths[0], doubles=levels[0] - levels[1])
        self.merge_image = _Merge(widths[0], feature_size, doubles=1 if 2 ** (levels[0] + 1) == patch_size else None)
        self.out = UnetOutBlock(3, feature_size, config.classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits for image (B, C, H, W, D), every edge divisible by the patch."""
        shallow, middle, deep, last = self.features(image)
        x = self.merge_deep(last, self.skips[2](deep))
        x = self.merge_middle(x, self.skips[1](middle))
        x = self.merge_shallow(x, self.skips[0](shallow))
        return self.out(self.merge_image(x, self.from_image(image)))


def _skip(dim: int, width: int, level: int) -> nn.Module:
    """Return the block that brings tokens of one depth to `width` channels at 2^level of the token grid."""
    if level == 0:
        return UnetResBlock(3, dim, width, kernel_size=3, stride=1, norm_name=_NORM)
    return UnetrPrUpBlock(
        3, dim, width, num_layer=level - 1, kernel_size=3, stride=1, upsample_kernel_size=2, norm_name=_NORM,
        conv_block=True, res_block=True,
    )  # fmt: skip


class _Merge(nn.Module):
    """Brings the deeper map to the skip's resolution, concatenates the two and convolves.

    doubles: 1: transposed convolution; 0: same size; None: trilinear by whatever factor is left.
    """

    def __init__(self, deeper: int, width: int, *, doubles: int | None) -> None:
        super().__init__()
        self.resizes = doubles is None
        self.up: nn.Module
        if doubles == 1:
            self.up = nn.ConvTranspose3d(deeper, width, kernel_size=2, stride=2, bias=False)
        else:
            self.up = nn.Conv3d(deeper, width, kernel_size=3, padding=1, bias=self.resizes)
        self.convolve = UnetResBlock(3, 2 * width, width, kernel_size=3, stride=1, norm_name=_NORM)

    def forward(self, deeper: Tensor, skip: Tensor) -> Tensor:
        if self.resizes:
            deeper = F.interpolate(deeper, size=skip.shape[2:], mode="trilinear", align_corners=False)
        return self.convolve(torch.cat([self.up(deeper), skip], dim=1))
