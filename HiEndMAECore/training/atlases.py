"""The atlases that a model keeps of its labelled scans, built from the training cases."""

from __future__ import annotations

from collections.abc import Sequence

from HiEndMAECore.errors import InputError
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
    cases: Sequence[TrainingCase], normalization: IntensityNormalization, *, report: Reporter
) -> tuple[Atlas, ...]:
    """Return the atlases of the first `MAX_ATLASES` training cases that can have one.

    What a case does not label is background in its atlas. Therefore a case with many ignored voxels, or with an unknown
    structure, has none: results would lack what nobody labelled in it.

    Args:
        cases: Training cases on the network's grid.
        normalization: Intensity normalization; a window of HU means CT, every other kind MRI.
        report: Receives a warning about a case that cannot have an atlas.
    """
    atlases: list[Atlas] = []
    for case in cases:
        if len(atlases) == MAX_ATLASES:
            break
        if reason := _partly_labelled(case):
            report.warning("atlas_left_out", f"{case.name}: {reason}", _ADVICE)
            continue
        assert case.grid is not None
        h, w, d = case.classes.shape
        try:
            atlas = build_atlas(
                RegistrationImage(case.image[0].cpu(), case.grid.affine),
                case.classes.clamp(min=0),
                Grid((h, w, d), case.grid.affine),
                name=case.name,
                modality="ct" if normalization.kind == "window" else "mri",
            )
        except InputError as error:
            report.warning("atlas_left_out", f"{case.name}: {error.message}", _ADVICE)
        else:
            atlases.append(atlas)
    return tuple(atlases)


def _partly_labelled(case: TrainingCase) -> str:
    """Return why the labels of a case are too incomplete for an atlas, in a sentence, or an empty text."""
    if case.ignored_share > _MAX_IGNORED_SHARE:
        return f"{case.ignored_share:.0%} of its voxels are ignored, and an atlas would call them background."
    if case.unknown:
        return f"{len(case.unknown)} structure(s) are unknown in it, and an atlas would call them background."
    return ""
