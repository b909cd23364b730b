"""Performance estimate: the Dice to expect on other patients, estimated from the training cases alone.

The true Dice on other patients depends mostly on the size of a structure. Predicted borders are off by about
`Calibration.border` voxels whatever the structure, which costs a small structure more of its Dice than a large one. Whether
a structure was learned at all is measured by its Dice on deformed copies of the training cases. The copies are deformed and
re-contrasted more strongly than the training crops, with random generators that no training crop uses.

Testing/Benchmarks/results.md compares this estimate with others that were tried: the Dice on the copies alone, the agreement
of the averaged with the last weights, the network's entropy, and the agreement with the mirrored copy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from HiEndMAECore.io.structure import Structure
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.runtime.devices import autocast, sampling_device

from .augmentation import Augmentation, crop_augmented, rotation
from .disjoint_tiles import DiceCounts, DisjointTile, count_classes, disjoint_tiles
from .training_cases import MIN_VOXELS, TrainingCase

BUDGET_SHARE = 0.06  # of a time budget is reserved for the performance estimate
# Notes in place of an expected Dice; stored in model.json.
NOTE_TOO_LITTLE = "too little to learn from"
NOTE_NOT_SEEN = "not seen in the self-check"
_MAX_COPIES = 4
_TILE_COST = 0.4  # time of one predicted tile, in units of the training time of one crop
_MIN_TILES = 4
_COPY_KEY = 0x5E1F  # third word in the key of the copies' generators; those of training crops have two words
_LATTICE_NODES = 7  # along each axis of the elastic deformation


@dataclass(frozen=True)
class Calibration:
    """Relation between a structure's size and its Dice, as measured on patients.

    Attributes:
        border: Mean distance between predicted and reference borders, in voxels of the network's grid.
        error: Mean absolute error of a structure's expected Dice, on patients that were not used to choose `border`. None
            when it is not measured.
    """

    border: float
    error: float | None = None

    def expected_dice(self, deformed: float, voxels: float) -> float:
        """Return the expected Dice of a structure.

        A ball of radius r whose border is off by b on average has a Dice of 1 - 3/2 b/r. The result is limited to twice
        the Dice on deformed copies.

        Args:
            deformed: Dice on deformed copies of the training cases.
            voxels: Size of the structure in voxels of the network's grid.
        """
        radius = (3 * voxels / (4 * math.pi)) ** (1 / 3)
        return max(0.0, min(2 * deformed, 1 - 1.5 * self.border / radius))


# border: chosen on OpenKBP's seven `tune` cases (head-and-neck CT). error: measured on its 20 `test` cases, after 5 minutes of
# training on each of three cases with two seeds, with and without pretraining (126 structures; 0.055, correlation 0.77).
CALIBRATION = Calibration(border=1.4, error=0.06)


@dataclass(frozen=True)
class StructureEstimate:
    """Performance estimate of one structure.

    Attributes:
        structure: The structure.
        deformed: Mean Dice on deformed copies; None when no copy shows the structure.
        voxels: Mean size in the training cases that label it, in voxels of the network's grid; estimated where a part of
            them is ignored.
        expected: Expected Dice on other patients; None when it cannot be estimated.
        note: Why there is no expected Dice, otherwise empty.
    """

    structure: Structure
    deformed: float | None
    voxels: int
    expected: float | None
    note: str = ""


@dataclass(frozen=True)
class PerformanceEstimate:
    """Performance estimate of a model.

    Attributes:
        structures: Estimates in the order of the model's structures.
        copies: Number of deformed copies that were segmented.
        tiles: Number of tiles that were segmented.
        calibration: Relation between size and Dice that was used.
    """

    structures: tuple[StructureEstimate, ...]
    copies: int
    tiles: int
    calibration: Calibration

    @property
    def mean(self) -> float | None:
        """Mean expected Dice of the structures that have one."""
        expected = [estimate.expected for estimate in self.structures if estimate.expected is not None]
        return sum(expected) / len(expected) if expected else None

    def to_json(self) -> dict[str, Any]:
        """Return the entry `training.self_check` of `model.json`; its keys are stored names."""
        return {
            "calibrated": self.calibration.error is not None,
            "error": self.calibration.error,
            "border_voxels": self.calibration.border,
            "copies": self.copies,
            "tiles": self.tiles,
            "mean": _rounded(self.mean),
            "structures": [
                {
                    "value": estimate.structure.value,
                    "name": estimate.structure.name,
                    "expected": _rounded(estimate.expected),
                    "deformed": _rounded(estimate.deformed),
                    "voxels": estimate.voxels,
                    "note": estimate.note,
                }
                for estimate in self.structures
            ],
        }

    def log(self, report: Reporter) -> None:
        """Report a metric `self_check` for each structure and for the mean, and the same as messages."""
        error = self.calibration.error
        for estimate in self.structures:
            details = {"deformed": _rounded(estimate.deformed), "voxels": estimate.voxels, "note": estimate.note}
            labels = {"structure": estimate.structure.name, "label": estimate.structure.value}
            report.metric("self_check", _rounded(estimate.expected), **labels, **details)
        counts = {"structures": len(self.structures), "estimated": sum(e.expected is not None for e in self.structures)}
        report.metric("self_check", _rounded(self.mean), structure="mean", error=error, **counts)
        if error is not None:
            accuracy = f"with an error of about {error:.2f} for each structure, measured on head-and-neck CT"
        else:
            accuracy = "not validated on patients"
        mean = "could not be estimated" if self.mean is None else f"{self.mean:.2f}"
        report.info(f"Expected mean Dice on other patients: {mean} ({accuracy}).")
        for estimate in self.structures:
            value = estimate.note if estimate.expected is None else f"{estimate.expected:.2f}"
            report.info(f"  {estimate.structure.name}: {value}")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


@dataclass(frozen=True)
class EstimateWorkload:
    """Number of deformed copies to segment, and of tiles in each."""

    copies: int
    tiles: int


def plan_estimate(
    cases: Sequence[TrainingCase], *, crop: Sequence[int], steps: int, batch_size: int, share: float = BUDGET_SHARE
) -> EstimateWorkload:
    """Plan how much is segmented for the performance estimate.

    The work is counted in tiles instead of seconds, so that a repeated run gives the same estimate. There is at least one
    copy, and one of each of several cases that label different structures; when not all tiles of a copy can be afforded, the
    tiles with most of the structures are segmented.

    Args:
        cases: Training cases.
        crop: Edges of a tile in voxels.
        steps: Steps of the training run.
        batch_size: Crops of a step.
        share: Time of the estimate as a fraction of the training time.
    """
    affordable = int(share * steps * batch_size / _TILE_COST)
    tiles = max(len(list(disjoint_tiles(case.classes.shape, crop))) for case in cases)
    least = min(_MAX_COPIES, _count_complementing_cases(cases))
    if affordable < least * tiles:
        return EstimateWorkload(least, max(_MIN_TILES, affordable // least))
    return EstimateWorkload(max(1, min(_MAX_COPIES, affordable // tiles)), tiles)


def _count_complementing_cases(cases: Sequence[TrainingCase]) -> int:
    """Return how many of the first cases have to be copied, so that each structure is labelled in one of the copies."""
    unknown = set(cases[0].unknown)
    for count, case in enumerate(cases, start=1):
        unknown &= set(case.unknown)
        if not unknown:
            return count
    return len(cases)


def draw_strong_augmentation(rng: np.random.Generator, size: Sequence[int]) -> Augmentation:
    """Draw an augmentation of a whole scan that imitates another body, another posture and another scanner.

    Args:
        rng: Generator of the copy.
        size: Shape of the scan in voxels.
    """
    angles = np.deg2rad(rng.uniform(-12, 12, 3))
    stretch = np.exp(rng.uniform(-0.15, 0.15)) * np.exp(rng.uniform(-0.12, 0.12, 3))
    node_distance = np.array(size, float)[:, None, None, None] / (_LATTICE_NODES - 1)  # voxels
    return Augmentation(
        matrix=rotation(angles) @ np.diag(stretch),
        displacement=rng.normal(0, 1, (3, *[_LATTICE_NODES] * 3)) * node_distance * rng.uniform(0.12, 0.2),
        gain=float(rng.choice([rng.uniform(0.75, 0.9), rng.uniform(1.1, 1.33)])),
        shift=float(rng.uniform(-0.1, 0.1)),
        gamma=float(np.exp(rng.choice([-1, 1]) * rng.uniform(0.15, 0.5))),
        noise=float(rng.uniform(0.02, 0.07)),
        blur=float(rng.uniform(0.4, 1.0)),
        seed=int(rng.integers(2**31)),
    )


@torch.no_grad()
def estimate_performance(
    cases: Sequence[TrainingCase],
    network: nn.Module,
    structures: Sequence[Structure],
    *,
    crop: Sequence[int],
    work: EstimateWorkload,
    seed: int,
    device: torch.device,
    report: Reporter,
    calibration: Calibration = CALIBRATION,
) -> PerformanceEstimate:
    """Segment deformed copies of the training cases and estimate the Dice on other patients.

    Args:
        cases: Training cases; the copies are made of each in turn.
        network: Trained network, on `device`.
        structures: Structures of the model; class i + 1 is `structures[i]`.
        crop: Edges of a tile in voxels.
        work: Number of copies and tiles.
        seed: Seed of the run.
        device: Device to compute on.
        report: Receives the progress of the stage `self-check`.
        calibration: Relation between size and Dice.

    Raises:
        Cancelled: The run was cancelled.
    """
    network.eval()
    classes = len(structures) + 1
    dices: list[list[float]] = [[] for _ in range(classes)]  # by class, one of each copy that shows it
    segmented = 0
    for copy in report.steps("self-check", work.copies):
        image, reference = _deformed_copy(cases[copy % len(cases)], crop=crop, seed=seed, copy=copy, device=device)
        tiles = _by_structure_content(list(disjoint_tiles(reference.shape, crop)), reference, classes)[: work.tiles]
        counts = DiceCounts(classes)
        for tile in tiles:
            report.check()
            with autocast(device):
                logits = network(image[(slice(None), *tile.input)][None])
            counts.add(logits[0].argmax(0)[tile.own_in_input], reference[tile.own])
        segmented += len(tiles)
        for value in range(1, classes):
            dice = counts.dice(value)
            if dice is not None:
                dices[value].append(dice)
    estimates = _structure_estimates(cases, structures, dices, calibration)
    return PerformanceEstimate(estimates, work.copies, segmented, calibration)


def _deformed_copy(
    case: TrainingCase, *, crop: Sequence[int], seed: int, copy: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return image (C, H, W, D) and classes (H, W, D) of a deformed copy, at least as large as a tile."""
    shape = case.classes.shape
    size = [max(length, edge) for length, edge in zip(shape, crop)]
    augmentation = draw_strong_augmentation(np.random.default_rng((seed, copy, _COPY_KEY)), size)
    center = (np.array(shape) - 1) / 2
    case = case.to(sampling_device(device))
    image, classes = crop_augmented(case.image, case.classes, center, size, augmentation)
    return image.to(device), classes.to(device)


