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


def build_atlases(
    cases: Sequence[TrainingCase], normalization: IntensityNormalization, *, report: Reporter
) -> tuple[Atlas, ...]:
    """Return the atlases of the first `MAX_ATLASES` training cases that can be registered.

    Args:
        cases: Training cases on the network's grid.
        normalization: Intensity normalization, which distinguishes CT and MRI.
        report: Receives a warning about a case that cannot be registered.
    """
    atlases: list[Atlas] = []
    for case in cases:
        if len(atlases) == MAX_ATLASES:
            break
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
            report.warning("atlas_left_out", f"{case.name}: {error.message}", "The network alone segments other scans.")
        else:
            atlases.append(atlas)
    return tuple(atlases)
