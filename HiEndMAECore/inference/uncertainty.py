"""How far to trust a result: sureness of each structure, slices to look at first, scans unlike what a model learned from.

Facts of a scan (plain JSON, no pixels) are kept in a model's description for its teaching scans, and compared here:

    {"spacing_mm": [R, A, S], "extent_mm": [R, A, S] of the body, "intensities": [[5th, 50th, 95th percentile] a channel]}
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from HiEndMAECore.preprocessing.pipeline import NetworkGrid

_PIECE = 2**18  # logits worked on at once
_REVIEW = 5  # slices named
_APART_MM = 10.0


def summarize_logits(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(K, H, W, D) logits -> (H, W, D) each: likeliest class (uint8 or int16), its probability (float32), and the entropy
    of all over its largest value, 0 sure to 1 (float16)."""
    count, shape = len(logits), logits.shape[1:]
    flat = logits.reshape(count, -1)
    classes = torch.empty(flat.shape[1], dtype=torch.uint8 if count < 257 else torch.int16, device=logits.device)
    sure = torch.empty(flat.shape[1], device=logits.device)
    doubt = torch.empty(flat.shape[1], dtype=torch.float16, device=logits.device)
    step = max(1, _PIECE // count)
    for first in range(0, flat.shape[1], step):
        part = flat[:, first : first + step].float()
        highest, which = part.max(0)
        part = part - highest
        shares = part.exp()
        total = shares.sum(0)
        classes[first : first + step] = which
        sure[first : first + step] = 1 / total
        # H = log(sum) - sum(p * x), with x relative to the largest
        doubt[first : first + step] = (total.log() - (shares * part).sum(0) / total) / math.log(count)
    return classes.reshape(shape), sure.reshape(shape), doubt.reshape(shape)


def slices_to_review(labels: np.ndarray, doubt: np.ndarray, grid: NetworkGrid) -> list[int]:
    """Stored slices (last axis, from 0) with most entropy around the borders of structures, the worst first; at least
    10 mm apart. labels, doubt: (H, W, D) on the network's grid."""
    border = np.zeros(labels.shape, bool)
    for axis in range(3):
        one, other = _neighbours(axis)
        differ = labels[one] != labels[other]
        border[one] |= differ
        border[other] |= differ
    places = np.argwhere(border)
    if not len(places):
        return []
    normal = np.cross(grid.original.affine[:3, 0], grid.original.affine[:3, 1])
    normal /= np.linalg.norm(normal)
    count = grid.original.shape[2]
    origins = grid.original.slice_origins
    if origins is None:
        origins = (grid.original.affine @ np.array([[0, 0, k, 1] for k in range(count)], float).T).T[:, :3]
    heights = origins @ normal
    order = np.argsort(heights)
    along = places @ (grid.affine[:3, :3].T @ normal) + grid.affine[:3, 3] @ normal
    nearest = order[np.rint(np.interp(along, heights[order], np.arange(count))).astype(int)]
    score = np.bincount(nearest, weights=doubt[border].astype(np.float64), minlength=count)
    chosen: list[int] = []
    for index in np.argsort(-score, kind="stable"):
        if score[index] <= 0 or len(chosen) == _REVIEW:
            break
        if all(abs(heights[index] - heights[other]) >= _APART_MM for other in chosen):
            chosen.append(int(index))
    return chosen


def _neighbours(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    whole = [slice(None)] * 3
    one, other = whole.copy(), whole.copy()
    one[axis], other[axis] = slice(None, -1), slice(1, None)
    return tuple(one), tuple(other)
