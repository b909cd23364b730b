"""The self-check: what Dice to expect on other patients, estimated from the labelled scans alone.

What follows the true Dice best is the size of a structure: borders are found on other patients to within about
`Calibration.border` voxels, whatever the structure, and that costs a small one more of its Dice than a large one. Whether it
has been learned at all shows in `deformed`, its Dice on strongly deformed and re-contrasted copies of the teaching scans, drawn
with changes stronger than the training's and with generators that no training crop uses.

What else was tried (`deformed` alone, agreement of the averaged and the last weights, how sure the network is, agreement with
the mirrored copy) and how well each follows the true Dice is told in Testing/Benchmarks/results.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from HiEndMAECore.io.structure import Structure
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.runtime.devices import autocast

from .augmentation import Augmentation, crop_augmented, rotation
from .training_cases import MIN_VOXELS, TrainingCase

BUDGET_SHARE = 0.06  # of a budget, kept for the self-check
TOO_LITTLE = "too little to learn from"
UNSEEN = "not seen in the self-check"
_COPIES = 4  # at most
_FORWARD = 0.4  # a tile through one network, as a share of one crop's part of a step
_FEWEST = 4  # tiles
_MARK = 0x5E1F  # third word of the generators' key: training's have two
_LATTICE = 7


@dataclass(frozen=True)
class Calibration:
    """What patients have shown. border: mean distance of found from drawn borders, in voxels of the network's grid. error:
    mean absolute error of a structure's expected Dice, on patients that had no part in the choice; None until measured."""

    border: float
    error: float | None = None

    def expected(self, deformed: float, voxels: float) -> float:
        """The Dice to expect of a structure of so many voxels. A ball of radius r with its border off by b on average keeps a
        Dice of 1 - 3/2 b/r; no structure gets more than twice of what it reached on deformed copies."""
        radius = (3 * voxels / (4 * math.pi)) ** (1 / 3)
        return max(0.0, min(2 * deformed, 1 - 1.5 * self.border / radius))


# border: chosen on OpenKBP's seven `tune` cases (head-and-neck CT). error: on its 20 `test` cases, after 5 minutes of learning
# from each of three scans with two seeds, with and without pretraining (126 structures; 0.055, correlation 0.77).
CALIBRATION = Calibration(border=1.4, error=0.06)


@dataclass(frozen=True)
class StructureEstimate:
    """One structure: Dice on deformed copies, voxels a teaching scan, the Dice to expect, and why there is none."""

    structure: Structure
    deformed: float | None
    voxels: int
    expected: float | None
    note: str = ""


@dataclass(frozen=True)
class PerformanceEstimate:
    """The self-check of a model. copies, tiles: how much it rests on."""

    structures: tuple[StructureEstimate, ...]
    copies: int
    tiles: int
    calibration: Calibration

    @property
    def mean(self) -> float | None:
        """Mean expected Dice of the structures that have one."""
        known = [check.expected for check in self.structures if check.expected is not None]
        return sum(known) / len(known) if known else None

    def to_json(self) -> dict[str, Any]:
        """As `model.json` keeps it under training.self_check."""
        return {
            "calibrated": self.calibration.error is not None,
            "error": self.calibration.error,
            "border_voxels": self.calibration.border,
            "copies": self.copies,
            "tiles": self.tiles,
            "mean": _rounded(self.mean),
            "structures": [
                {
                    "value": check.structure.value,
                    "name": check.structure.name,
                    "expected": _rounded(check.expected),
                    "deformed": _rounded(check.deformed),
                    "voxels": check.voxels,
                    "note": check.note,
                }
                for check in self.structures
            ],
        }

    def tell(self, report: Reporter) -> None:
        """Events `self_check`, one a structure and one for the mean, and the same in plain sentences."""
        error = self.calibration.error
        for check in self.structures:
            features = {"deformed": _rounded(check.deformed), "voxels": check.voxels}
            named = {"structure": check.structure.name, "label": check.structure.value}
            report.metric("self_check", _rounded(check.expected), **named, **features, note=check.note)
        counts = {"structures": len(self.structures), "estimated": sum(c.expected is not None for c in self.structures)}
        report.metric("self_check", _rounded(self.mean), structure="mean", error=error, **counts)
        how = (
            f"give or take {error:.2f} a structure, as measured on head-and-neck CT"
            if error is not None
            else "an estimate that no patient has tested"
        )
        mean = "nothing" if self.mean is None else f"a mean Dice of about {self.mean:.2f}"
        report.info(f"Self-check: expect {mean} on other patients ({how}).")
        for check in self.structures:
            message = check.note if check.expected is None else f"about {check.expected:.2f}"
            report.info(f"  {check.structure.name}: {message}")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


@dataclass(frozen=True)
class EstimateWorkload:
    """Copies to make, and tiles to look at in each."""

    copies: int
    tiles: int


