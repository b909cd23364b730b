"""Registration of one scan to another: what is done in which order, and whether the result can be used."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from HiEndMAECore.reporting.reporter import Reporter

from .features import Features, Modality, RegistrationImage, extract_features
from .refine import refine
from .search import Level, Pair, discrete_search, fit_affine, matching_cost, starts_along_body, warp_features
from .transform import Transform


@dataclass(frozen=True)
class RegistrationSettings:
    """Settings of the registration; lengths are in voxels of the working grid.

    Attributes:
        spacing: Largest spacing of the working grid in mm.
    """

    spacing: float = 4.0
    max_voxels: int = 1_500_000
    dilation: int = 2
    intensity_weight: float = 1.0
    body_weight: float = 1 / 12
    start_step: int = 12
    start_level: Level = Level(2, 2, 3)
    affine_rounds: int = 2
    levels: tuple[Level, ...] = (Level(2, 2, 4), Level(2, 1, 3), Level(1, 2, 2))
    steps: int = 30
    learning_rate: float = 0.5
    regularization: float = 0.1
    subset: int = 2


@dataclass(frozen=True, eq=False)
class Registration:
    """The result of a registration."""

    transform: Transform
    cost: float
    start_costs: tuple[float, ...]
    body_overlap: float
    folded_share: float
    reasons: tuple[str, ...] = ()
    stages: dict = field(default_factory=dict)


def register(
    moving: RegistrationImage | Features,
    fixed: RegistrationImage | Features,
    *,
    modality: Modality,
    report: Reporter,
    settings: RegistrationSettings = RegistrationSettings(),
) -> Registration:
    """Register."""
    stages = {}
    with torch.no_grad():
        f, m = (
            extract_features(s, modality=modality, spacing=settings.spacing, dilation=settings.dilation)
            for s in (fixed, moving)
        )
        weights = torch.ones(f.channels.shape[0])
        weights[:12] /= 12
        if modality == "ct":
            weights[12] = settings.intensity_weight
        weights[-1] = settings.body_weight
        pair = Pair.of(f, m, weights)
        device = f.channels.device
        level = settings.start_level
        coarse = pair.pooled(level.pooling)
        best, costs = None, []
        step = settings.start_step * settings.spacing
        for affine in starts_along_body(coarse.fixed, coarse.moving, step=step):
            t = Transform.of_affine(affine, coarse.fixed.grid, device)
            t = discrete_search(coarse, t, level)
            costs.append(matching_cost(coarse, t))
            if best is None or costs[-1] < best[0]:
                best = (costs[-1], t)
        t = best[1]
        for r in range(settings.affine_rounds):
            affine = fit_affine(t, coarse.fixed.body)
            t = Transform.of_affine(affine, coarse.fixed.grid, device)
            if r + 1 < settings.affine_rounds:
                t = discrete_search(coarse, t, level)
        t = Transform.of_affine(affine, pair.fixed.grid, device)
        stages["affine"] = t
        for level in settings.levels:
            t = discrete_search(pair.pooled(level.pooling), t, level)
        stages["discrete"] = t
    if settings.steps:
        t = refine(
            pair,
            t,
            steps=settings.steps,
            learning_rate=settings.learning_rate,
            regularization=settings.regularization,
            subset=settings.subset,
        )
    with torch.no_grad():
        cost = matching_cost(pair, t)
        warped, present = warp_features(pair.moving, t, pair.fixed.grid)
        b0, b1 = pair.fixed.body > 0, (warped[-1] > 0.5 * warped[-1].max()) & present
        overlap = float(2 * (b0 & b1).sum() / (b0.sum() + b1.sum()))
    return Registration(t, cost, tuple(costs), overlap, t.folded_share(), stages=stages)
