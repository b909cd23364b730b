"""Registration of a model's atlases to a scan: the label prior, and the scan at the size of the labelled patient.

A network that has seen one patient is not used to other sizes. The affine part of the registration gives the size along each
axis, and the scan is resampled as if its patient had that of the labelled one. The propagated labels are an independent
opinion: the result is the mean of both, see `registration.label_prior`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from HiEndMAECore.errors import InputError
from HiEndMAECore.preprocessing.intensity import IntensityNormalization
from HiEndMAECore.preprocessing.pipeline import PreprocessedScan
from HiEndMAECore.registration.atlas import Atlas, register_atlas
from HiEndMAECore.registration.features import RegistrationImage
from HiEndMAECore.registration.grids import Grid, resample_parallel
from HiEndMAECore.registration.label_prior import LabelPrior, PropagatedLabels
from HiEndMAECore.registration.registration import Registration
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.runtime.devices import sampling_device

MAX_ATLASES = 3  # that are registered to one scan; each takes as long
# Of the propagated labels beside the network, chosen on the `tune` cases, see Testing/Benchmarks/results.md.
PRIOR_WEIGHT = 0.6
PRIOR_WEIGHT_WHERE_CERTAIN = 0.45  # where the network is certain of a structure
_MIN_RESCALING = 0.02  # sizes that differ by less are not changed


@dataclass(frozen=True, eq=False)
class AtlasMatch:
    """How the atlases of a model match a scan.

    Attributes:
        scan: The scan at the size of the labelled patient; unchanged where no registration can be used.
        prior: The prior on the grid of `scan`, or None.
        registrations: One for each atlas, in their order; None where the scan cannot be registered.
        reasons: Why there is no prior, in sentences; empty where there is one.
    """

    scan: PreprocessedScan
    prior: LabelPrior | None
    registrations: tuple[Registration | None, ...]
    reasons: tuple[str, ...]

    def to_json(self) -> list[dict[str, Any]]:
        """Return cost, overlap and reasons of each registration, as a report stores them."""
        return [
            {"cost": round(r.cost, 4), "body_overlap": round(r.body_overlap, 4), "reasons": list(r.reasons)}
            if r
            else {}
            for r in self.registrations
        ]


def match_atlases(
    atlases: Sequence[Atlas],
    scan: PreprocessedScan,
    *,
    normalization: IntensityNormalization = IntensityNormalization(),
    device: torch.device,
    report: Reporter,
) -> AtlasMatch:
    """Register the atlases of a model to a scan.

    Args:
        atlases: The atlases; the first `MAX_ATLASES` are used.
        scan: The scan on the network's grid. Its first channel is registered.
        normalization: Intensity normalization of the scan, which is that of the model.
        device: Device of the network; on Apple's graphics the CPU registers (`sampling_device`).
        report: Receives progress and cancels.

    Returns:
        The match; without a prior if no registration can be used.

    Raises:
        Cancelled: The run is to stop.
    """
    if not atlases:
        return AtlasMatch(scan, None, (), ())
    device = sampling_device(device)
    channel = torch.from_numpy(scan.array[0]).to(device)
    image = RegistrationImage.of_normalized(channel, scan.affine, normalization)
    registrations: list[Registration | None] = []
    reasons: list[str] = []
    for atlas in atlases[:MAX_ATLASES]:
        try:
            registration = register_atlas(atlas, image, report=report)
        except InputError as error:  # a single slice, or a scan of air
            registrations.append(None)
            reasons.append(error.message)
        else:
            registrations.append(registration)
            reasons += registration.reasons
    usable = [(atlas, r) for atlas, r in zip(atlases, registrations) if r is not None and not r.failed]
    if not usable:
        return AtlasMatch(scan, None, tuple(registrations), tuple(dict.fromkeys(reasons)))
    best = min((registration for _, registration in usable), key=lambda registration: registration.cost)
    directions = scan.affine[:3, :3] / np.linalg.norm(scan.affine[:3, :3], axis=0)
    rescaled = rescale_scan(scan, np.linalg.norm(best.affine.affine[:3, :3] @ directions, axis=0))
    propagated = tuple(
        PropagatedLabels(atlas.labels.to(device), atlas.label_grid, registration.transform)
        for atlas, registration in usable
    )
    prior = LabelPrior(propagated, Grid(rescaled.shape, rescaled.affine), PRIOR_WEIGHT, PRIOR_WEIGHT_WHERE_CERTAIN)
    return AtlasMatch(rescaled, prior, tuple(registrations), ())


def registration_warning(match: AtlasMatch) -> dict[str, str]:
    """Return the warning about a match without a prior: {"code", "message", "advice"}."""
    return {
        "code": "registration_failed",
        "message": f"The labelled scan could not be registered to it. {' '.join(match.reasons)}",
        "advice": "The network alone segmented it. Check the result: the scan may show another part of the body.",
    }


def rescale_scan(scan: PreprocessedScan, factors: Sequence[float] | np.ndarray) -> PreprocessedScan:
    """Return a scan on a grid whose voxels show the patient `factors` times larger along each axis.

    Args:
        scan: The scan on the network's grid.
        factors: Size of the labelled patient over that of this one, along each axis of the grid.
    """
    factors = np.asarray(factors, dtype=np.float64)
    if np.abs(np.log(factors)).max() < _MIN_RESCALING:
        return scan
    source = Grid(scan.shape, np.asarray(scan.affine, dtype=np.float64))
    shape = np.maximum(1, np.ceil(np.array(scan.shape) * factors - 1e-6)).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = source.affine[:3, :3] / factors
    affine[:3, 3] = source.center - affine[:3, :3] @ ((shape - 1) / 2)
    target = Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)
    channels = [resample_parallel(torch.from_numpy(channel), source, target).numpy() for channel in scan.array]
    return PreprocessedScan(affine=affine, original=scan.original, array=np.stack(channels))
