"""UNETR: the pretrained ViT encoder read at three depths by a convolutional decoder (paper section 3.4).

MONAI's convolution blocks; the encoder is ours, the same function as in pretraining. MONAI's UNETR fits patch 16 alone;
here the decoder's levels follow from the patch size:

    patch   levels above the token grid      last step to full resolution
    16      x2  x4  x8                       x2, transposed convolution
    12      x2  x4  x8                       x1.5, trilinear and convolution (as the authors do)
    8       x1  x2  x4                       x2, transposed convolution
    6       x1  x2  x4                       x1.5, trilinear and convolution
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetResBlock, UnetrPrUpBlock
from torch import Tensor, nn
from torch.nn import functional as F

from HiEndMAECore.networks.layers.vit import NORM_EPS, ViTEncoder

_NORM = "instance"


class UNETR(nn.Module):
    """Segmentation network: (B, C, H, W, D) -> logits (B, classes, H, W, D).

    image_size: crop and tile in voxels; other sizes divisible by the patch work as well.
    classes: structures plus background.
    class_token, norm_eps: `False, 1e-5` give the authors' own fine-tuning network (not the function that was pretrained).
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
        feature_size: int = 32,
        class_token: bool = True,
        norm_eps: float = NORM_EPS,
    ) -> None:
        super().__init__()
        if patch_size < 3:
            raise ValueError(f"a patch of {patch_size} voxels leaves the decoder no level; use 3 or more")
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
        self.classes = classes
        doublings = (patch_size - 1).bit_length() - 1  # powers of two strictly below the patch edge: 16 -> 2, 4, 8
        levels = [max(0, doublings - below) for below in range(3)]  # of the shallow, middle and deep skip
        widths = [feature_size * factor for factor in (2, 4, 8)]
        self.from_image = UnetrBasicBlock(3, in_channels, feature_size, 3, 1, _NORM, res_block=True)
        self.skips = nn.ModuleList(_skip(encoder_dim, width, level) for width, level in zip(widths, levels))
        self.merge_deep = _Merge(encoder_dim, widths[2], doubles=levels[2])
        self.merge_middle = _Merge(widths[2], widths[1], doubles=levels[1] - levels[2])
        self.merge_shallow = _Merge(widths[1], widths[0], doubles=levels[0] - levels[1])
        self.merge_image = _Merge(widths[0], feature_size, doubles=1 if 2 ** (levels[0] + 1) == patch_size else None)
        self.out = UnetOutBlock(3, feature_size, classes)

    def forward(self, volume: Tensor) -> Tensor:
        """volume (B, C, H, W, D), every edge divisible by the patch."""
        states = self.encoder(volume)
        grid = [size // self.encoder.patch_size for size in volume.shape[2:]]
        shallow, middle, deep, last = (
            tokens_to_feature_map(states[tap], grid) for tap in (*self.encoder.feature_layers, self.encoder.depth)
        )
        x = self.merge_deep(last, self.skips[2](deep))
        x = self.merge_middle(x, self.skips[1](middle))
        x = self.merge_shallow(x, self.skips[0](shallow))
        return self.out(self.merge_image(x, self.from_image(volume)))


def tokens_to_feature_map(tokens: Tensor, grid: Sequence[int]) -> Tensor:
    """(B, [1 +] L, dim) -> (B, dim, h, w, d), the cls token left out."""
    count = grid[0] * grid[1] * grid[2]
    return tokens[:, -count:].transpose(1, 2).reshape(len(tokens), -1, *grid)


def _skip(dim: int, width: int, level: int) -> nn.Module:
    """Tokens of one depth to `width` channels at 2^level of the token grid."""
    if level == 0:
        return UnetResBlock(3, dim, width, kernel_size=3, stride=1, norm_name=_NORM)
    return UnetrPrUpBlock(
        3, dim, width, num_layer=level - 1, kernel_size=3, stride=1, upsample_kernel_size=2, norm_name=_NORM,
        conv_block=True, res_block=True,
    )  # fmt: skip


class _Merge(nn.Module):
    """Bring the deeper map to the skip's resolution (`doubles` 1: transposed convolution; 0: same size; None: whatever
    factor is left, trilinear), put the two together and convolve."""

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
