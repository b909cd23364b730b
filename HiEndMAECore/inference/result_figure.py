"""One picture of a result: slices with contours of truth and prediction, the teacher, the loss, the Dice table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from HiEndMAECore.io.structure import Structure
from HiEndMAECore.io.volume import Volume
from HiEndMAECore.preprocessing.intensity import IntensityNormalization
from HiEndMAECore.preprocessing.pipeline import PreprocessingPlan, preprocess, preprocess_labels
from HiEndMAECore.reporting.figures import draw_result


def draw_result_figure(
    path: Path,
    *,
    scan: Volume,
    prediction: Volume,
    truth: Volume | None,
    teacher: tuple[Volume, Volume],
    normalization: IntensityNormalization,
    structures: Sequence[Structure],
    losses: Sequence[tuple[int, float]],
    scores: Mapping[str, float | None],
    title: str,
) -> None:
    """Draw `path` (PNG). All are shown upright and isotropic, at the scan's own mean voxel edge."""
    edge = float(np.prod(scan.spacing) ** (1 / 3))
    plan = PreprocessingPlan((edge, edge, edge), normalization)
    shown, taught = preprocess(scan, plan), preprocess(teacher[0], plan)
    draw_result(
        path,
        image=shown.array[0],
        spacing=plan.spacing,
        truth=None if truth is None else preprocess_labels(truth, shown),
        prediction=preprocess_labels(prediction, shown),
        structures=structures,
        losses=losses,
        scores=scores,
        title=title,
        teacher=(taught.array[0], preprocess_labels(teacher[1], taught)),
        window=(0.0, 1.0),
    )
