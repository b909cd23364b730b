"""The self-check: it sees how well a model is, says so as promised, and keeps quiet where there is nothing to say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_training import CPU, cube_scan, small_unetr
from torch import nn

from HiEndMAECore.errors import Cancelled
from HiEndMAECore.io.structure import Structure
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.training import performance_estimate as room
from HiEndMAECore.training.augmentation import IDENTITY, crop_augmented
from HiEndMAECore.training.training_cases import TrainingCase

STRUCTURES = (Structure(3, "cube", (255, 0, 0)), Structure(8, "ball", (0, 255, 0)))
CROP = (16, 16, 16)


class Thresholds(nn.Module):
    """A network that knows the cube scan's intensities: the cube above `cube`, the ball below `ball`."""

    def __init__(self, cube: float = 0.7, ball: float = 0.3) -> None:
        super().__init__()
        self.cube, self.ball = cube, ball

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        ball = (volume < self.ball) & (volume > 0.02)
        return torch.cat([torch.full_like(volume, 0.5), (volume > self.cube).float(), ball.float()], 1)


class Listening(Reporter):
    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.metrics: list[dict[str, Any]] = []
        self.said: list[str] = []

    def metric(self, name: str, value: float | None, **values: Any) -> None:
        self.metrics.append({"name": name, "value": value, **values})

    def info(self, text: str) -> None:
        self.said.append(text)


def check(network: nn.Module, scans: list[TrainingCase] | None = None, **options: Any) -> room.PerformanceEstimate:
    settings = {
        "crop": CROP,
        "work": room.EstimateWorkload(2, 99),
        "seed": 0,
        "device": CPU,
        "report": Reporter(quiet=True),
    }
    return room.estimate_performance(scans or [cube_scan()], network, STRUCTURES, **{**settings, **options})


def mild(rng: np.random.Generator, size: Any) -> Any:
    return replace(draw_strong(rng, size), gain=1.0, shift=0.0, gamma=1.0, noise=0.0, blur=0.0)


draw_strong = room.draw_strong_augmentation


def test_it_tells_a_good_model_from_a_bad_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "draw_strong_augmentation", mild)  # thresholds know no other contrast
    good, bad = check(Thresholds()), check(Thresholds(cube=0.55, ball=0.47))
    assert good.mean is not None
    assert bad.mean is not None
    dice = [[c.deformed for c in checked.structures] for checked in (good, bad)]
    assert np.mean(dice[0]) > 0.75  # thresholds miss voxels that two tissues share
    assert np.mean(dice[1]) < np.mean(dice[0]) - 0.1
    assert bad.mean <= good.mean


def test_the_same_network_is_expected_to_find_a_small_structure_worse() -> None:
    """One voxel off on a cube of 4 voxels an edge costs more than on one of 16."""
    calibration = room.Calibration(border=1.0)
    expected = [calibration.expected(1.0, edge**3) for edge in (4, 8, 16, 1000)]
    assert expected == sorted(expected)
    assert expected[0] < 0.5 < 0.8 < expected[2] < expected[3] < 1
    # A ball of radius 10 and its copy one voxel larger and one smaller: 0.87 and 0.84 by counting, 0.85 by the rule.
    x = np.indices((25, 25, 25)) - 12
    balls = [(x**2).sum(0) <= radius**2 for radius in (9, 10, 11)]
    dice = [2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in (balls[:2], balls[1:])]
    assert calibration.expected(1.0, balls[1].sum()) == pytest.approx(np.mean(dice), abs=0.02)
    assert calibration.expected(0.3, 1000**3) == 0.6


def test_the_dice_is_that_of_the_whole_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tile by tile the voxels are counted once each: the same as segmenting the copy in one piece."""
    monkeypatch.setattr(room, "draw_strong_augmentation", mild)
    scan, network = cube_scan(), Thresholds(cube=0.75)
    change = mild(np.random.default_rng((0, 0, room._MARK)), (28, 28, 28))
    image, truth = crop_augmented(scan.image, scan.classes, np.array([13.5] * 3), (28, 28, 28), change)
    found = network(image[None]).argmax(1)[0]
    dice = [2 * ((found == v) & (truth == v)).sum() / ((found == v).sum() + (truth == v).sum()) for v in (1, 2)]
    checked = check(network, work=room.EstimateWorkload(1, 99))
    assert [c.deformed for c in checked.structures] == pytest.approx([float(d) for d in dice], abs=1e-6)
    assert checked.tiles == 8


def test_few_tiles_show_every_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of eight tiles: not the two with most voxels of the larger structure."""
    monkeypatch.setattr(room, "draw_strong_augmentation", lambda rng, size: IDENTITY)
    classes = torch.zeros(32, 32, 32, dtype=torch.int16)
    classes[2:30, 2:14, 2:14] = 1  # in two tiles
    classes[20:23, 20:23, 20:23] = 2
    image = torch.tensor([0.5, 0.9, 0.15])[classes.long()][None]
    checked = check(Thresholds(), scans=[TrainingCase("two", image, classes)], work=room.EstimateWorkload(1, 2))
    assert checked.tiles == 2
    assert [c.deformed for c in checked.structures] == [1.0, 1.0]


