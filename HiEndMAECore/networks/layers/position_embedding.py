"""The ViT encoder, one function for pretraining and fine-tuning, and the blocks it is made of.

Pre-norm blocks, exact GELU, biases everywhere, no dropout; a learned cls token without position; a fixed 3-D sin-cos
position table computed for the grid at hand. Parameter names are those of the authors' weights (which keep timm's
layout), so that loading them needs no renaming. Facts: paper section 3 and the released code.

Order of things: a patch is a vector of its voxels ordered (ph, pw, pd, channel); patches are ordered (h, w, d) with h
slowest.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=32)
def sincos_position_embedding(grid: tuple[int, int, int], dim: int) -> Tensor:
    """(L, dim) float32: sin h, cos h, sin w, cos w, sin d, cos d, each dim / 6 wide, omega_k = 10000^(-k / (dim / 6))."""
    if dim % 6:
        raise ValueError(f"an embedding of {dim} is not divisible by 6, as the 3-D position table needs")
    sixth = dim // 6
    # On the CPU whatever device is being built for: the table is kept for the next network.
    cpu = torch.device("cpu")
    omega = 10000.0 ** (-torch.arange(sixth, dtype=torch.float64, device=cpu) / sixth)
    axes = [torch.arange(size, dtype=torch.float64, device=cpu) for size in grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
    angles = places[:, :, None] * omega
    return torch.cat([angles.sin(), angles.cos()], dim=-1).reshape(len(places), dim).float()
