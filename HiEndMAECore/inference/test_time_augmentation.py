"""Test-time augmentation: average the logits of a scan with those of the scan mirrored from right to left."""

from __future__ import annotations

from collections.abc import Mapping

from HiEndMAECore.models.description import ModelDescription
from HiEndMAECore.preprocessing.laterality import names_with_side


def mirrored_classes(description: ModelDescription) -> list[int] | None:
    """Return the class that each class, background first, becomes when a scan is mirrored from right to left.

    The answer follows from the mirroring rules that fine-tuning stored in the description. Older models store none; their
    structures' names decide.

    Returns:
        A permutation of the classes, or None if the model was not trained on mirrored scans or its rules name a value
        that it does not have.
    """
    values = [int(label["value"]) for label in description.labels]
    classes = list(range(len(values) + 1))
    rules = description.training.get("mirroring")
    if not isinstance(rules, Mapping):
        return None if names_with_side(label["name"] for label in description.labels) else classes
    if not rules.get("allowed", False):
        return None
    for left, right in rules.get("swaps", ()):
        if not {left, right} <= set(values):
            return None
        first, second = values.index(left) + 1, values.index(right) + 1
        classes[first], classes[second] = second, first
    return classes
