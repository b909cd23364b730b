"""Tidying a label map after the network: what one would do by hand, and tell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

_TOUCHING = np.ones((3, 3, 3))  # 26 neighbours


def keep_largest_component(labels: np.ndarray, values: Sequence[int]) -> tuple[np.ndarray, dict[int, int]]:
    """Only the largest connected piece (26 neighbours) of each structure stays.

    Returns the cleaned copy of labels (X, Y, Z) and {value: voxels taken away}.
    """
    return remove_small_components(labels, values, smaller_than=None)


def remove_small_components(
    labels: np.ndarray, values: Sequence[int], *, smaller_than: float | None
) -> tuple[np.ndarray, dict[int, int]]:
    """Pieces (26 neighbours) of fewer than `smaller_than` voxels become background; None: all but the largest.

    Returns the cleaned copy of labels (X, Y, Z) and {value: voxels taken away}.
    """
    cleaned, removed = labels.copy(), {}
    boxes = ndimage.find_objects(labels)
    for value in values:
        box = boxes[value - 1] if value <= len(boxes) else None
        if box is None:
            continue
        pieces, count = ndimage.label(labels[box] == value, structure=_TOUCHING)
        sizes = np.bincount(pieces.ravel(), minlength=count + 1)
        sizes[0] = 0
        goes = np.arange(count + 1) != sizes.argmax() if smaller_than is None else sizes < smaller_than
        goes[0] = False
        islands = goes[pieces]
        if islands.any():
            cleaned[box][islands] = 0
            removed[value] = int(islands.sum())
    return cleaned, removed


def fill_holes(labels: np.ndarray, values: Sequence[int]) -> tuple[np.ndarray, dict[int, int]]:
    """Background that one structure encloses on all sides (6 neighbours) becomes that structure; other structures in it
    stay.

    Returns the filled copy of labels (X, Y, Z) and {value: voxels added}.
    """
    filled, added = labels.copy(), {}
    boxes = ndimage.find_objects(labels)
    for value in values:
        box = boxes[value - 1] if value <= len(boxes) else None
        if box is None:
            continue
        holes = ndimage.binary_fill_holes(labels[box] == value) & (filled[box] == 0)
        if holes.any():
            filled[box][holes] = value
            added[value] = int(holes.sum())
    return filled, added
