"""How far to trust a result: sureness of each structure, slices to look at first, scans unlike what a model learned from.

Facts of a scan (plain JSON, no pixels) are kept in a model's description for its teaching scans, and compared here:

    {"spacing_mm": [R, A, S], "extent_mm": [R, A, S] of the body, "intensities": [[5th, 50th, 95th percentile] a channel]}
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from HiEndMAECore.checkpoints.model_folder import ModelDescription
from HiEndMAECore.volumes.preparation import Grid
from HiEndMAECore.volumes.sides import named_sides
from HiEndMAECore.volumes.volume import Geometry

_PIECE = 2**18  # logits worked on at once
_COARSER = 2.0  # voxel edges that differ by this factor from every teaching scan's are told
_BRIGHTER = 0.25  # of the normalised range
_LARGER = 2.0  # field of view
_REVIEW = 5  # slices named
_APART_MM = 10.0


def read_logits(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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


def slices_to_review(labels: np.ndarray, doubt: np.ndarray, grid: Grid) -> list[int]:
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
    normal = np.cross(grid.native.affine[:3, 0], grid.native.affine[:3, 1])
    normal /= np.linalg.norm(normal)
    count = grid.native.shape[2]
    origins = grid.native.slice_origins
    if origins is None:
        origins = (grid.native.affine @ np.array([[0, 0, k, 1] for k in range(count)], float).T).T[:, :3]
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


def facts_of(native: Geometry, array: np.ndarray, spacing: Sequence[float]) -> dict[str, Any]:
    """Facts of one scan. array: (C, H, W, D), prepared at `spacing` (mm along R, A, S)."""
    ras = [0.0, 0.0, 0.0]
    for axis, (into, _) in enumerate(nib.orientations.io_orientation(native.affine)):
        ras[int(into)] = round(native.spacing[axis], 3)
    stride = max(1, math.ceil((array[0].size / 1e6) ** (1 / 3)))
    thin = array[:, ::stride, ::stride, ::stride].reshape(len(array), -1)
    return {
        "spacing_mm": ras,
        "extent_mm": [round(n * step, 1) for n, step in zip(array.shape[1:], spacing)],
        "intensities": np.percentile(thin, [5, 50, 95], axis=1).T.round(3).tolist(),
    }


def mirrored_classes(description: ModelDescription) -> list[int] | None:
    """What each class, background first, becomes where a scan is mirrored from right to left, by what teaching found of the
    structures (or their names, in models that do not tell); None where a mirrored scan is no patient the model knows."""
    values = [int(label["value"]) for label in description.labels]
    classes = list(range(len(values) + 1))
    found = description.training.get("mirroring")
    if not isinstance(found, Mapping):
        return None if named_sides(label["name"] for label in description.labels) else classes
    if not found.get("allowed", False):
        return None
    for one, other in found.get("swaps", ()):
        if not {one, other} <= set(values):
            return None
        first, second = values.index(one) + 1, values.index(other) + 1
        classes[first], classes[second] = second, first
    return classes


def unlike(facts: Mapping[str, Any], taught: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Warnings ({"code", "message", "advice"}) where a scan is far from all of the scans that a model learned from."""
    if not taught:
        return []
    told = []
    spacing, known = _far(facts["spacing_mm"], [scan["spacing_mm"] for scan in taught], _COARSER)
    if spacing:
        told.append(
            {
                "code": "spacing_unlike",
                "message": f"Its voxels ({_mm(facts['spacing_mm'])} mm) are unlike those the model learned from ({known} mm).",
                "advice": "Look closely at small structures and at the first and last slices of each.",
            }
        )
    extent, known = _far(facts["extent_mm"], [scan["extent_mm"] for scan in taught], _LARGER)
    if extent:
        told.append(
            {
                "code": "field_of_view_unlike",
                "message": f"It shows {_mm(facts['extent_mm'])} mm of the body; the model learned from {known} mm.",
                "advice": "Expect false findings where the model never looked, and cut structures at the edges.",
            }
        )
    apart = min(
        (
            float(np.abs(np.subtract(facts["intensities"], scan["intensities"])).max())
            for scan in taught
            if len(scan["intensities"]) == len(facts["intensities"])
        ),
        default=0.0,
    )
    if apart > _BRIGHTER:
        told.append(
            {
                "code": "intensities_unlike",
                "message": f"Its intensities differ by {apart:.0%} of the range from those the model learned from.",
                "advice": "Another contrast phase, sequence or part of the body? Check the result before you use it.",
            }
        )
    return told


def _far(mine: Sequence[float], theirs: Sequence[Sequence[float]], factor: float) -> tuple[bool, str]:
    """Is any axis off by more than `factor` from every one of `theirs`? And the closest, as text."""
    off = [float(np.abs(np.log(np.divide(mine, other))).max()) for other in theirs]
    closest = int(np.argmin(off))
    return off[closest] > math.log(factor) + 1e-9, _mm(theirs[closest])


def _mm(edges: Sequence[float]) -> str:
    return " x ".join(f"{edge:.3g}" for edge in edges)
