"""Registration of one scan to another, and whether the result can be used.

Usage:

    result = register(labelled_scan, other_scan, modality="ct", report=report)
    if not result.reasons:
        labels = result.transform.warp_labels(label_map, label_grid, other_grid)

The labelled scan is the moving one. The steps: the best of several starts along the body; the affine map, fitted to the field
found from there; discrete searches on ever finer grids; some steps of Adam. The same inputs give the same result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from HiEndMAECore.reporting.reporter import Reporter

from .features import MIND_CHANNELS, Features, Modality, RegistrationImage, extract_features
from .grids import Grid
from .refine import refine
from .search import Level, Pair, discrete_search, fit_affine, matching_cost, starts_along_body, warp_features
from .transform import Transform

_STAGE = "registration"
_START_LEVEL = Level(pooling=2, cell=2, radius=3, coupling=0.3)
_LEVELS = (
    Level(pooling=2, cell=2, radius=4, coupling=0.3),
    Level(pooling=2, cell=1, radius=3, coupling=0.3),
    Level(pooling=1, cell=2, radius=2, coupling=0.3),
)
_SCALE_LIMITS = (0.5, 2.0)
_MIN_BODY_OVERLAP = 0.6
_MAX_COST = 0.8  # 1 is the cost by chance
_MAX_FOLDED_SHARE = 0.15
_SMALL_EXTENT_MM = 120.0  # scans whose middle extent is smaller get a finer working grid


@dataclass(frozen=True)
class RegistrationSettings:
    """Settings of the registration. Lengths are in voxels of the working grid where nothing else is said.

    Attributes:
        spacing: Spacing of the working grid in mm; small scans get a finer one, very large ones a coarser one.
        max_voxels: Largest size of a working grid, which bounds the memory.
        dilation: Distance of the patches of MIND-SSC.
        tissue_weight: Weight of the squared difference of the tissue class; that of the mean over MIND-SSC is 1.
        body_weight: Weight of the squared difference of the bodies' shares.
        start_step: Distance of the starts along the body.
        start_level: The discrete search from each start.
        affine_rounds: Times that a search and the fit of the affine map alternate.
        levels: The discrete searches after the affine map.
        steps: Steps of Adam; 0 leaves the refinement out.
        learning_rate: Of Adam.
        regularization: Weight of the diffusion regularizer.
        subset: Each step of Adam compares one in `subset` body voxels.
    """

    spacing: float = 4.0
    max_voxels: int = 1_100_000
    dilation: int = 2
    tissue_weight: float = 1.0
    body_weight: float = 1 / 12
    start_step: int = 12
    start_level: Level = _START_LEVEL
    affine_rounds: int = 4
    levels: tuple[Level, ...] = _LEVELS
    steps: int = 30
    learning_rate: float = 0.5
    regularization: float = 0.1
    subset: int = 4


@dataclass(frozen=True, eq=False)
class Registration:
    """The result of a registration.

    Attributes:
        transform: From the fixed scan to the moving one.
        affine: The transform before the displacements were searched, without them.
        cost: Mean difference of the features over both bodies, as a share of that of random pairs of voxels: 0 is
            equality, 1 is chance.
        start_costs: The same after a coarse search from each start.
        body_overlap: Dice of both bodies where both scans reach.
        folded_share: Share of voxels in which the transform folds.
        reasons: Why the result must not be used, in sentences; empty where it can be used.
    """

    transform: Transform
    affine: Transform
    cost: float
    start_costs: tuple[float, ...]
    body_overlap: float
    folded_share: float
    reasons: tuple[str, ...]

    @property
    def failed(self) -> bool:
        """Return whether the result must not be used."""
        return bool(self.reasons)


@torch.inference_mode(False)
def register(
    moving: RegistrationImage | Features,
    fixed: RegistrationImage | Features,
    *,
    modality: Modality,
    report: Reporter,
    settings: RegistrationSettings = RegistrationSettings(),
) -> Registration:
    """Register the labelled scan to another scan, also where the caller computes without gradients.

    Args:
        moving: The labelled scan, or its features at the spacing of `working_spacing`, in 8 or 32 bits.
        fixed: The other scan, or its features.
        modality: "ct" also compares the tissue class, "mri" does not.
        report: Receives progress and cancels.
        settings: Settings.

    Returns:
        The transform from the fixed to the moving scan, and how far to trust it.

    Raises:
        InputError: A scan is a single slice, or nearly so, or shows nothing.
        Cancelled: The run is to stop.
    """
    with torch.no_grad():
        pair = make_pair(moving, fixed, modality=modality, settings=settings)
        search = _Progress(report, pair, settings)
        start, costs = _best_start(pair, settings, search.done)
        affine = Transform.of_affine(_refitted_affine(pair, start, settings), pair.fixed.grid, pair.device)
        transform = affine
        for level in settings.levels:
            transform = discrete_search(pair.pooled(level.pooling), transform, level)
            search.done()
    if settings.steps:
        with torch.enable_grad():
            transform = refine(
                pair,
                transform,
                steps=settings.steps,
                learning_rate=settings.learning_rate,
                regularization=settings.regularization,
                subset=settings.subset,
                on_step=search.done,
            )
    with torch.no_grad():
        cost, overlap = matching_cost(pair, transform), _body_overlap(pair, transform)
        folded = transform.folded_share()
        reasons = _reasons(affine.affine, cost, costs, overlap, folded)
        return Registration(transform, affine, cost, tuple(costs), overlap, folded, reasons)


def make_pair(
    moving: RegistrationImage | Features,
    fixed: RegistrationImage | Features,
    *,
    modality: Modality,
    settings: RegistrationSettings = RegistrationSettings(),
) -> Pair:
    """Return the weighted features of both scans on working grids of one spacing."""
    spacing = working_spacing(moving.grid, fixed.grid, settings)
    for scan in (moving, fixed):
        if isinstance(scan, Features):
            spacing = float(scan.grid.spacing.mean())  # features cannot be made finer
    fixed, moving = (
        scan
        if isinstance(scan, Features)
        else extract_features(scan, modality=modality, spacing=spacing, dilation=settings.dilation)
        for scan in (fixed, moving)
    )
    return Pair.of(fixed, moving, _channel_weights(modality, settings))


def working_spacing(moving: Grid, fixed: Grid, settings: RegistrationSettings = RegistrationSettings()) -> float:
    """Return the spacing in mm at which two scans are compared."""
    extents = [np.sort(grid.extent) for grid in (moving, fixed)]
    spacing = settings.spacing * min(1.0, min(extent[1] for extent in extents) / _SMALL_EXTENT_MM)
    largest = max(float(np.prod(extent)) for extent in extents)
    return float(max(spacing, (largest / settings.max_voxels) ** (1 / 3)))


def _channel_weights(modality: Modality, settings: RegistrationSettings) -> Tensor:
    """Return the weight of each channel of the features."""
    tissue = [settings.tissue_weight] if modality == "ct" else []
    return torch.tensor([1 / MIND_CHANNELS] * MIND_CHANNELS + tissue + [settings.body_weight])


class _Progress:
    """Progress over all steps of a registration, of about equal duration."""

    def __init__(self, report: Reporter, pair: Pair, settings: RegistrationSettings) -> None:
        self._report = report
        starts = len(list(_starts(pair.pooled(settings.start_level.pooling), settings)))
        self._total = starts + len(settings.levels) + settings.steps
        self._step = 0
        report.progress(_STAGE, 0, self._total)

    def done(self) -> None:
        """Report one more step."""
        self._step += 1
        self._report.progress(_STAGE, self._step, self._total)


def _starts(coarse: Pair, settings: RegistrationSettings) -> list[np.ndarray]:
    """Return the affine maps to start from."""
    step = settings.start_step * float(coarse.fixed.grid.spacing.mean()) / settings.start_level.pooling
    return list(starts_along_body(coarse.fixed, coarse.moving, step=step))


def _best_start(pair: Pair, settings: RegistrationSettings, done: Callable[[], None]) -> tuple[Transform, list[float]]:
    """Return the transform found from the best start, and the costs of all."""
    level = settings.start_level
    coarse = pair.pooled(level.pooling)
    costs: list[float] = []
    best = None
    for affine in _starts(coarse, settings):
        start = Transform.of_affine(affine, coarse.fixed.grid, pair.device)
        found = discrete_search(coarse, start, level)
        costs.append(matching_cost(coarse, found))
        if best is None or costs[-1] < min(costs[:-1]):
            best = found
        done()
    assert best is not None  # there is always the start without a shift
    return best, costs


def _refitted_affine(pair: Pair, transform: Transform, settings: RegistrationSettings) -> np.ndarray:
    """Return the affine map fitted to the field, searched again from there and fitted again."""
    level = settings.start_level
    coarse = pair.pooled(level.pooling)
    affine = fit_affine(transform, coarse.fixed.body)
    for _ in range(settings.affine_rounds - 1):
        start = Transform.of_affine(affine, coarse.fixed.grid, pair.device)
        affine = fit_affine(discrete_search(coarse, start, level), coarse.fixed.body)
    return affine


def _body_overlap(pair: Pair, transform: Transform) -> float:
    """Return the Dice of both bodies where both scans reach."""
    warped, present = warp_features(pair.moving, transform, pair.fixed.grid)
    fixed = (pair.fixed.body > 0.5 * pair.fixed.body.max()) & present
    moving = (warped[-1] > 0.5 * pair.moving.body.max()) & present
    total = float(fixed.sum() + moving.sum())
    return 2 * float((fixed & moving).sum()) / total if total else 0.0


def _reasons(
    affine: np.ndarray, cost: float, start_costs: list[float], overlap: float, folded: float
) -> tuple[str, ...]:
    """Return why a registration must not be used, in sentences."""
    reasons = []
    scales = np.linalg.svd(affine[:3, :3], compute_uv=False)
    if scales.min() < _SCALE_LIMITS[0] or scales.max() > _SCALE_LIMITS[1] or np.linalg.det(affine[:3, :3]) <= 0:
        reasons.append(
            f"The scans differ in size by factors of {scales.min():.2f} to {scales.max():.2f}, which no patients do."
        )
    if overlap < _MIN_BODY_OVERLAP:
        reasons.append(f"The bodies overlap by {overlap:.0%} only: the scans may show different regions.")
    if folded > _MAX_FOLDED_SHARE:
        reasons.append(f"The transform folds in {folded:.0%} of the scan: there is no smooth match.")
    if cost > _MAX_COST:
        reasons.append(
            f"The scans match hardly better than by chance (cost {cost:.2f} of 1): they may show different regions."
        )
    elif len(start_costs) > 1 and cost >= max(start_costs):
        reasons.append("The best position found along the body is no better than the worst: there is no clear match.")
    return tuple(reasons)
