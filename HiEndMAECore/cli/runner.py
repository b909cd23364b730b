"""Run a command: parse its config, report its events, and turn what happens into an exit code.

Every command's `main` calls `run_command`. The exit codes are those of `errors`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from HiEndMAECore.errors import EXIT_DONE, Cancelled, HiEndMAEError, classify_exception
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.runtime.processes import started_by_torchrun

from .options import Config, parse, to_json


def run_command(
    config_class: type[Config],
    run: Callable[..., dict[str, Any]],
    argv: Sequence[str] | None,
    *,
    command: str,
    description: str,
) -> int:
    """Run a command and return its exit code.

    Args:
        config_class: The dataclass of the command.
        run: Called as `run(config, report)`; returns the outputs by name.
        argv: The arguments, without the program's name. None takes those of the process.
        command: The name of the command.
        description: The text above the list of options in `--help`.

    Returns:
        0 when `run` returned, otherwise the exit code of the error. A cancelled process of `torchrun` returns 0.
    """
    limit_openmp_spinning()
    arguments = sys.argv[1:] if argv is None else argv
    try:
        config = parse(config_class, arguments, command=command, description=description)
    except HiEndMAEError as error:
        with Reporter(command=command, as_events="--events" in arguments) as report:
            report.failed(error)
        return error.exit_code
    reporter = Reporter(command=command, as_events=config.events, control=config.control, parent_pid=config.parent_pid)
    reporter.started(to_json(config))
    # Libraries that print must not disturb the events, so only the reporter writes to the real standard output.
    with reporter as report, _cancel_on_signals(report), contextlib.redirect_stdout(sys.stderr):
        try:
            outputs = run(config, report)
        except (Exception, KeyboardInterrupt) as error:
            return _report_failure(error, report)
        report.finished(outputs)
    return EXIT_DONE


def _report_failure(error: BaseException, report: Reporter) -> int:
    """Emit the event `failed` for an exception, and return the exit code."""
    if isinstance(error, HiEndMAEError):
        report.failed(error)
        # torchrun takes every other exit code for a crash, and would start a cancelled run again.
        return EXIT_DONE if isinstance(error, Cancelled) and started_by_torchrun() else error.exit_code
    known = Cancelled() if isinstance(error, KeyboardInterrupt) else classify_exception(error)
    if known is None:
        traceback.print_exception(error, file=sys.stderr)
        known = HiEndMAEError(
            "internal_fault",
            f"A fault in HiEndMAE: {type(error).__name__}: {error}.",
            "Please report it, with the text above, on the project's issue page.",
        )
    report.failed(known)
    return known.exit_code


def limit_openmp_spinning() -> None:
    """Let the OpenMP threads of torch spin 3,000 times instead of 300,000 before they sleep. Call it before torch is loaded.

    This concerns GNU OpenMP, which torch uses on Linux. Where other programs need the processor too, a spinning thread
    delays the thread that it waits for. Beside two busy programs on two cores, one minute of training made 4 steps with
    the default, and 39 with this limit. On an idle machine a step takes 4 % longer (`Testing/Benchmarks/results.md`).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


@contextlib.contextmanager
def _cancel_on_signals(report: Reporter) -> Iterator[None]:
    """Cancel the run on Ctrl-C or SIGTERM, so that it saves and ends; a second Ctrl-C interrupts it at once.

    A second SIGTERM does not interrupt the run: schedulers send it to every process of a job, and torchrun passes its own
    on, while the run is still saving.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    cancelled = False

    def on_signal(number: int, _frame: object) -> None:
        nonlocal cancelled
        if cancelled and number == signal.SIGINT:
            raise KeyboardInterrupt
        cancelled = True
        report.cancel()

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
