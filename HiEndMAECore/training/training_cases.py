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
IGNORED = -1  # class of voxels that nobody judged: they count in no loss and no score
_MIN_BODY_FRACTION = 0.9  # of a structure's voxels must lie in the body's bounding box


@dataclass(frozen=True)
class TrainingCase:
    """One labelled scan on the network's grid.

    Attributes:
        name: Name of the case.
        image: (C, H, W, D) float32 in [0, 1].
        classes: (H, W, D) int16; 0 is the background, i + 1 the model's i-th structure, and `IGNORED` an ignored voxel.
        grid: Position of the network's grid in the original scan, needed to resample a result to the original grid.
        unknown: Classes that the case does not label. Its background may be one of them.
    """

    name: str
    image: Tensor
    classes: Tensor
    grid: NetworkGrid | None = None
    unknown: tuple[int, ...] = ()

    @property
    def ignored_share(self) -> float:
        """The share of ignored voxels, 0 to 1."""
        return float((self.classes < 0).float().mean())

    def to(self, device: torch.device) -> TrainingCase:
        """Return the case on `device`."""
        return replace(self, image=self.image.to(device), classes=self.classes.to(device))


def preprocess_training_cases(
    cases: Sequence[LabelledCase],
    plan: PreprocessingPlan,
    structures: Sequence[Structure],
    *,
    unknown: Sequence[tuple[int, ...]] | None = None,
    report: Reporter,
) -> list[TrainingCase]:
    """Preprocess labelled cases and turn their label values into classes 1 to K, in the order of `structures`.

    Args:
        cases: Labelled cases in memory.
        plan: Spacing and intensities of the network's grid.
        structures: Structures of the model.
        unknown: Classes of each case that it does not label and whose absence is not known; None: no case has any.
        report: Receives warnings about label values that the model does not have, structures that a case does not label,
            structures outside the body, and structures with too few voxels at this spacing; and the share of ignored voxels.

    Raises:
        InputError: `labels_too_small`, when no labelled voxel is left at this spacing.
    """
    training_cases = []
    counts = np.zeros(len(structures), dtype=int)
    values = [structure.value for structure in structures]
    for case, unknown_classes in zip(cases, unknown or [()] * len(cases)):
        _warn_about_labels(case, structures, unknown_classes, plan, report)
        preprocessed = preprocess(case.scan, plan)
        kept = values if case.ignore is None else [*values, case.ignore]
        labels = preprocess_labels(case.labels, preprocessed, values=kept)
        classes = np.zeros(labels.shape, dtype=np.int16)
        for index, value in enumerate(values):
            if value == case.ignore:  # chosen for this case alone; it may be that of a structure that the case lacks
                continue
            mask = labels == value
            classes[mask] = index + 1
            counts[index] += int(mask.sum())
        if case.ignore is not None:
            classes[labels == case.ignore] = IGNORED
        image = torch.from_numpy(preprocessed.array)
        training_case = TrainingCase(
            case.scan.name, image, torch.from_numpy(classes), preprocessed, tuple(unknown_classes)
        )
        if share := training_case.ignored_share:
            report.info(f"{case.scan.name}: {share:.0%} of the voxels are ignored.")
        training_cases.append(training_case)
    _check_voxel_counts(counts, plan, structures, report)
    return training_cases


def _warn_about_labels(
    case: LabelledCase,
    structures: Sequence[Structure],
    unknown: Sequence[int],
    plan: PreprocessingPlan,
    report: Reporter,
) -> None:
    """Warn about label values of a case that are not the model's, absent, or outside the body."""
    if others := sorted(case.values - {structure.value for structure in structures}):
        report.warning(
            "labels_unknown",
            f"{case.scan.name} has the label values {', '.join(map(str, others))}, which the model does not have. "
            "They are trained as background.",
            "To train new structures, start from the model with --init instead of --improve.",
        )
    absent = {index for index, structure in enumerate(structures, start=1) if structure.value not in case.values}
    if background := [structures[index - 1].name for index in sorted(absent - set(unknown))]:
        report.warning(
            "structures_not_drawn",
            f"{case.scan.name} has no {', '.join(background)}. If the scan shows them, the model is trained to call them "
            "background.",
            "Label them in this scan, or leave the scan out.",
        )
    if unknown:
        report.warning(
            "structures_not_drawn",
            f"{case.scan.name} has no {', '.join(structures[index - 1].name for index in unknown)}, which other cases "
            "label: they are unknown there, and its background may be one of them.",
            "If the scans without them do not show them, train with --absent-is-background.",
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
    return [
        s.name for s in structures if s.value in case.values and inside[s.value] < _MIN_BODY_FRACTION * total[s.value]
    ]
