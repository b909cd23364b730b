"""Scores of one label map against another: overlap, surface distances in mm, and an interval for the mean.

Everything is computed on the native grid, inside the bounding box of both masks. A surface voxel is a voxel of the mask
with at least one of its six neighbours outside (the border of the volume counts as outside). The definitions are those
of `monai.metrics` without sub-voxels:

* Dice: twice the common voxels over the voxels of both.
* HD95: of the distances from each surface voxel to the nearest surface voxel of the other mask, the 95th percentile in
  each direction (linear interpolation), and the larger of the two; also the choice of DeepMind's surface-distance.
* NSD (surface Dice): the share of all surface voxels, of both masks together, whose distance is at most the tolerance;
  Nikolov et al., arXiv 1809.04430, with voxels counted instead of areas.

Distances are exact: a k-d tree of surface voxels in mm, which also holds for sheared grids (gantry tilt).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import find_objects
from scipy.spatial import cKDTree

SCORES = ("dice", "hd95_mm", "nsd")
STATUSES = ("scored", "missed", "not_labelled")


@dataclass(frozen=True)
class StructureScore:
    """One structure of one case; volumes in ml, distances in mm.

    status `scored`: both label it. `missed`: only the reference does; Dice and NSD are 0, HD95 is undefined (None).
    `not_labelled`: the reference does not, so nothing is scored; `prediction_ml` tells what was predicted all the same.
    """

    value: int
    status: str
    dice: float | None
    hd95_mm: float | None
    nsd: float | None
    reference_ml: float
    prediction_ml: float


def dice(prediction: np.ndarray, reference: np.ndarray) -> float | None:
    """Dice of two boolean masks of one shape; None when both are empty."""
    both = int(np.count_nonzero(prediction)) + int(np.count_nonzero(reference))
    return 2.0 * int(np.count_nonzero(prediction & reference)) / both if both else None


def surface_distances(
    prediction: np.ndarray, reference: np.ndarray, steps: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Distances in mm of each surface voxel of one mask to the nearest of the other: (prediction's, reference's).

    prediction, reference: (X, Y, Z) boolean, neither empty. steps: (3,) voxel spacing in mm, or (3, 3) whose columns
    are the steps along the voxel axes in mm (the affine's upper left).
    """
    steps = np.asarray(steps, dtype=np.float64)
    matrix = np.diag(steps) if steps.ndim == 1 else steps
    first, second = _surface(prediction), _surface(reference)
    return _directed(first, second, matrix), _directed(second, first, matrix)


def hd95(distances: tuple[np.ndarray, np.ndarray]) -> float:
    """HD95 in mm out of `surface_distances`."""
    return float(max(np.percentile(directed, 95) for directed in distances))


def surface_dice(distances: tuple[np.ndarray, np.ndarray], tolerance_mm: float) -> float:
    """NSD at `tolerance_mm` out of `surface_distances`."""
    within = sum(int(np.count_nonzero(directed <= tolerance_mm)) for directed in distances)
    return within / sum(len(directed) for directed in distances)


def score_case(
    prediction: np.ndarray, reference: np.ndarray, *, affine: np.ndarray, tolerance_mm: float = 2.0
) -> dict[int, StructureScore]:
    """Scores of every value above zero that one of two label maps holds.

    prediction, reference: (X, Y, Z) integers on one grid. affine: (4, 4), voxel -> mm.
    """
    steps = np.asarray(affine, dtype=np.float64)[:3, :3]
    voxel_ml = float(abs(np.linalg.det(steps)) / 1000.0)
    boxes = _boxes(prediction), _boxes(reference)
    scores = {}
    for value in sorted(set(boxes[0]) | set(boxes[1])):
        box = _union([found[value] for found in boxes if value in found])
        masks = prediction[box] == value, reference[box] == value
        scores[value] = _score(value, *masks, steps=steps, voxel_ml=voxel_ml, tolerance_mm=tolerance_mm)
    return scores


def not_labelled(value: int) -> StructureScore:
    """The score of a structure that neither label map holds."""
    return StructureScore(value, "not_labelled", None, None, None, 0.0, 0.0)


def _score(
    value: int,
    prediction: np.ndarray,
    reference: np.ndarray,
    *,
    steps: np.ndarray,
    voxel_ml: float,
    tolerance_mm: float,
) -> StructureScore:
    volumes = int(np.count_nonzero(reference)) * voxel_ml, int(np.count_nonzero(prediction)) * voxel_ml
    if not volumes[0]:
        return StructureScore(value, "not_labelled", None, None, None, *volumes)
    if not volumes[1]:
        return StructureScore(value, "missed", 0.0, None, 0.0, *volumes)
    distances = surface_distances(prediction, reference, steps)
    nsd = surface_dice(distances, tolerance_mm)
    return StructureScore(value, "scored", dice(prediction, reference), hd95(distances), nsd, *volumes)


def _surface(mask: np.ndarray) -> np.ndarray:
    """The voxels of `mask` with a face neighbour outside it or outside the array."""
    inner = np.zeros_like(mask)
    inner[1:-1, 1:-1, 1:-1] = mask[1:-1, 1:-1, 1:-1]
    core = inner[1:-1, 1:-1, 1:-1]
    for axis in range(3):
        for side in (slice(None, -2), slice(2, None)):
            core &= mask[tuple(side if other == axis else slice(1, -1) for other in range(3))]
    return mask & ~inner


def _directed(start: np.ndarray, goal: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    distances = np.zeros(np.count_nonzero(start))
    # A surface voxel that both masks share lies at distance 0: only the others need a look into the tree.
    apart = np.argwhere(start & ~goal) @ matrix.T
    if len(apart):
        distances[: len(apart)] = cKDTree(np.argwhere(goal) @ matrix.T).query(apart, workers=-1)[0]
    return distances


def _boxes(labels: np.ndarray) -> dict[int, tuple[slice, ...]]:
    """The bounding box of each value above zero, in one pass."""
    largest = int(labels.max(initial=0))
    values = np.arange(1, 1 + min(largest, 2**16))
    if largest > 2**16:  # find_objects would list every number up to the largest
        values, ranks = np.unique(np.append(labels, 0), return_inverse=True)
        values, labels = values[1:], ranks[:-1].reshape(labels.shape)
    return {int(value): box for value, box in zip(values, find_objects(labels)) if box is not None}


def _union(boxes: Sequence[tuple[slice, ...]]) -> tuple[slice, ...]:
    return tuple(slice(min(part.start for part in axis), max(part.stop for part in axis)) for axis in zip(*boxes))
