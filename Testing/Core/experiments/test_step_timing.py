"""The number of steps for a budget of processor time."""

from __future__ import annotations

import pytest

from HiEndMAECore.errors import InputError
from HiEndMAECore.experiments.step_timing import StepTiming, choose_trial_steps, fit_timing


def measure(budget: float, *, setup: float, per_step: float) -> tuple[StepTiming, list[int]]:
    """Run the trials of a command whose time is exactly known."""
    trials: dict[int, float] = {}
    while (steps := choose_trial_steps(trials, budget)) is not None:
        trials[steps] = setup + steps * per_step
    return fit_timing(trials), list(trials)


@pytest.mark.parametrize(("budget", "count"), [(600.0, 3), (20.0, 2)])
def test_trials_give_setup_and_seconds_per_step(budget: float, count: int) -> None:
    timing, trials = measure(budget, setup=9.0, per_step=0.25)
    assert (timing.setup_seconds, timing.seconds_per_step) == (pytest.approx(9.0), pytest.approx(0.25))
    assert len(trials) == count
    assert sum(trials) * 0.25 < 0.12 * budget + 4
    assert timing.setup_seconds + timing.steps_within(budget) * 0.25 == pytest.approx(budget, abs=0.25)


def test_budget_below_the_setup_is_refused() -> None:
    with pytest.raises(InputError) as raised:
        StepTiming(30.0, 0.5).steps_within(20.0)
    assert raised.value.code == "budget_too_small"


def test_noisy_trials_give_a_positive_time() -> None:
    assert fit_timing({2: 10.0, 12: 9.0}).seconds_per_step > 0
