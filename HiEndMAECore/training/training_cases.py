"""The fine-tuning loop: one to a few labelled scans, held on the device, and a clock (paper section 4.1, ours in the rest).

No workers and no disk: every crop is cut out of the whole scan with its rotation, scaling and bend in one interpolation.
Step `i` draws from generators keyed by (seed, i), so that a resumed run goes on as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from HiEndMAECore.data.labelled_cases import LabelledCase
from HiEndMAECore.errors import InputError
from HiEndMAECore.io.structure import Structure
from HiEndMAECore.preprocessing.cropping import body_bounding_box
from HiEndMAECore.preprocessing.pipeline import NetworkGrid, PreprocessingPlan, preprocess, preprocess_labels
from HiEndMAECore.reporting.reporter import Reporter


@dataclass(frozen=True)
class TrainingCase:
    """One labelled scan on the network's grid: image (C, H, W, D) float32 in [0, 1]; classes (H, W, D) int16, 0 is
    background and i + 1 the model's i-th structure. grid: where it lies, for whoever brings a result home."""

    name: str
    image: Tensor
    classes: Tensor
    grid: NetworkGrid | None = None


MIN_VOXELS = 20  # on the network's grid: fewer are too little to learn from


def preprocess_training_cases(
    cases: Sequence[LabelledCase], plan: PreprocessingPlan, structures: Sequence[Structure], *, report: Reporter
) -> list[TrainingCase]:
    """The cases on the network's grid, label values turned into classes 1 to K in the order of `structures`.

    Warns of structures with next to no voxel left at this spacing, outside of the body, or missing from one of the scans;
    raises `InputError` when none is left at all.
    """
    scans = []
    counts = np.zeros(len(structures), dtype=int)
    values = [structure.value for structure in structures]
    for case in cases:
        prepared = preprocess(case.scan, plan)
        labels = preprocess_labels(case.labels, prepared, values=values)
        drawn = {int(value) for value in np.unique(case.labels.array)}
        if unknown := sorted(drawn - {0, *values}):
            report.warning(
                "labels_unknown",
                f"{case.scan.name} labels {', '.join(map(str, unknown))}, which the model does not know: left out.",
                "To learn new structures, start from the model with --init instead of --improve.",
            )
        if absent := [structure.name for structure in structures if structure.value not in drawn]:
            report.warning(
                "structures_not_drawn",
                f"{case.scan.name} has no {', '.join(absent)}: where it shows them, it teaches that they are background.",
                "Label them there, or leave the scan out.",
            )
        if lost := _outside_the_body(case, structures, plan):
            report.warning(
                "labels_outside_body",
                f"In {case.scan.name} more than a tenth of {', '.join(lost)} lies outside of what was taken for the body.",
                "A part that lies apart, such as an arm, is not learned: crop the scan to it.",
            )
        classes = np.zeros(labels.shape, dtype=np.int16)
        for index, value in enumerate(values):
            found = labels == value
            classes[found] = index + 1
            counts[index] += int(found.sum())
        scans.append(
            TrainingCase(case.scan.name, torch.from_numpy(prepared.array), torch.from_numpy(classes), prepared)
        )
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
                f"'{structure.name}' has only {count} voxels at a spacing of {plan.spacing[0]:g} mm: too little to learn from.",
                "Use a finer --spacing, or expect nothing of this structure.",
            )
    return scans


def _outside_the_body(case: LabelledCase, structures: Sequence[Structure], plan: PreprocessingPlan) -> list[str]:
    """Names of structures of which more than a tenth lies outside of the box that is learned from."""
    labels = case.labels.array[0]
    if labels.shape != case.scan.shape:
        return []
    box = tuple(slice(*ends) for ends in body_bounding_box(case.scan, hounsfield=plan.normalization.kind == "window"))
    size = max(structure.value for structure in structures) + 1
    whole, kept = (np.bincount(part.ravel(), minlength=size) for part in (labels, labels[box]))
    return [s.name for s in structures if kept[s.value] < 0.9 * whole[s.value]]
