"""Scores of a label map against a reference: overlap (Dice) and surface distances in mm (HD95, surface Dice).

All scores are computed on the native grid, within the bounding box of both masks. A surface voxel is a voxel of the mask that
has at least one of its six neighbors outside the mask; what lies outside the volume counts as outside. The definitions are
those of `monai.metrics` without sub-voxels:

* Dice: twice the number of common voxels, divided by the sum of the voxels of both masks.
* HD95: the 95th percentile (linear interpolation) of the distances from each surface voxel of one mask to the nearest surface
  voxel of the other, in each direction; the larger of the two. DeepMind's surface-distance makes the same choice.
* NSD (normalized surface Dice, surface Dice): the share of the surface voxels of both masks whose distance to the other
  surface is at most the tolerance. This is the voxel-count NSD, in which every surface voxel has the same weight. The
  area-weighted NSD of Nikolov et al. (arXiv 1809.04430) and DeepMind's surface-distance differs from it slightly.

Ignored voxels of the reference are removed from both masks. They are no surface either: a neighbor that is ignored counts as
inside of the mask, because nobody knows where the structure ends there. Only the voxels that were judged are compared, such as
those of the labelled slices. A surface score is None (undefined) where one of the masks has no surface left.

Distances are exact: a k-d tree holds the surface voxels in mm, which also covers sheared grids (gantry tilt).
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
    """The scores of one structure in one case.

    Attributes:
        value: Value in the label maps.
        status: `scored`: both label maps have the structure. `missed`: only the reference has it; Dice and NSD are 0, and
            HD95 is undefined (None). `not_labelled`: the reference does not have it, so there are no scores.
            Ignored voxels count in no label map.
        dice: Dice, 0 to 1.
        hd95_mm: HD95 in mm.
        nsd: Voxel-count NSD, 0 to 1.
        reference_ml: Volume in the reference in ml.
        prediction_ml: Volume in the prediction in ml.
    """

    value: int
    status: str
    dice: float | None
    hd95_mm: float | None
    nsd: float | None
    reference_ml: float
    prediction_ml: float


def dice(prediction: np.ndarray, reference: np.ndarray) -> float | None:
    """Return the Dice of two boolean masks (X, Y, Z); None when both are empty."""
    total = int(np.count_nonzero(prediction)) + int(np.count_nonzero(reference))
    return 2.0 * int(np.count_nonzero(prediction & reference)) / total if total else None


def surface_distances(
    prediction: np.ndarray, reference: np.ndarray, voxel_steps: np.ndarray, ignored: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance of each surface voxel of one mask to the nearest surface voxel of the other, in mm.

    Args:
        prediction: Boolean mask (X, Y, Z), not empty.
        reference: Boolean mask (X, Y, Z), not empty.
        voxel_steps: (3,) voxel spacing in mm; or (3, 3), whose columns are the steps along the voxel axes in mm (the upper
            left of the affine).
        ignored: Boolean mask (X, Y, Z) of voxels that are not compared; None: there are none.

    Returns:
        (distances of the prediction's surface voxels, distances of the reference's surface voxels), each (N,); infinite to a
        mask without a surface.
    """
    voxel_steps = np.asarray(voxel_steps, dtype=np.float64)
    matrix = np.diag(voxel_steps) if voxel_steps.ndim == 1 else voxel_steps
    prediction_surface, reference_surface = _surface(prediction, ignored), _surface(reference, ignored)
    return (
        _directed_distances(prediction_surface, reference_surface, matrix),
        _directed_distances(reference_surface, prediction_surface, matrix),
    )


def hd95(distances: tuple[np.ndarray, np.ndarray]) -> float:
    """Return the HD95 in mm from the result of `surface_distances`."""
    return float(max(np.percentile(directed, 95) for directed in distances))


def surface_dice(distances: tuple[np.ndarray, np.ndarray], tolerance_mm: float) -> float:
    """Return the voxel-count NSD at a tolerance in mm from the result of `surface_distances`."""
    within = sum(int(np.count_nonzero(directed <= tolerance_mm)) for directed in distances)
    return within / sum(len(directed) for directed in distances)


