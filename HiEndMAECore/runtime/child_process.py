"""A child process whose processor time is measured, with that of its own children.

Wall clocks of shared machines are unreliable, so comparisons of methods count processor time.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_POLL_SECONDS = 0.1
_STOP_SECONDS = 30.0  # a command that is asked to stop saves first


@dataclass(frozen=True)
class ChildResult:
    """The end of a child process.

    Attributes:
        exit_code: 0 for success; negative for a signal.
        output: Its standard output.
        cpu_seconds: Processor time of the process and of the processes that it started.
        clock_seconds: Time by the clock.
    """

    exit_code: int
    output: str
    cpu_seconds: float
    clock_seconds: float


def run_child(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    log: Path,
    check: Callable[[], None] = lambda: None,
    folder: Path | None = None,
) -> ChildResult:
    """Run a program to its end.

    Args:
        command: The program and its arguments.
        environment: Its whole environment.
        log: File to which its standard error is appended; its standard output lies beside it, as LOG.out.
        check: Called ten times a second. When it raises, the child is ended and the exception goes on.
        folder: Working directory of the child.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    output = log.with_name(log.name + ".out")
    started = time.monotonic()
    with log.open("ab") as errors, output.open("wb") as out:
        process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=out, stderr=errors, env=dict(environment), cwd=folder
        )
        with _ended_on_error(process):
            cpu_seconds = _wait_by_usage(process, check) if hasattr(os, "wait4") else _wait_by_samples(process, check)
    text = output.read_text(encoding="utf-8", errors="replace")
    return ChildResult(int(process.returncode), text, cpu_seconds, time.monotonic() - started)


def thread_environment(threads: int) -> dict[str, str]:
    """Return the variables that limit the threads of numerical libraries."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return dict.fromkeys((*names, "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"), str(threads))


def _wait_by_usage(process: subprocess.Popen, check: Callable[[], None]) -> float:
    """Wait for a child and return the processor time that the system counted, with that of its ended children."""
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)  # Popen cannot ask for it any more
            return usage.ru_utime + usage.ru_stime
        check()
        time.sleep(_POLL_SECONDS)


def _wait_by_samples(process: subprocess.Popen, check: Callable[[], None]) -> float:
    """Wait for a child and return the processor time that was last seen. Windows does not keep it after the end."""
    import psutil

    seen: dict[int, float] = {}
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):
            parent = psutil.Process(process.pid)
            for one in (parent, *parent.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    times = one.cpu_times()
                    seen[one.pid] = times.user + times.system
        check()
        time.sleep(_POLL_SECONDS)
    return sum(seen.values())


@contextlib.contextmanager
def _ended_on_error(process: subprocess.Popen) -> Iterator[None]:
    """End the child when the block raises: first by asking, then by force."""
    try:
        yield
    except BaseException:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise
