"""The residual block of MONAI's UNETR and DynUNet (`UnetResBlock`, instance normalization), and its voxel shuffle.

They have the same parameter names, initial weights and results as MONAI's, which is not imported here: importing it takes
longer than segmenting a small scan.
"""

from __future__ import annotations

from torch import Tensor, nn

_SLOPE = 0.01  # of the leaky ReLU


class _Convolution(nn.Sequential):
    """A convolution without bias, under MONAI's name `conv`, which keeps the size for stride 1."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        convolution = nn.Conv3d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
        self.add_module("conv", convolution)


class ResidualBlock(nn.Module):
    """Two 3 x 3 x 3 convolutions with a residual connection: (B, C, H, W, D) -> (B, C', H / stride, W / stride, D / stride)."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _Convolution(in_channels, out_channels, 3, stride)
        self.conv2 = _Convolution(out_channels, out_channels, 3, 1)
        self.lrelu = nn.LeakyReLU(_SLOPE, inplace=True)
        self.norm1 = nn.InstanceNorm3d(out_channels)
        self.norm2 = nn.InstanceNorm3d(out_channels)
        self.resizes = in_channels != out_channels or stride != 1
        if self.resizes:
            self.conv3 = _Convolution(in_channels, out_channels, 1, stride)
            self.norm3 = nn.InstanceNorm3d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out = self.lrelu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        out += self.norm3(self.conv3(x)) if self.resizes else x
        return self.lrelu(out)


def shuffle_voxels(x: Tensor, factor: int) -> Tensor:
    """Arrange channels as voxels: (B, K * factor^3, H, W, D) -> (B, K, factor * H, factor * W, factor * D)."""
    batch, channels, h, w, d = x.shape
    blocks = x.reshape(batch, channels // factor**3, factor, factor, factor, h, w, d)
    return blocks.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(batch, -1, factor * h, factor * w, factor * d)
