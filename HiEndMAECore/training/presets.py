"""From labelled scans on disk to what the fine-tuning loop holds: structures, grid, and the presets for a machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from HiEndMAECore.data.labelled_cases import LabelledCase
from HiEndMAECore.models.pretrained import PretrainedWeights
from HiEndMAECore.preprocessing.cropping import body_bounding_box
from HiEndMAECore.preprocessing.intensity import suggest_normalization
from HiEndMAECore.preprocessing.pipeline import PreprocessingPlan

from . import network_choice
from .training_cases import MIN_VOXELS


@dataclass(frozen=True)
class Preset:
    """What suits a machine: the variant where no starting weights decide it, crops a batch, and how many voxels a body
    may have on the network's grid; or its spacing (mm along R, A, S) whatever the body. paper: the paper's recipe instead
    of ours, see `training.paper`. On two cores, twice the steps of one crop beat steps of two crops.
    """

    variant: str
    batch_size: int
    voxels: float
    spacing: tuple[float, float, float] | None = None
    paper: bool = False


PRESETS = {
    "cpu": Preset("hi_end_mae_vit_tiny_8p", 1, 1.5e6),
    "gpu": Preset("hi_end_mae_vit_small_8p", 4, 12e6),
    "paper-one-shot": Preset("hi_end_mae_vit_large_12p", 4, float("inf"), spacing=(1.5, 1.5, 1.5), paper=True),
}


def choose_preset(name: str, device: torch.device) -> Preset:
    """The preset called `name`; 'auto' chooses by the device."""
    if name == "auto":
        name = "gpu" if device.type == "cuda" else "cpu"
    return PRESETS[name]


def choose_preprocessing(
    cases: Sequence[LabelledCase],
    *,
    preset: Preset,
    spacing: Sequence[float] | None = None,
    initial: PretrainedWeights | None = None,
) -> PreprocessingPlan:
    """Spacing and intensities for these scans.

    spacing, mm along R, A, S: what is given; else that of the weights, where they have learned to segment, or were
    pretrained on scans of this kind and it suits these (`_suits`); else isotropic, as fine as the scans themselves allow
    (geometric mean of the voxel edges), but so coarse that no body has more voxels than the preset's.
    """
    normalization = suggest_normalization(cases[0].scan)
    finest = float(np.median([np.prod(case.scan.spacing) ** (1 / 3) for case in cases]))
    bodies = []
    for case in cases:
        box = body_bounding_box(case.scan, hounsfield=normalization.kind == "window")
        bodies.append(float(np.prod([end - first for first, end in box])) * case.scan.geometry.voxel_ml * 1000)
    if initial and initial.description:
        known = PreprocessingPlan.from_json(
            {key: initial.description.preparation[key] for key in ("spacing", "normalisation")}
        )
        if initial.is_segmentation:
            return known if spacing is None else replace(known, spacing=_three(spacing))
        crop = float(np.prod(initial.description.architecture["arguments"]["image_size"]))
        same_kind = known.normalization.kind == normalization.kind
        if spacing is None and same_kind and _suits(known.spacing, cases, finest=finest, body=min(bodies), crop=crop):
            return known
    if spacing is None:
        spacing = preset.spacing
    if spacing is None:
        edge = round(max(finest, (max(bodies) / preset.voxels) ** (1 / 3)), 2)
        spacing = (edge, edge, edge)
    return PreprocessingPlan(_three(spacing), normalization)


def _suits(spacing: Sequence[float], cases: Sequence[LabelledCase], *, finest: float, body: float, crop: float) -> bool:
    """May scans be seen at the `spacing` an encoder was pretrained at? Not where they are far coarser themselves (finest,
    mm), where their body (mm3) fills less than a quarter of a crop (voxels), or where a structure would all but vanish."""
    voxel = float(np.prod(spacing))
    smallest = float("inf")
    for case in cases:
        counts = np.bincount(case.labels.array.ravel())[1:]
        smallest = min([smallest, *(float(count) * case.scan.geometry.voxel_ml * 1000 for count in counts[counts > 0])])
    return finest <= 1.5 * voxel ** (1 / 3) and 4 * body > crop * voxel and smallest >= MIN_VOXELS * voxel


def _three(spacing: Sequence[float]) -> tuple[float, float, float]:
    r, a, s = spacing
    return r, a, s


def choose_architecture(
    preset: Preset,
    initial: PretrainedWeights | None,
    *,
    classes: int,
    channels: int,
    network: str | None = None,
    variant: str | None = None,
) -> dict[str, Any]:
    """Return the architecture to train, see `network_choice.choose_architecture`; the paper's preset uses UNETR."""
    return network_choice.choose_architecture(
        preset.variant, initial, classes=classes, channels=channels, network=network, variant=variant,
        vit_network="UNETR" if preset.paper else None,
    )  # fmt: skip
