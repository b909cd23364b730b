"""Presets of fine-tuning: network, batch size and working grid for a machine, a set of scans and initial weights."""

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

_MAX_COARSENING = 1.5  # the pretraining voxel edge may be this many times finer than the scan's
_MIN_BODY_CROPS = 0.25  # volume of the smallest body in crops, for which the pretraining spacing is used


@dataclass(frozen=True)
class Preset:
    """Sizes for a kind of machine.

    Attributes:
        variant: Network variant, where no initial weights determine it.
        batch_size: Crops of a step. On two cores, twice as many steps of one crop gave better models than steps of two.
        voxels: Largest number of voxels of a body on the network's grid.
        spacing: Fixed spacing in mm along right, anterior and superior; None chooses it from the scans.
        from_scratch: True starts from random weights, unless an option names others.
        paper: True uses the paper's recipe instead of the default one, see `paper_recipe`.
    """

    variant: str
    batch_size: int
    voxels: float
    spacing: tuple[float, float, float] | None = None
    from_scratch: bool = False
    paper: bool = False


PRESETS = {
    "cpu": Preset("hi_end_mae_vit_tiny_8p", 1, 1.5e6),
    "cpu-slow": Preset("res_unet_small", 1, 6.5e5, from_scratch=True),
    "gpu": Preset("hi_end_mae_vit_small_8p", 4, 12e6),
    "paper-one-shot": Preset(
        "hi_end_mae_vit_large_12p", 4, float("inf"), spacing=(1.5, 1.5, 1.5), from_scratch=True, paper=True
    ),
}

SLOW_PRESET = "cpu-slow"
# Steps of the preset "cpu" below which "cpu-slow" gives the better model in the same time (Testing/Benchmarks/results.md).
MIN_STEPS = 800


def choose_preset(name: str, device: torch.device) -> Preset:
    """Return the preset called `name`; "auto" chooses by the device."""
    return PRESETS[preset_name(name, device)]


def preset_name(name: str, device: torch.device) -> str:
    """Return the name of a preset; "auto" stands for the one of the device."""
    if name == "auto":
        name = "gpu" if device.type == "cuda" else "cpu"
    return name


def choose_preprocessing(
    cases: Sequence[LabelledCase],
    *,
    preset: Preset,
    spacing: Sequence[float] | None = None,
    initial: PretrainedWeights | None = None,
) -> PreprocessingPlan:
    """Choose spacing and intensity normalization for labelled cases.

    The spacing is, in this order: the given one; that of the initial weights, if they are of a segmentation model, or if
    they were pretrained on scans of this kind and their spacing suits these scans; the preset's; otherwise isotropic, as
    fine as the scans are (median over the cases of the geometric mean of the voxel edges), but so coarse that no body has
    more voxels than the preset allows.

    Args:
        cases: Labelled cases in memory.
        preset: Sizes for this machine.
        spacing: Requested spacing in mm along right, anterior and superior.
        initial: Initial weights.
    """
    normalization = suggest_normalization(cases[0].scan)
    scan_edge_mm = float(np.median([np.prod(case.scan.spacing) ** (1 / 3) for case in cases]))
    body_mm3 = [_body_volume(case, hounsfield=normalization.kind == "window") for case in cases]
    if initial and initial.description:
        known = PreprocessingPlan.from_json(
            {key: initial.description.preparation[key] for key in ("spacing", "normalisation")}
        )
        if initial.is_segmentation:
            return known if spacing is None else replace(known, spacing=_spacing(spacing))
        crop_voxels = float(np.prod(initial.description.architecture["arguments"]["image_size"]))
        if (
            spacing is None
            and known.normalization.kind == normalization.kind
            and _suits(known.spacing, cases, scan_edge_mm=scan_edge_mm, body_mm3=min(body_mm3), crop_voxels=crop_voxels)
        ):
            return known
    if spacing is None:
        spacing = preset.spacing
    if spacing is None:
        edge = round(max(scan_edge_mm, (max(body_mm3) / preset.voxels) ** (1 / 3)), 2)
        spacing = (edge, edge, edge)
    return PreprocessingPlan(_spacing(spacing), normalization)


def _body_volume(case: LabelledCase, *, hounsfield: bool) -> float:
    """Return the volume of the body's bounding box in mm3."""
    box = body_bounding_box(case.scan, hounsfield=hounsfield)
    return float(np.prod([end - first for first, end in box])) * case.scan.geometry.voxel_ml * 1000


def _suits(
    spacing: Sequence[float],
    cases: Sequence[LabelledCase],
    *,
    scan_edge_mm: float,
    body_mm3: float,
    crop_voxels: float,
) -> bool:
    """Return True when the spacing (mm) of pretraining suits the scans.

    It does not where the scans are much coarser, where the smallest body fills less than a quarter of a crop, or where a
    structure would have too few voxels.
    """
    voxel_mm3 = float(np.prod(spacing))
    smallest_mm3 = float("inf")
    for case in cases:
        counts = np.bincount(case.labels.array.ravel())[sorted(case.values)]
        voxel_volumes = (float(count) * case.scan.geometry.voxel_ml * 1000 for count in counts)
        smallest_mm3 = min([smallest_mm3, *voxel_volumes])
    return (
        scan_edge_mm <= _MAX_COARSENING * voxel_mm3 ** (1 / 3)
        and body_mm3 > _MIN_BODY_CROPS * crop_voxels * voxel_mm3
        and smallest_mm3 >= MIN_VOXELS * voxel_mm3
    )


def _spacing(spacing: Sequence[float]) -> tuple[float, float, float]:
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
    """Choose the network to train, see `network_choice.choose_architecture`; the paper's preset trains UNETR."""
    return network_choice.choose_architecture(
        preset.variant, initial, classes=classes, channels=channels, network=network, variant=variant,
        vit_network="UNETR" if preset.paper else None,
    )  # fmt: skip
