"""The performance estimate: it follows the quality of a model, is reproducible, and withholds numbers without a basis."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from training_examples import CPU, RecordingReporter, cube_case, small_unetr

from HiEndMAECore.errors import Cancelled
from HiEndMAECore.io.structure import Structure
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.training import performance_estimate
from HiEndMAECore.training.augmentation import IDENTITY, crop_augmented
from HiEndMAECore.training.performance_estimate import (
    NOTE_TOO_LITTLE,
    Calibration,
    EstimateWorkload,
    PerformanceEstimate,
    draw_strong_augmentation,
    estimate_performance,
    plan_estimate,
)
from HiEndMAECore.training.training_cases import IGNORED, TrainingCase

STRUCTURES = (Structure(3, "cube", (255, 0, 0)), Structure(8, "ball", (0, 255, 0)))
CROP = (16, 16, 16)


class ThresholdNetwork(nn.Module):
    """A network that knows the cube case's intensities: the cube is above `cube`, the ball below `ball`."""

    def __init__(self, cube: float = 0.7, ball: float = 0.3) -> None:
        super().__init__()
        self.cube, self.ball = cube, ball

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        ball = (volume < self.ball) & (volume > 0.02)
        return torch.cat([torch.full_like(volume, 0.5), (volume > self.cube).float(), ball.float()], 1)


def estimate(network: nn.Module, cases: list[TrainingCase] | None = None, **options: Any) -> PerformanceEstimate:
    settings = {
        "crop": CROP,
        "work": EstimateWorkload(2, 99),
        "seed": 0,
        "device": CPU,
        "report": Reporter(quiet=True),
    }
    return estimate_performance(cases or [cube_case()], network, STRUCTURES, **{**settings, **options})


def spatial_augmentation(rng: np.random.Generator, size: Any) -> Any:
    """Return the strong augmentation without its intensity augmentation, because thresholds know one contrast only."""
    return replace(draw_strong_augmentation(rng, size), gain=1.0, shift=0.0, gamma=1.0, noise=0.0, blur=0.0)


@pytest.fixture
def same_contrast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(performance_estimate, "draw_strong_augmentation", spatial_augmentation)


@pytest.mark.usefixtures("same_contrast")
def test_estimate_of_a_good_model_is_higher_than_of_a_bad_one() -> None:
    good, bad = estimate(ThresholdNetwork()), estimate(ThresholdNetwork(cube=0.55, ball=0.47))
    assert good.mean is not None
    assert bad.mean is not None
    dice = [[structure.deformed for structure in result.structures] for result in (good, bad)]
    assert np.mean(dice[0]) > 0.75  # thresholds miss voxels that two tissues share
    assert np.mean(dice[1]) < np.mean(dice[0]) - 0.1
    assert bad.mean <= good.mean


def test_expected_dice_of_a_small_structure_is_lower() -> None:
    """A border that is off by one voxel costs a cube of 4 voxels an edge more than one of 16."""
    calibration = Calibration(border=1.0)
    expected = [calibration.expected_dice(1.0, edge**3) for edge in (4, 8, 16, 1000)]
    assert expected == sorted(expected)
    assert expected[0] < 0.5 < 0.8 < expected[2] < expected[3] < 1
    # A ball of radius 10, and copies one voxel larger and smaller: 0.87 and 0.84 by counting, 0.85 by the formula.
    x = np.indices((25, 25, 25)) - 12
    balls = [(x**2).sum(0) <= radius**2 for radius in (9, 10, 11)]
    dice = [2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in (balls[:2], balls[1:])]
    assert calibration.expected_dice(1.0, balls[1].sum()) == pytest.approx(np.mean(dice), abs=0.02)
    assert calibration.expected_dice(0.3, 1000**3) == 0.6


@pytest.mark.usefixtures("same_contrast")
def test_deformed_dice_of_tiles_equals_that_of_the_whole_copy() -> None:
    """Each voxel is counted once, as if the copy were segmented in one piece."""
    case, network = cube_case(), ThresholdNetwork(cube=0.75)
    rng = np.random.default_rng((0, 0, performance_estimate._COPY_KEY))
    augmentation = spatial_augmentation(rng, (28, 28, 28))
    image, reference = crop_augmented(case.image, case.classes, np.array([13.5] * 3), (28, 28, 28), augmentation)
    prediction = network(image[None]).argmax(1)[0]
    dice = [
        2 * ((prediction == v) & (reference == v)).sum() / ((prediction == v).sum() + (reference == v).sum())
        for v in (1, 2)
    ]
    result = estimate(network, work=EstimateWorkload(1, 99))
    assert [structure.deformed for structure in result.structures] == pytest.approx([float(d) for d in dice], abs=1e-6)
    assert result.tiles == 8


