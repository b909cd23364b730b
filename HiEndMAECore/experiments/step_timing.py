"""How many steps fit into a budget of processor time: set-up and seconds per step, from short runs. Standard library alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from HiEndMAECore.errors import InputError

_FIRST_TRIALS = (2, 12)  # steps; the first steps of a run are slower, in both
_TRIAL_SHARE = 0.10  # of the budget is spent on the steps of the last trial


@dataclass(frozen=True)
class StepTiming:
    """Processor time of a command that learns: `setup_seconds` + steps x `seconds_per_step`."""

    setup_seconds: float
    seconds_per_step: float

    def steps_within(self, seconds: float) -> int:
        """Return the steps that fit into processor seconds; raise `InputError` `budget_too_small` for none."""
        steps = round((seconds - self.setup_seconds) / self.seconds_per_step)
        if steps < 1:
            raise InputError(
                "budget_too_small",
                f"The chain takes {self.setup_seconds:.0f} s of processor time before its first step, and {seconds:.0f} s "
                "are left for it.",
                "Give a larger --cpu-seconds.",
            )
        return steps


def choose_trial_steps(trials: Mapping[int, float], seconds: float) -> int | None:
    """Return the steps of the next trial; None when the trials are enough.

    Args:
        trials: Processor seconds of the trials so far, by their steps.
        seconds: The budget.
    """
    for steps in _FIRST_TRIALS:
        if steps not in trials:
            return steps
    last = _FIRST_TRIALS[0] + round(_TRIAL_SHARE * seconds / fit_timing(trials).seconds_per_step)
    return last if len(trials) == len(_FIRST_TRIALS) and last >= 1.5 * _FIRST_TRIALS[1] else None


def fit_timing(trials: Mapping[int, float]) -> StepTiming:
    """Return the timing through the trial with fewest steps and that with most."""
    fewest, most = min(trials), max(trials)
    per_step = (trials[most] - trials[fewest]) / (most - fewest)
    per_step = max(per_step, 0.01 * trials[most] / most)  # set-up times vary, and a step takes some time
    return StepTiming(max(0.0, trials[fewest] - fewest * per_step), per_step)