def test_copies_are_strongly_changed_and_whole() -> None:
    """Copying the teaching scan's labels onto a copy must not look like success; every structure is in every copy."""
    scan = cube_scan()
    for copy in range(8):
        change = draw_strong(np.random.default_rng((0, copy, room._MARK)), (28, 28, 28))
        image, truth = crop_augmented(scan.image, scan.classes, np.array([13.5] * 3), (28, 28, 28), change)
        for value in (1, 2):
            there = truth == value
            assert 0.4 < there.sum() / (scan.classes == value).sum() < 2.5
            copied = 2 * (there & (scan.classes == value)).sum() / (there.sum() + (scan.classes == value).sum())
            assert copied < 0.95
        assert (image - scan.image).abs().mean() > 0.03


def test_same_seed_same_numbers_whatever_the_machine_does() -> None:
    network = small_unetr()
    assert check(network).to_json() == check(network).to_json()
    assert check(network).to_json() != check(network, seed=1).to_json()


@pytest.mark.parametrize("voxels", [0, 19])
def test_a_structure_with_next_to_no_voxels_gets_no_number(voxels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "draw_strong_augmentation", mild)
    scan = cube_scan()
    classes = torch.where(scan.classes == 2, 0, scan.classes)
    classes.view(-1)[torch.nonzero(scan.classes.view(-1) == 2)[:voxels]] = 2
    checked = check(Thresholds(), scans=[TrainingCase("few", scan.image, classes)])
    assert checked.structures[1].expected is None
    assert checked.structures[1].note == room.TOO_LITTLE == "too little to learn from"
    assert checked.structures[0].expected is not None
    assert checked.mean == checked.structures[0].expected


def test_a_structure_that_is_never_found_gets_no_number() -> None:
    checked = check(Thresholds(ball=-1.0))
    assert checked.structures[1].deformed == 0
    assert (checked.structures[1].expected, checked.structures[1].note) == (None, room.TOO_LITTLE)


def test_the_calibration_is_used_and_told() -> None:
    line = room.Calibration(border=2.0, error=0.07)
    report = Listening()
    checked = check(Thresholds(ball=-1.0), calibration=line)
    checked.tell(report)
    told = checked.to_json()
    assert (told["calibrated"], told["error"], told["border_voxels"]) == (True, 0.07, 2.0)
    assert told["structures"][0]["expected"] == pytest.approx(
        line.expected(told["structures"][0]["deformed"], told["structures"][0]["voxels"]), abs=1e-4
    )
    assert check(Thresholds(), calibration=room.Calibration(border=2.0)).to_json()["calibrated"] is False
    assert [m["name"] for m in report.metrics] == ["self_check"] * 3
    assert [m["structure"] for m in report.metrics] == ["cube", "ball", "mean"]
    assert report.metrics[1]["value"] is None
    assert report.metrics[1]["note"] == "too little to learn from"
    assert (report.metrics[2]["structures"], report.metrics[2]["estimated"]) == (2, 1)
    assert "0.07" in report.said[0]
    assert "too little to learn from" in report.said[2]


def test_the_work_fits_into_the_share() -> None:
    scan = cube_scan()  # 8 tiles of 16^3
    assert room.plan_estimate([scan], crop=CROP, steps=3, batch_size=1) == room.EstimateWorkload(1, 4)
    for steps, batch_size in ((200, 1), (400, 1), (100, 4), (5000, 4)):
        work = room.plan_estimate([scan], crop=CROP, steps=steps, batch_size=batch_size)
        forwards = work.copies * work.tiles * 0.4 / batch_size
        assert 1 <= work.copies <= 4
        assert forwards <= 0.06 * steps
    assert room.plan_estimate([scan], crop=(4, 4, 4), steps=200, batch_size=1).tiles == 30  # of 343


def test_it_can_be_cancelled() -> None:
    report = Reporter(quiet=True)
    report.cancel()
    with pytest.raises(Cancelled):
        check(Thresholds(), report=report)
