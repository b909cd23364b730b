"""Training cases: labelled scans on the network's grid, with class numbers instead of label values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from HiEndMAECore.data.labelled_cases import LabelledCase
from HiEndMAECore.errors import InputError
from HiEndMAECore.io.structure import Structure
from HiEndMAECore.preprocessing.cropping import body_bounding_box
from HiEndMAECore.preprocessing.pipeline import NetworkGrid, PreprocessingPlan, preprocess, preprocess_labels
from HiEndMAECore.reporting.reporter import Reporter

MIN_VOXELS = 20  # of a structure on the network's grid; fewer are too few to train on
_MIN_BODY_FRACTION = 0.9  # of a structure's voxels must lie in the body's bounding box


@dataclass(frozen=True)
class TrainingCase:
    """One labelled scan on the network's grid.

    Attributes:
        name: Name of the case.
        image: (C, H, W, D) float32 in [0, 1].
        classes: (H, W, D) int16; 0 is the background and i + 1 the model's i-th structure.
        grid: Position of the network's grid in the original scan, needed to resample a result to the original grid.
    """

    name: str
    image: Tensor
    classes: Tensor
    grid: NetworkGrid | None = None

    def to(self, device: torch.device) -> TrainingCase:
        """Return the case on `device`."""
        return replace(self, image=self.image.to(device), classes=self.classes.to(device))


def preprocess_training_cases(
    cases: Sequence[LabelledCase], plan: PreprocessingPlan, structures: Sequence[Structure], *, report: Reporter
) -> list[TrainingCase]:
    """Preprocess labelled cases and turn their label values into classes 1 to K, in the order of `structures`.

    Args:
        cases: Labelled cases in memory.
        plan: Spacing and intensities of the network's grid.
        structures: Structures of the model.
        report: Receives warnings about label values that the model does not have, structures that a case does not label,
            structures outside the body, and structures with too few voxels at this spacing.

    Raises:
        InputError: `labels_too_small`, when no labelled voxel is left at this spacing.
    """
    training_cases = []
    counts = np.zeros(len(structures), dtype=int)
    values = [structure.value for structure in structures]
    for case in cases:
        _warn_about_labels(case, structures, plan, report)
        preprocessed = preprocess(case.scan, plan)
        labels = preprocess_labels(case.labels, preprocessed, values=values)
        classes = np.zeros(labels.shape, dtype=np.int16)
        for index, value in enumerate(values):
            mask = labels == value
            classes[mask] = index + 1
            counts[index] += int(mask.sum())
        image = torch.from_numpy(preprocessed.array)
        training_cases.append(TrainingCase(case.scan.name, image, torch.from_numpy(classes), preprocessed))
    _check_voxel_counts(counts, plan, structures, report)
    return training_cases


def _warn_about_labels(
    case: LabelledCase, structures: Sequence[Structure], plan: PreprocessingPlan, report: Reporter
) -> None:
    """Warn about label values of a case that are unknown, absent, or outside the body."""
    values = [structure.value for structure in structures]
    present = {int(value) for value in np.unique(case.labels.array)}
    if unknown := sorted(present - {0, *values}):
        report.warning(
            "labels_unknown",
            f"{case.scan.name} has the label values {', '.join(map(str, unknown))}, which the model does not have. "
            "They are trained as background.",
            "To train new structures, start from the model with --init instead of --improve.",
        )
    if absent := [structure.name for structure in structures if structure.value not in present]:
        report.warning(
            "structures_not_drawn",
            f"{case.scan.name} has no {', '.join(absent)}. If the scan shows them, the model is trained to call them "
            "background.",
            "Label them in this scan, or leave the scan out.",
        )
    if outside := _outside_body(case, structures, plan):
        report.warning(
            "labels_outside_body",
            f"In {case.scan.name} more than a tenth of {', '.join(outside)} lies outside the detected body.",
            "A separate part, such as an arm, is not trained on: crop the scan to it.",
        )


def _check_voxel_counts(
    counts: np.ndarray, plan: PreprocessingPlan, structures: Sequence[Structure], report: Reporter
) -> None:
    """Warn about structures with too few voxels; raise `InputError` when none has any."""
    if not counts.any():
        raise InputError(
            "labels_too_small",
            f"No labelled structure is left at a spacing of {plan.spacing} mm.",
            "Use a finer --spacing.",
        )
    for structure, count in zip(structures, counts):
        if count < MIN_VOXELS:
            report.warning(
                "too_little_to_learn",
                f"'{structure.name}' has only {count} voxels at a spacing of {plan.spacing[0]:g} mm, which are too few to "
                "train on.",
                "Use a finer --spacing, or do not rely on this structure.",
            )


def _outside_body(case: LabelledCase, structures: Sequence[Structure], plan: PreprocessingPlan) -> list[str]:
    """Return the names of structures of which more than a tenth lies outside the body's bounding box."""
    labels = case.labels.array[0]
    if labels.shape != case.scan.shape:
        return []
    box = tuple(slice(*ends) for ends in body_bounding_box(case.scan, hounsfield=plan.normalization.kind == "window"))
    size = max(structure.value for structure in structures) + 1
    total, inside = (np.bincount(part.ravel(), minlength=size) for part in (labels, labels[box]))
    return [s.name for s in structures if inside[s.value] < _MIN_BODY_FRACTION * total[s.value]]
