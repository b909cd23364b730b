"""The atlases that a model keeps of its labelled scans, built from the training cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from HiEndMAECore.data.model_atlases import read_atlases
from HiEndMAECore.errors import InputError
from HiEndMAECore.io.structure import Structure
from HiEndMAECore.preprocessing.intensity import IntensityNormalization
from HiEndMAECore.registration.atlas import Atlas, build_atlas
from HiEndMAECore.registration.features import RegistrationImage
from HiEndMAECore.registration.grids import Grid
from HiEndMAECore.reporting.reporter import Reporter

from .training_cases import TrainingCase

MAX_ATLASES = 3  # each of them is registered to every scan that is segmented
_MAX_IGNORED_SHARE = 0.05  # of the voxels of a case with an atlas
_ADVICE = "The model keeps no atlas of it: other scans are not registered to it."


def build_atlases(
    cases: Sequence[TrainingCase],
    normalization: IntensityNormalization,
    *,
    unlabelled: Sequence[Structure] = (),
    improved: Path | None = None,
    report: Reporter,
) -> tuple[Atlas, ...]:
    """Return the atlases of the first `MAX_ATLASES` training cases that can have one.

    What a case does not label is background in its atlas. Therefore a case with many ignored voxels, or with an unknown
    structure, has none: results would lack what nobody labelled in it. The same holds for a structure of the improved model
    that no case labels.

    Args:
        cases: Training cases on the network's grid.
        normalization: Intensity normalization; a window of HU means CT, every other kind MRI.
        unlabelled: Structures of the model that no case labels.
        improved: Model whose training continues, with the same structures: where no case can have an atlas, its atlases
            are kept.
        report: Receives a warning about a case that cannot have an atlas.
    """
    atlases: list[Atlas] = []
    for case in cases:
        if len(atlases) == MAX_ATLASES:
            break
        if reason := _partly_labelled(case, unlabelled):
            report.warning("atlas_left_out", f"{case.name}: {reason}", _ADVICE)
            continue
        assert case.grid is not None
        h, w, d = case.classes.shape
        try:
            atlas = build_atlas(
                RegistrationImage.of_normalized(case.image[0].cpu(), case.grid.affine, normalization),
                case.classes.clamp(min=0),
                Grid((h, w, d), case.grid.affine),
                name=case.name,
                modality="ct" if normalization.kind == "window" else "mri",
            )
        except InputError as error:
            report.warning("atlas_left_out", f"{case.name}: {error.message}", _ADVICE)
        else:
            atlases.append(atlas)
    if atlases or improved is None:
        return tuple(atlases)
    try:
        return read_atlases(improved)
    except InputError as error:  # the training is done, and the model can do without
        report.warning("atlas_left_out", error.message, "The new model keeps no atlas.")
        return ()


def _partly_labelled(case: TrainingCase, unlabelled: Sequence[Structure]) -> str:
    """Return why the labels of a case are too incomplete for an atlas, in a sentence, or an empty text."""
    if case.ignored_share > _MAX_IGNORED_SHARE:
        return f"{case.ignored_share:.0%} of its voxels are ignored, and an atlas would call them background."
    if unlabelled:
        return f"no case labels {', '.join(s.name for s in unlabelled)}, which an atlas would call background."
    if case.unknown:
        return f"{len(case.unknown)} structure(s) are unknown in it, and an atlas would call them background."
    return ""
