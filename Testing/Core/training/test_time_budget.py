"""Time budget: timing of steps, conversion to steps, and what happens on a machine that becomes slower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_examples import CPU, RecordingReporter, cube_case, small_unetr

from HiEndMAECore.training import finetuning, time_budget
from HiEndMAECore.training.plans import FinetuningPlan


class Clock:
    """A clock that the steps advance."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time_budget.time, "monotonic", clock.monotonic)
    return clock


def test_time_steps_is_robust_against_single_slow_steps(clock: Clock) -> None:
    seconds = [9.0, 3.0, 0.1, 0.1, 0.9, 0.1, 0.1, 0.1, 1.4, 0.1, 0.1]
    taken = []

    def step(index: int) -> None:
        taken.append(index)
        clock.now += seconds[index] if index < len(seconds) else 0.1

    timing = time_budget.time_steps(step, device=CPU)
    assert timing.seconds == pytest.approx(0.1)
    assert timing.fastest == pytest.approx(0.1)
    assert timing.spent == pytest.approx(sum(seconds[: len(taken)]))
    assert taken == list(range(len(taken)))
    assert timing.steps_in(100.0) == round((100 - timing.spent) / 0.1)
    assert timing.steps_in(0.5) == 20


def test_time_steps_takes_a_small_share_of_the_budget(clock: Clock) -> None:
    taken = []

    def step(index: int) -> None:
        taken.append(index)
        clock.now += 2.0

    timing = time_budget.time_steps(step, device=CPU, budget=60)
    assert timing.seconds == pytest.approx(2.0)
    assert len(taken) == 4
    assert timing.steps_in(60) == 26


def finetune_with_clock(monkeypatch: pytest.MonkeyPatch, clock: Clock, step_seconds: Any, **plan: Any) -> Any:
    """Run with steps that take `step_seconds(number of the call)`; return result, report and the steps taken."""
    train_step, calls = finetuning.train_step, []

    def timed_step(*args: Any, **options: Any) -> float:
        clock.now += step_seconds(len(calls))
        calls.append(options["step"])
        return train_step(*args, **options)

    monkeypatch.setattr(finetuning, "train_step", timed_step)
    monkeypatch.setattr(finetuning, "_CHECKPOINT_SECONDS", 1e9)
    report = RecordingReporter()
    settings = {"crop": (16, 16, 16), **plan}
    result = finetuning.finetune(
        [cube_case()],
        small_unetr(),
        plan=FinetuningPlan(**settings),
        device=CPU,
        folder=Path("unused"),
        report=report,
    )
    return result, report, calls


def metrics_of(report: RecordingReporter) -> dict[str, float | None]:
    return {metric["name"]: metric["value"] for metric in report.metrics}


def test_finetune_keeps_its_budget_and_reports_the_expected_time(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    result, report, _ = finetune_with_clock(monkeypatch, clock, lambda call: 1.0, seconds=50.0)
    # Two untimed and four timed steps: a tenth of the budget, and the step that exceeded it.
    assert result.steps == result.planned == 50 - 6
    assert metrics_of(report)["expected_seconds"] == pytest.approx(44.0)
    assert (metrics_of(report)["expected_bytes"] or 1) > 0
    assert report.warnings == []


def test_finetune_on_a_slower_machine_warns_and_stops(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    result, report, _ = finetune_with_clock(monkeypatch, clock, lambda call: 1.0 if call < 20 else 3.0, seconds=50.0)
    assert result.planned == 44
    assert result.steps == 31  # 14 s, and 17 steps of 3 s: 65 s is the first beyond 62.5
    assert 62.5 < result.seconds <= 65.5
    assert [warning["code"] for warning in report.warnings] == ["slower_than_planned", "budget_passed"]
    assert torch.isfinite(result.network(torch.rand(1, 1, 16, 16, 16))).all()


def test_finetune_with_given_steps_ignores_their_duration(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    result, report, calls = finetune_with_clock(monkeypatch, clock, lambda call: 100.0, steps=8, seconds=50.0)
    assert (result.steps, calls, report.warnings) == (8, list(range(8)), [])


def test_finetune_with_many_given_steps_reports_the_expected_time(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetuning, "_MIN_TIMED_RUN_STEPS", 10)
    untimed, _, _ = finetune_with_clock(monkeypatch, clock, lambda call: 1.0, steps=9)
    monkeypatch.setattr(finetuning, "_MIN_TIMED_RUN_STEPS", 9)
    timed, report, _ = finetune_with_clock(monkeypatch, clock, lambda call: 1.0, steps=9)
    assert metrics_of(report)["expected_seconds"] == pytest.approx(9.0, abs=9.1)
    assert timed.losses == untimed.losses  # the timing does not influence the run


def test_finetune_without_steps_and_seconds_is_refused() -> None:
    plan = FinetuningPlan(crop=(16, 16, 16))
    with pytest.raises(ValueError, match="steps or seconds"):
        finetuning.finetune(
            [cube_case()], small_unetr(), plan=plan, device=CPU, folder=Path("unused"), report=RecordingReporter()
        )
