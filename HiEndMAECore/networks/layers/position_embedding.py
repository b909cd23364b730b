"""The fixed 3D sine-cosine position embedding, computed for any grid of patches (released code of the paper)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=32)
def sincos_position_embedding(grid: tuple[int, int, int], dim: int) -> Tensor:
    """Return the position embedding (L, dim) in float32 of a grid of patches.

    Columns: sin h, cos h, sin w, cos w, sin d, cos d, each dim / 6 wide, with omega_k = 10000^(-k / (dim / 6)).

    Raises:
        ValueError: If `dim` is not divisible by 6.
    """
    if dim % 6:
        raise ValueError(f"an embedding of {dim} is not divisible by 6, as the 3D position embedding needs")
    sixth = dim // 6
    # On the CPU whatever device is being built for: the embedding is cached for the next network.
    cpu = torch.device("cpu")
    omega = 10000.0 ** (-torch.arange(sixth, dtype=torch.float64, device=cpu) / sixth)
    axes = [torch.arange(size, dtype=torch.float64, device=cpu) for size in grid]
    coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
    angles = coordinates[:, :, None] * omega
    return torch.cat([angles.sin(), angles.cos()], dim=-1).reshape(len(coordinates), dim).float()
