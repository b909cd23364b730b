"""Jobs run in worker processes within a memory budget; a dying worker costs its job alone."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from HiEndMAECore.runtime.worker_pool import run_jobs


def dies_of(job: int) -> int:
    """Work that the system kills when its job is 2."""
    if job == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return job * job


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_worker_that_dies_costs_its_job_alone() -> None:
    done = dict(run_jobs(dies_of, range(6), workers=2, check=lambda: None))
    assert (done.pop(2).code, done) == ("worker_died", {0: 0, 1: 1, 3: 9, 4: 16, 5: 25})


def slow(job: float) -> float:
    time.sleep(0.3)
    return time.monotonic()


def test_jobs_stay_within_the_memory_budget() -> None:
    ended = [end for _, end in run_jobs(slow, [1.0, 1.0, 5.0], workers=3, check=lambda: None, cost=float, budget=2.0)]
    assert ended[2] - max(ended[:2]) > 0.25  # the large one waited until it was alone
