"""Time and memory of learning, told before it starts: a probe of a few steps, and what is made of it.

The schedule is fixed from then on; a machine that turns out slower is told, and stops at a fixed excess over the budget.
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

_WARM_UP = 2  # steps that are slow for being the first
_TIMED = 5  # steps at least, and
_SECONDS = 1.5  # so long at least: on a busy machine single steps differ by half
_SHARE = 0.1  # of the budget at most, once `_FEWEST` steps were timed
_FEWEST = 2
_LEAST_STEPS = 20
LATE = 1.2  # times the budget: from there on it is told
STOP = 1.25  # times the budget: there learning ends


@dataclass(frozen=True)
class StepTiming:
    """What a step costs. seconds: the median; fastest: of all timed; bytes: extra memory at its peak, None where that
    cannot be seen; spent: seconds of the probe."""

    seconds: float
    fastest: float
    bytes: int | None = None
    spent: float = 0.0

    def steps_in(self, seconds: float) -> int:
        """Steps that fit into `seconds`, of which the probe took its part; never so few that nothing is learned."""
        return max(_LEAST_STEPS, round((seconds - self.spent) / self.seconds))

    def tell(self, report: Reporter, *, steps: int, what: str) -> None:
        """Events `expected_seconds` and `expected_bytes`, and one sentence. what: "Learning from one scan"."""
        seconds = steps * self.seconds
        report.metric("expected_seconds", round(seconds, 1), steps=steps)
        report.metric("expected_bytes", self.bytes)
        memory = "" if self.bytes is None else f" and {self.bytes / 1e9:.1f} GB of memory"
        report.info(f"{what} in {steps} steps: about {duration(seconds)}{memory}.")


def time_steps(step: Callable[[int], object], *, device: torch.device, budget: float | None = None) -> StepTiming:
    """Take steps 0, 1, … until their median is sturdy. budget: seconds of which the probe may take but a share."""
    start = time.monotonic()
    with measure_peak(device) as footprint:
        for index in range(_WARM_UP):
            step(index)
    took: list[float] = []
    most = _SHARE * budget if budget else float("inf")
    while len(took) < _TIMED or sum(took) < _SECONDS:
        if len(took) >= _FEWEST and time.monotonic() - start > most:
            break
        before = time.monotonic()
        step(_WARM_UP + len(took))
        took.append(time.monotonic() - before)
    median = max(statistics.median(took), 1e-6)
    return StepTiming(median, min(took), footprint.bytes, time.monotonic() - start)


class BudgetMonitor:
    """Watches a run against its budget: tells once that it will be late, and ends it at the latest.

    seconds: the budget, None for none. fastest: seconds that a step takes at least.
    """

    def __init__(self, seconds: float | None, fastest: float, report: Reporter) -> None:
        self.seconds, self.fastest, self.report = seconds, fastest, report
        self._told = False

    def over(self, spent: float, *, step: int, planned: int) -> bool:
        """Must learning end, after `step` of `planned` steps and `spent` seconds?"""
        if self.seconds is None or step >= planned:
            return False
        surely = spent + self.fastest * (planned - step)
        if not self._told and surely > LATE * self.seconds:
            self._told = True
            self.report.warning(
                "slower_than_planned",
                f"The computer is slower than before learning: all {planned} steps would take {duration(surely)} at "
                f"least, not {duration(self.seconds)}.",
                f"Learning stops after {duration(STOP * self.seconds)}; leave the computer to it, or use a longer --budget.",
            )
        if spent <= STOP * self.seconds:
            return False
        self.report.warning(
            "budget_passed",
            f"Learning stopped at {STOP:g} times its budget, after {step} of {planned} steps. The model can be used, but "
            "was stopped before the learning rate had come down.",
            "Teach again with a longer --budget, or with less running beside it.",
        )
        return True