def test_estimate_with_few_tiles_shows_every_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of eight tiles: not the two with most voxels of the larger structure."""
    monkeypatch.setattr(performance_estimate, "draw_strong_augmentation", lambda rng, size: IDENTITY)
    classes = torch.zeros(32, 32, 32, dtype=torch.int16)
    classes[2:30, 2:14, 2:14] = 1  # in two tiles
    classes[20:23, 20:23, 20:23] = 2
    image = torch.tensor([0.5, 0.9, 0.15])[classes.long()][None]
    result = estimate(ThresholdNetwork(), [TrainingCase("two", image, classes)], work=EstimateWorkload(1, 2))
    assert result.tiles == 2
    assert [structure.deformed for structure in result.structures] == [1.0, 1.0]


def test_deformed_copies_are_strongly_changed_and_complete() -> None:
    """The labels of the training case do not fit a copy; every structure is in every copy."""
    case = cube_case()
    for copy in range(8):
        rng = np.random.default_rng((0, copy, performance_estimate._COPY_KEY))
        augmentation = draw_strong_augmentation(rng, (28, 28, 28))
        image, reference = crop_augmented(case.image, case.classes, np.array([13.5] * 3), (28, 28, 28), augmentation)
        for value in (1, 2):
            mask, original = reference == value, case.classes == value
            assert 0.4 < mask.sum() / original.sum() < 2.5
            assert 2 * (mask & original).sum() / (mask.sum() + original.sum()) < 0.95
        assert (image - case.image).abs().mean() > 0.03


def test_estimate_depends_on_the_seed_alone() -> None:
    network = small_unetr()
    assert estimate(network).to_json() == estimate(network).to_json()
    assert estimate(network).to_json() != estimate(network, seed=1).to_json()


@pytest.mark.usefixtures("same_contrast")
def test_estimate_of_a_case_with_skipped_slices_is_about_that_of_the_whole_case() -> None:
    """On average over the four ways to label every fourth slice."""
    case, network = cube_case(), ThresholdNetwork(cube=0.75)
    whole, parts = estimate(network), []
    for first in range(4):
        skipped = torch.arange(28) % 4 != first
        classes = torch.where(skipped, IGNORED, case.classes).short()
        parts.append(estimate(network, [TrainingCase("part", case.image, classes)]))
    for index, one in enumerate(whole.structures):
        assert np.mean([part.structures[index].voxels for part in parts]) == pytest.approx(one.voxels, rel=0.15)
    cubes = [
        part.structures[0] for part in parts
    ]  # the thresholds find balls at the border of a copy, where all is judged
    assert np.mean([cube.deformed for cube in cubes]) == pytest.approx(whole.structures[0].deformed, abs=0.02)
    assert np.mean([cube.expected for cube in cubes]) == pytest.approx(whole.structures[0].expected, abs=0.03)


@pytest.mark.usefixtures("same_contrast")
def test_estimate_of_complementing_cases_has_each_structure() -> None:
    case = cube_case()
    cases = [
        TrainingCase(str(value), case.image, torch.where(case.classes == value, 0, case.classes), unknown=(value,))
        for value in (2, 1)
    ]
    work = plan_estimate(cases, crop=(16, 16, 16), steps=20, batch_size=1)
    assert (work.copies, work.tiles) == (2, 4)
    assert plan_estimate([case], crop=(16, 16, 16), steps=20, batch_size=1).copies == 1
    expected = [structure.expected for structure in estimate(ThresholdNetwork(), cases, work=work).structures]
    assert None not in expected


@pytest.mark.parametrize("voxels", [0, 19])
@pytest.mark.usefixtures("same_contrast")
def test_structure_with_too_few_voxels_has_a_note_instead_of_a_number(voxels: int) -> None:
    case = cube_case()
    classes = torch.where(case.classes == 2, 0, case.classes)
    classes.view(-1)[torch.nonzero(case.classes.view(-1) == 2)[:voxels]] = 2
    result = estimate(ThresholdNetwork(), [TrainingCase("few", case.image, classes)])
    assert result.structures[1].expected is None
    assert result.structures[1].note == NOTE_TOO_LITTLE == "too little to learn from"
    assert result.structures[0].expected is not None
    assert result.mean == result.structures[0].expected


def test_structure_that_is_never_predicted_has_a_note_instead_of_a_number() -> None:
    result = estimate(ThresholdNetwork(ball=-1.0))
    assert result.structures[1].deformed == 0
    assert (result.structures[1].expected, result.structures[1].note) == (None, NOTE_TOO_LITTLE)


def test_estimate_uses_and_reports_its_calibration() -> None:
    calibration = Calibration(border=2.0, error=0.07)
    report = RecordingReporter()
    result = estimate(ThresholdNetwork(ball=-1.0), calibration=calibration)
    result.log(report)
    stored = result.to_json()
    assert (stored["calibrated"], stored["error"], stored["border_voxels"]) == (True, 0.07, 2.0)
    cube = stored["structures"][0]
    assert cube["expected"] == pytest.approx(calibration.expected_dice(cube["deformed"], cube["voxels"]), abs=1e-4)
    assert estimate(ThresholdNetwork(), calibration=Calibration(border=2.0)).to_json()["calibrated"] is False
    assert [m["name"] for m in report.metrics] == ["self_check"] * 3
    assert [m["structure"] for m in report.metrics] == ["cube", "ball", "mean"]
    assert report.metrics[1]["value"] is None
    assert report.metrics[1]["note"] == "too little to learn from"
    assert (report.metrics[2]["structures"], report.metrics[2]["estimated"]) == (2, 1)
    assert "0.07" in report.messages[0]
    assert "too little to learn from" in report.messages[2]


def test_plan_estimate_fits_into_its_share() -> None:
    case = cube_case()  # 8 tiles of 16^3
    assert plan_estimate([case], crop=CROP, steps=3, batch_size=1) == EstimateWorkload(1, 4)
    for steps, batch_size in ((200, 1), (400, 1), (100, 4), (5000, 4)):
        work = plan_estimate([case], crop=CROP, steps=steps, batch_size=batch_size)
        step_equivalents = work.copies * work.tiles * 0.4 / batch_size
        assert 1 <= work.copies <= 4
        assert step_equivalents <= 0.06 * steps
    assert plan_estimate([case], crop=(4, 4, 4), steps=200, batch_size=1).tiles == 30  # of 343


def test_estimate_can_be_cancelled() -> None:
    report = Reporter(quiet=True)
    report.cancel()
    with pytest.raises(Cancelled):
        estimate(ThresholdNetwork(), report=report)
