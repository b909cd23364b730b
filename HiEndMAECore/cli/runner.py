"""From a command line to an exit code: what every door's `main` does.

Parses the config, opens a `Reporter`, runs, and turns whatever happens into the last event and the exit code that
DESIGN promises.
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

from HiEndMAECore.errors import EXIT_DONE, EXIT_FAULT, Cancelled, HiEndMAEError, classify_exception
from HiEndMAECore.reporting.reporter import Reporter

from .options import Config, parse, to_json


def run_command(
    config_class: type[Config],
    run: Callable[..., dict[str, Any]],
    argv: Sequence[str] | None,
    *,
    command: str,
    description: str,
) -> int:
    """Run `run(config, report)` for the command line `argv`; returns the exit code. `run` returns the outputs."""
    limit_openmp_spinning()
    try:
        config = parse(config_class, sys.argv[1:] if argv is None else argv, command=command, description=description)
    except HiEndMAEError as error:
        with Reporter(command=command, as_events="--events" in (argv if argv is not None else sys.argv)) as report:
            report.failed(error)
        return error.exit_code
    # What libraries print must not mix with the events: the reporter keeps the true standard output to itself.
    reporter = Reporter(command=command, as_events=config.events, control=config.control, parent_pid=config.parent_pid)
    reporter.started(to_json(config))
    with reporter as report, _signals(report), contextlib.redirect_stdout(sys.stderr):
        try:
            outputs = run(config, report)
        except HiEndMAEError as error:
            report.failed(error)
            # torchrun takes any other code for a crash, and starts what was cancelled again.
            cancelled_there = isinstance(error, Cancelled) and "TORCHELASTIC_RUN_ID" in os.environ
            return EXIT_DONE if cancelled_there else error.exit_code
        except KeyboardInterrupt:
            report.failed(Cancelled())
            return Cancelled.exit_code
        except Exception as error:
            known = classify_exception(error)
            if known is None:
                traceback.print_exc(file=sys.stderr)
                known = HiEndMAEError(
                    "internal_fault",
                    f"A fault in HiEndMAE: {type(error).__name__}: {error}.",
                    "Please report it, with the text above, on the project's issue page.",
                )
                report.failed(known)
                return EXIT_FAULT
            report.failed(known)
            return known.exit_code
        report.finished(outputs)
    return EXIT_DONE


def limit_openmp_spinning() -> None:
    """Let torch's threads, when it gets loaded, wait for one another 3,000 turns of a loop and then sleep.

    GNU OpenMP, torch's on Linux, lets them turn 300,000 times. Where other programs want the processor too, a thread that
    turns keeps away the one it waits for: beside two busy programs on two cores a minute of learning came to 4 steps, and to
    39 like this. With nothing beside it a step takes 4 % longer (`Testing/Benchmarks/results.md`).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


@contextlib.contextmanager
def _signals(report: Reporter) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask politely (the run saves and leaves); a second Ctrl-C interrupts. A second SIGTERM does not:
    schedulers send it to every process of a job, and torchrun hands its own on, while the run is saving."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def on_signal(number: int, _frame: object) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True
        report.cancel()

    kept = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
