"""What the two training loops share: the time of a run, and the learning rate of a step."""

from __future__ import annotations

import time

import torch

from .schedule import cosine_schedule, set_learning_rate


class RunClock:
    """Clock of a run that may have been interrupted and resumed.

    Args:
        seconds: Time that was spent before this process started.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self._before = seconds
        self._started = time.monotonic()

    @property
    def session_seconds(self) -> float:
        """Seconds since this process started the run."""
        return time.monotonic() - self._started

    @property
    def seconds(self) -> float:
        """Seconds of the whole run."""
        return self._before + self.session_seconds


class Interval:
    """Timer of something that is done every `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.restart()

    def restart(self) -> None:
        """Start the next interval now."""
        self._started = time.monotonic()

    @property
    def is_over(self) -> bool:
        """True when more than `seconds` have passed since the interval started."""
        return time.monotonic() - self._started > self.seconds


def schedule_learning_rate(optimizer: torch.optim.Optimizer, step: int, steps: int, *, warm_up: int) -> float:
    """Set the learning rates of 0-based `step` of `steps`; return the rate of the first parameter group.

    Args:
        optimizer: Optimizer whose groups are set.
        step: The step, counted from 0.
        steps: Steps of the whole run.
        warm_up: Steps of the warm-up.
    """
    return set_learning_rate(optimizer, cosine_schedule(step, steps, warm_up=warm_up))