def _structure_estimates(
    cases: Sequence[TrainingCase],
    structures: Sequence[Structure],
    dices: Sequence[Sequence[float]],
    calibration: Calibration,
) -> tuple[StructureEstimate, ...]:
    """Return the estimate of each structure from its Dice on the copies (by class) and its size in the cases."""
    counts = torch.stack([count_classes(case.classes.long(), len(structures) + 1) for case in cases])
    labelling_cases = (counts > 0).sum(0).clamp(min=1)
    sizes = torch.stack([_estimate_sizes(case, count) for case, count in zip(cases, counts)])
    voxels = (sizes.sum(0) / labelling_cases).round().int().tolist()
    estimates = []
    for value, structure in enumerate(structures, start=1):
        deformed = float(np.mean(dices[value])) if dices[value] else None
        expected, note = None, ""
        if counts[:, value].sum() < MIN_VOXELS or deformed == 0:
            note = NOTE_TOO_LITTLE
        elif deformed is None:
            note = NOTE_NOT_SEEN
        else:
            expected = calibration.expected_dice(deformed, voxels[value])
        estimates.append(StructureEstimate(structure, deformed, voxels[value], expected, note))
    return tuple(estimates)


def _estimate_sizes(case: TrainingCase, counts: Tensor) -> Tensor:
    """Return the sizes (count,) of the structures of a case in voxels, given the number of their labelled voxels.

    Where a part of a structure's bounding box is ignored, such as three of four slices, the same share of the structure is
    assumed to be ignored. The share is that of the box without its last planes, which has whole periods of skipped slices.
    It is that of the whole box where nothing else is judged, such as within a scribble of two lines.
    """
    sizes = counts.clone()
    if not (case.classes < 0).any():
        return sizes
    for value in range(1, len(counts)):
        if counts[value]:
            voxels = torch.nonzero(case.classes == value)
            ends = [(int(low), int(high)) for low, high in zip(voxels.amin(0), voxels.amax(0))]
            judged = case.classes[tuple(slice(low, max(high, low + 1)) for low, high in ends)] >= 0
            if not judged.any():
                judged = case.classes[tuple(slice(low, high + 1) for low, high in ends)] >= 0
            sizes[value] /= float(judged.float().mean())
    return sizes


def _by_structure_content(tiles: list[DisjointTile], reference: Tensor, classes: int) -> list[DisjointTile]:
    """Sort tiles by the sum of the fractions of the structures that they contain, so that small ones count equally."""
    totals = count_classes(reference.long(), classes).clamp(min=1)
    content = [float((count_classes(reference[tile.own].long(), classes) / totals)[1:].sum()) for tile in tiles]
    return [tiles[index] for index in sorted(range(len(tiles)), key=lambda index: -content[index])]
