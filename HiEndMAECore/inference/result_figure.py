"""The figure of a result: slices with contours of reference and prediction, the training case, the loss, and Dice."""

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
    reference: Volume | None,
    training_case: tuple[Volume, Volume],
    normalization: IntensityNormalization,
    structures: Sequence[Structure],
    losses: Sequence[tuple[int, float]],
    scores: Mapping[str, float | None],
    title: str,
) -> None:
    """Draw one result to `path` (PNG), along the patient's axes and with isotropic voxels.

    Args:
        path: File to write.
        scan: The segmented scan; the figure has its mean voxel edge.
        prediction: Label map of the model.
        reference: Label map to compare with, or None.
        training_case: Scan and label map that the model was trained on.
        normalization: Intensity normalization of the model.
        structures: Structures to draw.
        losses: (step, loss) of the fine-tuning.
        scores: Dice by structure name; None where the reference lacks the structure.
        title: Title of the figure.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    edge = float(np.prod(scan.spacing) ** (1 / 3))
    plan = PreprocessingPlan((edge, edge, edge), normalization)
    result_scan, training_scan = preprocess(scan, plan), preprocess(training_case[0], plan)
    draw_result(
        path,
        image=result_scan.array[0],
        spacing=plan.spacing,
        reference=None if reference is None else preprocess_labels(reference, result_scan),
        prediction=preprocess_labels(prediction, result_scan),
        structures=structures,
        losses=losses,
        scores=scores,
        title=title,
        training_case=(training_scan.array[0], preprocess_labels(training_case[1], training_scan)),
        window=(0.0, 1.0),
    )
