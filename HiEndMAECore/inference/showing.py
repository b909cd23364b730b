"""One picture of a result: slices with contours of truth and prediction, the teacher, the loss, the Dice table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from HiEndMAECore.reporting.figures import draw_result
from HiEndMAECore.volumes.preparation import Normalisation, PreparationPlan, prepare, prepare_labels
from HiEndMAECore.volumes.volume import Structure, Volume


def show_result(
    path: Path,
    *,
    scan: Volume,
    prediction: Volume,
    truth: Volume | None,
    teacher: tuple[Volume, Volume],
    normalisation: Normalisation,
    structures: Sequence[Structure],
    losses: Sequence[tuple[int, float]],
    scores: Mapping[str, float | None],
    title: str,
) -> None:
    """Draw `path` (PNG). All are shown upright and isotropic, at the scan's own mean voxel edge."""
    edge = float(np.prod(scan.spacing) ** (1 / 3))
    plan = PreparationPlan((edge, edge, edge), normalisation)
    shown, taught = prepare(scan, plan), prepare(teacher[0], plan)
    draw_result(
        path,
        image=shown.array[0],
        spacing=plan.spacing,
        truth=None if truth is None else prepare_labels(truth, shown),
        prediction=prepare_labels(prediction, shown),
        structures=structures,
        losses=losses,
        scores=scores,
        title=title,
        teacher=(taught.array[0], prepare_labels(teacher[1], taught)),
        window=(0.0, 1.0),
    )
