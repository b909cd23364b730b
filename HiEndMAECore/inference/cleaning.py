"""Tidying a label map after the network: what one would do by hand, and tell."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def keep_largest(labels: np.ndarray, values: list[int]) -> tuple[np.ndarray, dict[int, int]]:
    """Only the largest connected piece (26 neighbours) of each structure stays.

    Returns the cleaned copy of labels (X, Y, Z) and {value: voxels taken away}.
    """
    cleaned, removed = labels.copy(), {}
    boxes = ndimage.find_objects(labels)
    for value in values:
        box = boxes[value - 1] if value <= len(boxes) else None
        if box is None:
            continue
        pieces, count = ndimage.label(labels[box] == value, structure=np.ones((3, 3, 3)))
        if count < 2:
            continue
        sizes = np.bincount(pieces.ravel())[1:]
        islands = (pieces > 0) & (pieces != sizes.argmax() + 1)
        cleaned[box][islands] = 0
        removed[value] = int(islands.sum())
    return cleaned, removed
