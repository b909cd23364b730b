"""How far to trust a result: sureness of each structure, slices to look at first, scans unlike what a model learned from.

Facts of a scan (plain JSON, no pixels) are kept in a model's description for its teaching scans, and compared here:

    {"spacing_mm": [R, A, S], "extent_mm": [R, A, S] of the body, "intensities": [[5th, 50th, 95th percentile] a channel]}
"""

from __future__ import annotations

from collections.abc import Mapping

from HiEndMAECore.models.description import ModelDescription
from HiEndMAECore.preprocessing.laterality import names_with_side


def mirrored_classes(description: ModelDescription) -> list[int] | None:
    """What each class, background first, becomes where a scan is mirrored from right to left, by what teaching found of the
    structures (or their names, in models that do not tell); None where a mirrored scan is no patient the model knows."""
    values = [int(label["value"]) for label in description.labels]
    classes = list(range(len(values) + 1))
    found = description.training.get("mirroring")
    if not isinstance(found, Mapping):
        return None if names_with_side(label["name"] for label in description.labels) else classes
    if not found.get("allowed", False):
        return None
    for one, other in found.get("swaps", ()):
        if not {one, other} <= set(values):
            return None
        first, second = values.index(one) + 1, values.index(other) + 1
        classes[first], classes[second] = second, first
    return classes