def score_case(
    prediction: np.ndarray,
    reference: np.ndarray,
    *,
    affine: np.ndarray,
    tolerance_mm: float = 2.0,
    ignore: int | None = None,
) -> dict[int, StructureScore]:
    """Return the scores of every value above zero in either of two label maps.

    Args:
        prediction: Label map (X, Y, Z), integers.
        reference: Label map on the same grid.
        affine: (4, 4) from voxel index to mm.
        tolerance_mm: Tolerance of the surface Dice.
        ignore: Value of the reference's ignored voxels, if there is one; it is not scored.
    """
    ignored = None
    if ignore is not None:
        ignored = reference == ignore
        prediction = np.where(ignored | (prediction == ignore), 0, prediction)
        reference = np.where(ignored, 0, reference)
    voxel_steps = np.asarray(affine, dtype=np.float64)[:3, :3]
    voxel_ml = float(abs(np.linalg.det(voxel_steps)) / 1000.0)
    boxes = _bounding_boxes(prediction), _bounding_boxes(reference)
    scores = {}
    for value in sorted(set(boxes[0]) | set(boxes[1])):
        box = _union([found[value] for found in boxes if value in found])
        if ignored is not None:
            box = tuple(slice(max(part.start - 1, 0), part.stop + 1) for part in box)  # with the ignored neighbors
        masks = prediction[box] == value, reference[box] == value
        scores[value] = _score_structure(
            value,
            *masks,
            None if ignored is None else ignored[box],
            voxel_steps=voxel_steps,
            voxel_ml=voxel_ml,
            tolerance_mm=tolerance_mm,
        )
    return scores


def not_labelled(value: int) -> StructureScore:
    """Return the score of a structure that neither label map has."""
    return StructureScore(value, "not_labelled", None, None, None, 0.0, 0.0)


def _score_structure(
    value: int,
    prediction: np.ndarray,
    reference: np.ndarray,
    ignored: np.ndarray | None,
    *,
    voxel_steps: np.ndarray,
    voxel_ml: float,
    tolerance_mm: float,
) -> StructureScore:
    """Return the scores of one structure from its boolean masks, and the mask of ignored voxels."""
    volumes = int(np.count_nonzero(reference)) * voxel_ml, int(np.count_nonzero(prediction)) * voxel_ml
    if not volumes[0]:
        return StructureScore(value, "not_labelled", None, None, None, *volumes)
    if not volumes[1]:
        return StructureScore(value, "missed", 0.0, None, 0.0, *volumes)
    distances = surface_distances(prediction, reference, voxel_steps, ignored)
    if not all(len(directed) and np.isfinite(directed).all() for directed in distances):
        return StructureScore(value, "scored", dice(prediction, reference), None, None, *volumes)
    nsd = surface_dice(distances, tolerance_mm)
    return StructureScore(value, "scored", dice(prediction, reference), hd95(distances), nsd, *volumes)


def _surface(mask: np.ndarray, ignored: np.ndarray | None = None) -> np.ndarray:
    """Return the voxels of a mask that have a face neighbor outside it or outside the array; ignored ones are inside."""
    if ignored is not None:
        return _surface(mask | ignored) & mask
    interior = np.zeros_like(mask)
    interior[1:-1, 1:-1, 1:-1] = mask[1:-1, 1:-1, 1:-1]
    core = interior[1:-1, 1:-1, 1:-1]
    for axis in range(3):
        for neighbors in (slice(None, -2), slice(2, None)):
            core &= mask[tuple(neighbors if other == axis else slice(1, -1) for other in range(3))]
    return mask & ~interior


def _directed_distances(start: np.ndarray, goal: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return the distance of each voxel of `start` to the nearest voxel of `goal` in mm; those with distance 0 come last."""
    distances = np.zeros(np.count_nonzero(start))
    # The distance of a voxel that both surfaces share is 0, so only the other voxels are looked up in the tree.
    apart = np.argwhere(start & ~goal) @ matrix.T
    if len(apart) and not goal.any():
        distances[:] = np.inf
    elif len(apart):
        distances[: len(apart)] = cKDTree(np.argwhere(goal) @ matrix.T).query(apart, workers=-1)[0]
    return distances


def _bounding_boxes(labels: np.ndarray) -> dict[int, tuple[slice, ...]]:
    """Return the bounding box of each value above zero, found in one pass."""
    largest = int(labels.max(initial=0))
    values = np.arange(1, 1 + min(largest, 2**16))
    if largest > 2**16:  # find_objects would list every number up to the largest one
        values, ranks = np.unique(np.append(labels, 0), return_inverse=True)
        values, labels = values[1:], ranks[:-1].reshape(labels.shape)
    return {int(value): box for value, box in zip(values, find_objects(labels)) if box is not None}


def _union(boxes: Sequence[tuple[slice, ...]]) -> tuple[slice, ...]:
    """Return the smallest box that contains all boxes."""
    return tuple(slice(min(part.start for part in axis), max(part.stop for part in axis)) for axis in zip(*boxes))
