"""Patches: cutting crops into patch vectors and back, and their embedding.

A patch is a vector of its voxels ordered (ph, pw, pd, channel); patches are ordered (h, w, d) with h slowest.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


def patch_grid(image_size: Sequence[int], patch_size: int) -> tuple[int, int, int]:
    """Return the number of patches along each axis.

    Raises:
        ValueError: If the patch does not divide the crop.
    """
    if len(image_size) != 3 or any(size <= 0 or size % patch_size for size in image_size):
        raise ValueError(f"a crop of {tuple(image_size)} voxels is not divisible into patches of {patch_size}")
    h, w, d = (size // patch_size for size in image_size)
    return h, w, d


def patchify(volume: Tensor, patch_size: int) -> Tensor:
    """Cut crops (B, C, H, W, D) into patch vectors (B, L, p * p * p * C), patches h-major, voxels (ph, pw, pd, c)."""
    b, c, *size = volume.shape
    h, w, d = patch_grid(size, patch_size)
    p = patch_size
    patches = volume.reshape(b, c, h, p, w, p, d, p).permute(0, 2, 4, 6, 3, 5, 7, 1)
    return patches.reshape(b, h * w * d, p * p * p * c)


def unpatchify(patches: Tensor, grid: Sequence[int], patch_size: int) -> Tensor:
    """Arrange patch vectors (B, L, p * p * p * C) as crops (B, C, H, W, D): the inverse of `patchify`."""
    b, _, voxels = patches.shape
    h, w, d = grid
    p = patch_size
    c = voxels // p**3
    volume = patches.reshape(b, h, w, d, p, p, p, c).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return volume.reshape(b, c, h * p, w * p, d * p)


class PatchEmbedding(nn.Module):
    """Embedding of patch vectors (B, N, p * p * p * C) as tokens (B, N, dim).

    The weight has the layout of a convolution (dim, C, p, p, p), as in the authors' file; it is applied as one matrix
    product, which is the same sum and faster than a strided convolution.
    """

    def __init__(self, patch_size: int, in_channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(in_channels, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, patches: Tensor) -> Tensor:
        weight = self.proj.weight.permute(0, 2, 3, 4, 1).flatten(1)
        return F.linear(patches, weight, self.proj.bias)


def gather_tokens(tokens: Tensor, indices: Tensor | None) -> Tensor:
    """Return the tokens (B, N, X) at `indices` (B, N) of tokens (B, L, X); all of them if `indices` is None."""
    if indices is None:
        return tokens
    return tokens.gather(1, indices[:, :, None].expand(-1, -1, tokens.shape[2]))
