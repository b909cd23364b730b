"""Report progress as JSON events or a console bar, and receive requests to finish or cancel.

Usage:

    with Reporter(command="segment", as_events=True, control=file) as report:
        for step in report.steps("tiles", count):     # progress bar, time left, cancel
            ...
        report.finished({"label": path})

Loops call `report.check()`, which raises `Cancelled` when the run is to stop, and read `report.finish_requested`, which is
True when a usable result is wanted as soon as possible. `control.RunControl` receives both requests.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from HiEndMAECore import __version__
from HiEndMAECore.errors import Cancelled, HiEndMAEError

from . import events
from .console import Console
from .control import RunControl

_PROGRESS_INTERVAL_SECONDS = 0.25


class Reporter:
    """The reports of one run, to a program as events or to a person on the console.

    Args:
        command: The name of the command, which the first event carries.
        as_events: Write events to `stream` instead of progress bars and sentences to standard error.
        control: Control file, see `RunControl`.
        parent_pid: Process whose end cancels the run.
        stream: Where events go; standard output by default.
        quiet: Write nothing to the console.

    Attributes:
        warnings: Every warning of the run once, each {"code", "message", "advice"}.
    """

    def __init__(
        self,
        *,
        command: str = "run",
        as_events: bool = False,
        control: Path | None = None,
        parent_pid: int | None = None,
        stream: TextIO | None = None,
        quiet: bool = False,
    ) -> None:
        self.command = command
        self.warnings: list[dict[str, str]] = []
        self._muted = False
        self._stream = (stream or sys.stdout) if as_events else None
        self._console = None if as_events or quiet else Console(sys.stderr)
        self._output = sys.stdout  # commands redirect it later, because libraries print
        self._control = RunControl(control, parent_pid)
        self._lock = threading.Lock()
        self._stages: dict[str, _StageTiming] = {}

    def __enter__(self) -> Reporter:
        self._control.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._control.close()
        if self._console:
            self._console.close()

    def started(self, config: Mapping[str, Any]) -> None:
        """Emit the first event of a run, with the config that replays it."""
        self._emit("started", door=self.command, version=__version__, config=dict(config))

    def progress(self, stage: str, step: int, total: int, **values: Any) -> None:
        """Report that `step` of `total` steps of a stage are done.

        At most four reports a second are emitted; the first and the last one of a stage always are.

        Args:
            stage: The name of the stage.
            step: Steps that are done.
            total: Steps of the whole stage.
            values: Further fields of the event; numbers also appear beside the progress bar.

        Raises:
            Cancelled: The run is to stop.
        """
        self.check()
        timing = self._stages.setdefault(stage, _StageTiming())
        if not timing.is_due(step, total):
            return
        seconds_left = timing.seconds_left(step, total)
        self._emit("progress", stage=stage, step=step, total=total, seconds_left=seconds_left, **values)
        if self._console and not self._muted:
            self._console.progress(stage, step, total, seconds_left, values)

    def steps(self, stage: str, total: int, **values: Any) -> Iterator[int]:
        """Yield the numbers of `range(total)`, and report progress after each of them. Arguments as in `progress`."""
        self.progress(stage, 0, total, **values)
        for step in range(total):
            yield step
            self.progress(stage, step + 1, total, **values)

    def metric(self, name: str, value: float | None, **values: Any) -> None:
        """Emit a number, such as a Dice, a loss or a speed, with further fields in `values`."""
        self._emit("metric", name=name, value=value, **values)

    def preview(self, path: Path) -> None:
        """Announce a picture that has been written and can be shown."""
        self._emit("preview", path=str(path))

    def warning(self, code: str, message: str, advice: str = "") -> None:
        """Report something that the person should know while the run goes on. An equal warning is reported once.

        Args:
            code: Stable identifier in snake case.
            message: One sentence that names the file or the value.
            advice: One sentence that says what to do, or an empty text.
        """
        warning = {"code": code, "message": message, "advice": advice}
        if warning in self.warnings:
            return
        self.warnings.append(warning)
        self._emit("warning", **warning)
        if self._console and not self._muted:
            self._console.info(f"Warning: {message} {advice}".rstrip())

    def info(self, text: str) -> None:
        """Write one sentence to the console; programs that read events do not get it."""
        if self._console and not self._muted:
            self._console.info(text)

    def print_result(self, text: str) -> None:
        """Write one line of a result, such as a table, to standard output; programs that read events do not get it."""
        if self._console and not self._muted:
            with contextlib.suppress(OSError):  # the reader, such as `head`, is gone
                self._output.write(text + "\n")

    def mute(self) -> None:
        """Suppress all output except errors. All processes of a run but the first one are muted."""
        self._muted = True

    def finished(self, outputs: dict[str, Any]) -> None:
        """Emit the last event of a successful run, with its outputs by name."""
        self._emit("finished", outputs={name: str(value) for name, value in outputs.items()})

    def failed(self, error: HiEndMAEError) -> None:
        """Report the error that ended the run. This is its last event."""
        self._emit("failed", code=error.code, message=error.message, advice=error.advice)
        if self._console:
            self._console.info(str(error))

    @property
    def finish_requested(self) -> bool:
        """True when a usable result is wanted as soon as possible."""
        return self._control.finish_requested

    def request_finish(self) -> None:
        """Ask the run for a usable result as soon as possible."""
        self._control.request_finish()

    def cancel(self) -> None:
        """Ask the run to stop at its next `check`."""
        self._control.request_cancel()

    def check(self) -> None:
        """Raise `Cancelled` when the run is to stop."""
        if self._control.cancel_requested:
            raise Cancelled()

    def _emit(self, event: str, **fields: Any) -> None:
        """Write one event as a line, unless the run is muted or nobody reads events."""
        if self._stream is None or (self._muted and event != "failed"):
            return
        line = events.encode(event, **fields)
        try:
            with self._lock:
                self._stream.write(line + "\n")
                self._stream.flush()
        except (
            OSError,
            ValueError,
        ):  # the reader is gone (EINVAL on Windows), and the run goes on until it is cancelled
            self._stream = None


class _StageTiming:
    """The timing of one stage: when a report is due, and the remaining time from the more recent half of the steps."""

    def __init__(self) -> None:
        self._marks: list[tuple[float, int]] = []  # (time in seconds, steps done) of each report
        self._reported_at = float("-inf")

    def is_due(self, step: int, total: int) -> bool:
        """Return whether progress is to be reported now. A step below the last one starts the stage again."""
        now = time.monotonic()
        if not self._marks or step < self._marks[-1][1]:
            self._marks, self._reported_at = [(now, step)], float("-inf")
        if step >= total or now - self._reported_at >= _PROGRESS_INTERVAL_SECONDS:
            self._reported_at = now
            self._marks.append((now, step))
            return True
        return False

    def seconds_left(self, step: int, total: int) -> float | None:
        """Return the expected time until the stage is done, None before the second step."""
        now, _ = self._marks[-1]
        start, first_step = self._marks[len(self._marks) // 2 - 1] if len(self._marks) > 3 else self._marks[0]
        if step <= first_step:
            return None
        return round((now - start) / (step - first_step) * (total - step), 1)
