"""Time budget of a fine-tuning run: time a few steps, convert the budget to steps, and monitor the run.

The schedule is fixed after the timing. If the machine becomes slower later, the run warns once and stops at a fixed excess
over its budget.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from HiEndMAECore.reporting.console import duration
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.runtime.memory import measure_peak

_WARM_UP_STEPS = 2  # untimed, because the first steps are slower
_MIN_TIMED_STEPS = 5
_MIN_TIMED_SECONDS = 1.5  # on a busy machine single steps differ by half
_MAX_BUDGET_FRACTION = 0.1  # of the budget goes to the timing, once `_FEWEST_TIMED_STEPS` are timed
_FEWEST_TIMED_STEPS = 2
USUAL_TIMED_STEPS = _WARM_UP_STEPS + _MIN_TIMED_STEPS  # of a step that takes longer than a third of a second
_MIN_STEPS = 20  # of any run
WARNING_FACTOR = 1.2  # times the budget: a run that will take longer is reported
STOP_FACTOR = 1.25  # times the budget: the run stops


@dataclass(frozen=True)
class StepTiming:
    """Time and memory of a step.

    Attributes:
        seconds: Median time of a step.
        fastest: Shortest time of a step, in seconds.
        bytes: Additional memory at the peak; None where it cannot be measured.
        spent: Seconds that the timing took.
    """

    seconds: float
    fastest: float
    bytes: int | None = None
    spent: float = 0.0

    def steps_in(self, seconds: float) -> int:
        """Return the number of steps that fit into `seconds`, including the time of the timing; at least 20."""
        return max(_MIN_STEPS, round((seconds - self.spent) / self.seconds))

    def log(self, report: Reporter, *, steps: int, description: str) -> None:
        """Report the expected time and memory of a run.

        Args:
            report: Receives the metrics `expected_seconds` and `expected_bytes`, and a message.
            steps: Steps of the run.
            description: Start of the message, such as "Training on 1 labelled scan".
        """
        seconds = steps * self.seconds
        report.metric("expected_seconds", round(seconds, 1), steps=steps)
        report.metric("expected_bytes", self.bytes)
        memory = "" if self.bytes is None else f" and {self.bytes / 1e9:.1f} GB of memory"
        report.info(f"{description} in {steps} steps: about {duration(seconds)}{memory}.")


def time_steps(step: Callable[[int], object], *, device: torch.device, budget: float | None = None) -> StepTiming:
    """Take steps 0, 1, … until their median time is reliable.

    Args:
        step: Takes the step of this number.
        device: Device whose memory is measured.
        budget: Time of the whole run in seconds; the timing takes about a tenth of it at most.
    """
    start = time.monotonic()
    with measure_peak(device) as cost:
        for index in range(_WARM_UP_STEPS):
            step(index)
    times: list[float] = []
    limit = _MAX_BUDGET_FRACTION * budget if budget else float("inf")
    while len(times) < _MIN_TIMED_STEPS or sum(times) < _MIN_TIMED_SECONDS:
        if len(times) >= _FEWEST_TIMED_STEPS and time.monotonic() - start > limit:
            break
        before = time.monotonic()
        step(_WARM_UP_STEPS + len(times))
        times.append(time.monotonic() - before)
    median = max(statistics.median(times), 1e-6)
    return StepTiming(median, min(times), cost.bytes, time.monotonic() - start)


class BudgetMonitor:
    """Monitor of a run's time budget: warns once when the run will be late, and stops it at a fixed excess.

    Args:
        seconds: The budget; None for a run without one.
        fastest: Shortest time of a step, in seconds.
        report: Receives the warnings.
    """

    def __init__(self, seconds: float | None, fastest: float, report: Reporter) -> None:
        self.seconds, self.fastest, self.report = seconds, fastest, report
        self._warned = False

    def is_exceeded(self, spent: float, *, step: int, planned: int) -> bool:
        """Return True when the run must stop, after `step` of `planned` steps and `spent` seconds."""
        if self.seconds is None or step >= planned:
            return False
        least_seconds = spent + self.fastest * (planned - step)
        if not self._warned and least_seconds > WARNING_FACTOR * self.seconds:
            self._warned = True
            self.report.warning(
                "slower_than_planned",
                f"The computer has become slower: all {planned} steps would take at least {duration(least_seconds)} "
                f"instead of {duration(self.seconds)}.",
                f"Training stops after {duration(STOP_FACTOR * self.seconds)}. Close other programs, or use a longer "
                "--budget.",
            )
        if spent <= STOP_FACTOR * self.seconds:
            return False
        self.report.warning(
            "budget_passed",
            f"Training stopped at {STOP_FACTOR:g} times its budget, after {step} of {planned} steps. The model can be "
            "used, but the learning rate had not decayed to its end.",
            "Train again with a longer --budget, or with fewer other programs running.",
        )
        return True