def plan_estimate(
    scans: Sequence[TrainingCase], *, crop: Sequence[int], steps: int, batch_size: int, share: float = BUDGET_SHARE
) -> EstimateWorkload:
    """What `share` of `steps` of learning allows: counted in tiles, not in seconds, so that a rerun checks the same.

    One copy at least, of which those tiles are looked at that hold most of the structures when not all can be.
    """
    afford = int(share * steps * batch_size / _FORWARD)
    whole = max(len(list(_tiles(scan.classes.shape, crop))) for scan in scans)
    if afford < whole:
        return EstimateWorkload(1, max(_FEWEST, afford))
    return EstimateWorkload(max(1, min(_COPIES, afford // whole)), whole)


def draw_strong_augmentation(rng: np.random.Generator, size: Sequence[int]) -> Augmentation:
    """A change of a whole scan of `size` voxels: another build, another posture, another scanner. Every part is there."""
    angles = np.deg2rad(rng.uniform(-12, 12, 3))
    stretch = np.exp(rng.uniform(-0.15, 0.15)) * np.exp(rng.uniform(-0.12, 0.12, 3))
    nodes = np.array(size, float)[:, None, None, None] / (_LATTICE - 1)  # voxels between nodes of the lattice
    return Augmentation(
        matrix=rotation(angles) @ np.diag(stretch),
        bend=rng.normal(0, 1, (3, *[_LATTICE] * 3)) * nodes * rng.uniform(0.12, 0.2),
        gain=float(rng.choice([rng.uniform(0.75, 0.9), rng.uniform(1.1, 1.33)])),
        shift=float(rng.uniform(-0.1, 0.1)),
        gamma=float(np.exp(rng.choice([-1, 1]) * rng.uniform(0.15, 0.5))),
        noise=float(rng.uniform(0.02, 0.07)),
        blur=float(rng.uniform(0.4, 1.0)),
        seed=int(rng.integers(2**31)),
    )


@torch.no_grad()
def estimate_performance(
    scans: Sequence[TrainingCase],
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
    """Segment changed copies of `scans` with `network`, and compare.

    Class i + 1 of the scans is `structures[i]`. Every copy is of the next scan in turn. Raises `Cancelled`.
    """
    network.eval()
    classes = len(structures) + 1
    overlaps: list[list[float]] = [[] for _ in range(classes)]  # a structure's Dice, one a copy that shows it
    looked = 0
    for copy in report.steps("self-check", work.copies):
        scan = scans[copy % len(scans)]
        size = [max(n, edge) for n, edge in zip(scan.classes.shape, crop)]
        change = draw_strong_augmentation(np.random.default_rng((seed, copy, _MARK)), size)
        center = (np.array(scan.classes.shape) - 1) / 2
        image, truth = crop_augmented(scan.image.to(device), scan.classes.to(device), center, size, change)
        tiles = _most_telling(list(_tiles(size, crop)), truth, classes)[: work.tiles]
        hit, there, found = torch.zeros(classes), torch.zeros(classes), torch.zeros(classes)
        for tile in tiles:
            report.check()
            with autocast(device):
                given = network(image[(slice(None), *tile.whole)][None])[0].argmax(0)[tile.inside]
            true = truth[tile.own].long()
            hit += _count(true[given == true], classes)
            there += _count(true, classes)
            found += _count(given, classes)
        looked += len(tiles)
        for value in range(1, classes):
            if there[value]:
                overlaps[value].append(float(2 * hit[value] / (there[value] + found[value])))
    counts = torch.stack([_count(scan.classes.long(), classes) for scan in scans])
    voxels = (counts.sum(0) / (counts > 0).sum(0).clamp(min=1)).round().int().tolist()  # of the scans that label it
    checks = []
    for value, structure in enumerate(structures, start=1):
        deformed = float(np.mean(overlaps[value])) if overlaps[value] else None
        expected, note = None, ""
        if counts[:, value].sum() < MIN_VOXELS or deformed == 0:
            note = TOO_LITTLE
        elif deformed is None:
            note = UNSEEN
        else:
            expected = calibration.expected(deformed, voxels[value])
        checks.append(StructureEstimate(structure, deformed, voxels[value], expected, note))
    return PerformanceEstimate(tuple(checks), work.copies, looked, calibration)


@dataclass(frozen=True)
class _Tile:
    """`whole`: what the network sees; `own`: the part that no other tile counts; `inside`: that part within `whole`."""

    whole: tuple[slice, ...]
    own: tuple[slice, ...]
    inside: tuple[slice, ...]


def _tiles(shape: Sequence[int], crop: Sequence[int]) -> Iterator[_Tile]:
    """Tiles that cover `shape`; the last along an axis is moved back inside and counts only what is left."""
    rows = []
    for n, edge in zip(shape, crop):
        n = max(n, edge)
        starts = [min(first, n - edge) for first in range(0, n, edge)]
        rows.append([(start, first, min(first + edge, n)) for start, first in zip(starts, range(0, n, edge))])
    for places in itertools.product(*rows):
        yield _Tile(
            tuple(slice(start, start + edge) for (start, _, _), edge in zip(places, crop)),
            tuple(slice(first, end) for _, first, end in places),
            tuple(slice(first - start, end - start) for start, first, end in places),
        )


def _most_telling(tiles: list[_Tile], truth: Tensor, classes: int) -> list[_Tile]:
    """Tiles that hold much of many structures first: a small structure counts as much as a large one."""
    there = _count(truth.long(), classes).clamp(min=1)
    message = [float((_count(truth[tile.own].long(), classes) / there)[1:].sum()) for tile in tiles]
    return [tiles[index] for index in sorted(range(len(tiles)), key=lambda index: -message[index])]


def _count(values: Tensor, classes: int) -> Tensor:
    return torch.bincount(values.flatten(), minlength=classes).float().cpu()
