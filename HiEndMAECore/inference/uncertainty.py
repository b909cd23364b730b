"""The uncertainty of a result: maximum probability and entropy of each voxel, and the slices to review first."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from HiEndMAECore.io.volume import Geometry
from HiEndMAECore.preprocessing.pipeline import NetworkGrid

_CHUNK_LOGITS = 2**18  # logits that are summarized at once
_MAX_REVIEW_SLICES = 5
_MIN_REVIEW_DISTANCE_MM = 10.0


def summarize_logits(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the most probable class of each voxel, its probability, and the normalized entropy of all classes.

    Args:
        logits: (K, H, W, D).

    Returns:
        Three tensors (H, W, D) on the logits' device: the class (uint8, or int16 for more than 256 classes); the maximum
        probability (float32); the entropy divided by log K, from 0 (certain) to 1 (all classes equally likely; float16).
    """
    count, shape = len(logits), logits.shape[1:]
    flat = logits.reshape(count, -1)
    classes = torch.empty(flat.shape[1], dtype=torch.uint8 if count < 257 else torch.int16, device=logits.device)
    max_probability = torch.empty(flat.shape[1], device=logits.device)
    entropy = torch.empty(flat.shape[1], dtype=torch.float16, device=logits.device)
    step = max(1, _CHUNK_LOGITS // count)
    for first in range(0, flat.shape[1], step):
        part = flat[:, first : first + step].float()
        highest, indices = part.max(0)
        part = part - highest
        exponentials = part.exp()
        total = exponentials.sum(0)
        classes[first : first + step] = indices
        max_probability[first : first + step] = 1 / total
        # H = log(sum) - sum(p * x), with x relative to the largest logit
        entropy[first : first + step] = (total.log() - (exponentials * part).sum(0) / total) / math.log(count)
    return classes.reshape(shape), max_probability.reshape(shape), entropy.reshape(shape)


def slices_to_review(labels: np.ndarray, entropy: np.ndarray, grid: NetworkGrid) -> list[int]:
    """Return the stored slices with the highest entropy at the borders of structures, in falling order.

    Args:
        labels: Label map (H, W, D) on the network's grid.
        entropy: Entropy (H, W, D) on the same grid.
        grid: The network's grid and the scan's original geometry.

    Returns:
        At most five indices along the scan's last axis, counted from 0 and at least 10 mm apart; none for an empty result.
    """
    border = _border_voxels(labels)
    indices = np.argwhere(border)
    if not len(indices):
        return []
    original = grid.original
    normal = np.cross(original.affine[:3, 0], original.affine[:3, 1])
    normal /= np.linalg.norm(normal)
    heights = _slice_heights(original, normal)
    order = np.argsort(heights)
    border_heights = indices @ (grid.affine[:3, :3].T @ normal) + grid.affine[:3, 3] @ normal
    count = original.shape[2]
    nearest = order[np.rint(np.interp(border_heights, heights[order], np.arange(count))).astype(int)]
    score = np.bincount(nearest, weights=entropy[border].astype(np.float64), minlength=count)
    chosen: list[int] = []
    for index in np.argsort(-score, kind="stable"):
        if score[index] <= 0 or len(chosen) == _MAX_REVIEW_SLICES:
            break
        if all(abs(heights[index] - heights[other]) >= _MIN_REVIEW_DISTANCE_MM for other in chosen):
            chosen.append(int(index))
    return chosen


def _border_voxels(labels: np.ndarray) -> np.ndarray:
    """Return a mask of the voxels (H, W, D) that have a 6-neighbor with another label."""
    border = np.zeros(labels.shape, bool)
    for axis in range(3):
        lower, upper = _neighbor_slices(axis)
        differs = labels[lower] != labels[upper]
        border[lower] |= differs
        border[upper] |= differs
    return border


def _neighbor_slices(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return the slices of all voxels but the last, and of all but the first, along `axis`."""
    lower, upper = [slice(None)] * 3, [slice(None)] * 3
    lower[axis], upper[axis] = slice(None, -1), slice(1, None)
    return tuple(lower), tuple(upper)


def _slice_heights(original: Geometry, normal: np.ndarray) -> np.ndarray:
    """Return the position in mm of each stored slice along `normal`."""
    origins = original.slice_origins
    if origins is None:
        corners = np.array([[0, 0, index, 1] for index in range(original.shape[2])], float)
        origins = (original.affine @ corners.T).T[:, :3]
    heights: np.ndarray = origins @ normal
    return heights
