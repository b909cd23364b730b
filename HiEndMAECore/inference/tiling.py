"""Tiles: where the network looks, and how much each voxel of a tile counts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

OVERLAP = 0.5
_SIGMA = 0.125  # of the tile's edge, as MONAI and nnU-Net have it


def plan_tiles(shape: Sequence[int], tile: Sequence[int], *, overlap: float = OVERLAP) -> list[tuple[int, int, int]]:
    """First voxels of the fewest evenly spaced tiles that cover a grid of `shape` (at least the tile's size everywhere)
    with at least `overlap` between neighbours."""
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap is {overlap}; it must be at least 0 and below 1")
    starts = []
    for length, edge in zip(shape, tile):
        room = length - edge
        if room < 0:
            raise ValueError(f"a grid of {tuple(shape)} is smaller than a tile of {tuple(tile)}")
        count = math.ceil(room / max(1, math.floor(edge * (1 - overlap)))) + 1
        starts.append([round(place * room / max(1, count - 1)) for place in range(count)])
    return [(h, w, d) for h, w, d in itertools.product(*starts)]


def tile_weights(tile: Sequence[int], device: torch.device) -> Tensor:
    """(H, W, D) Gaussian weights, largest 1 in the middle, never zero."""
    weights = torch.ones((), device=device)
    for edge in tile:
        places = torch.arange(edge, dtype=torch.float32, device=device) - (edge - 1) / 2
        weights = weights[..., None] * torch.exp(-0.5 * (places / (_SIGMA * edge)) ** 2)
    return (weights / weights.max()).clamp(min=1e-3)
