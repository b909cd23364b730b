"""The one object through which a run speaks (events or bars) and is spoken to (control file, signals, parent).

Usage:

    with Reporter.of(config, door="segment") as report:
        for step in report.steps("tiles", count):     # bar, time left, cancel
            ...
        report.finished({"label": path})

Work that asks `report.check()` in its loops can be cancelled; `report.finish_requested` says that a usable result is
wanted now. Both are set by a thread that looks at the control file and at the parent process every second.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from HiEndMAECore import __version__
from HiEndMAECore.errors import Cancelled, HiEndMAEError
from HiEndMAECore.reporting import events
from HiEndMAECore.runtime.processes import process_exists

from .console import Console

_LOOK_EVERY = 1.0  # seconds
_GRACE = 60.0  # seconds that a run without parent has to end by itself


class Reporter:
    """Speaks events on `stream` when `as_events`, else to a person through a `Console` on standard error."""

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
        self._muted = False
        self.warnings: list[dict[str, str]] = []
        self._stream = (stream or sys.stdout) if as_events else None
        self._console = None if as_events or quiet else Console(sys.stderr)
        self._control = control
        self._parent_pid = parent_pid
        self._cancel = threading.Event()
        self._finish = threading.Event()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._stages: dict[str, _Stage] = {}
        self._watcher: threading.Thread | None = None

    def started(self, config: Mapping[str, Any]) -> None:
        """Emit the first event of a run, with the configuration that replays it."""
        self._emit("started", door=self.command, version=__version__, config=dict(config))

    def __enter__(self) -> Reporter:
        if self._control is not None or self._parent_pid is not None:
            self._look()
            self._watcher = threading.Thread(target=self._watch, name="control", daemon=True)
            self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        if self._console:
            self._console.close()

    # -- speaking ------------------------------------------------------------------------------------------------

    def progress(self, stage: str, step: int, total: int, **values: Any) -> None:
        """`step` of `total` of `stage` is done. Throttled to a few a second; the first and last always go out."""
        self.check()
        state = self._stages.setdefault(stage, _Stage())
        if not state.due(step, total):
            return
        left = state.seconds_left(step, total)
        self._emit("progress", stage=stage, step=step, total=total, seconds_left=left, **values)
        if self._console and not self._muted:
            self._console.progress(stage, step, total, left, values)

    def steps(self, stage: str, total: int, **values: Any) -> Iterator[int]:
        """`range(total)` with progress after each turn."""
        self.progress(stage, 0, total, **values)
        for step in range(total):
            yield step
            self.progress(stage, step + 1, total, **values)

    def metric(self, name: str, value: float | None, **values: Any) -> None:
        """A number worth keeping: a Dice, a loss, a speed."""
        self._emit("metric", name=name, value=value, **values)

    def preview(self, path: Path) -> None:
        """A file worth looking at now."""
        self._emit("preview", path=str(path))

    def warning(self, code: str, message: str, advice: str = "") -> None:
        """Something the person should know; the run goes on. Kept in `warnings`, told once."""
        warning = {"code": code, "message": message, "advice": advice}
        if warning in self.warnings:
            return
        self.warnings.append(warning)
        self._emit("warning", **warning)
        if self._console and not self._muted:
            self._console.info(f"Warning: {message} {advice}".rstrip())

    def info(self, text: str) -> None:
        """A plain sentence for a person; programs do not get it."""
        if self._console and not self._muted:
            self._console.info(text)

    def mute(self) -> None:
        """Say nothing any more but what failed: one of many processes speaks for all."""
        self._muted = True

    def finished(self, outputs: dict[str, Any]) -> None:
        """The last event of a run that did its work."""
        self._emit("finished", outputs={name: str(value) for name, value in outputs.items()})

    def failed(self, error: HiEndMAEError) -> None:
        """The last event of a run that did not."""
        self._emit("failed", code=error.code, message=error.message, advice=error.advice)
        if self._console:
            self._console.info(str(error))

    # -- being spoken to -----------------------------------------------------------------------------------------

    @property
    def finish_requested(self) -> bool:
        """True once a usable result is wanted now."""
        return self._finish.is_set()

    def cancel(self) -> None:
        """Ask the run to stop at its next `check`."""
        self._cancel.set()

    def check(self) -> None:
        """Raise `Cancelled` when somebody asked for it."""
        if self._cancel.is_set():
            raise Cancelled()

    def _watch(self) -> None:
        while not self._closed.wait(_LOOK_EVERY):
            self._look()

    def _look(self) -> None:
        word = _read_word(self._control)
        if word == "cancel":
            self._cancel.set()
        elif word == "finish":
            self._finish.set()
        if self._parent_pid is not None and not process_exists(self._parent_pid):
            self._cancel.set()
            self._parent_pid = None
            threading.Thread(target=self._end_hard, name="orphan", daemon=True).start()

    def _end_hard(self) -> None:
        """Nobody is left to wait for an orphan: what is written is complete (all files are renamed into place)."""
        if not self._closed.wait(_GRACE):
            os._exit(Cancelled.exit_code)

    def _emit(self, event: str, **fields: Any) -> None:
        if self._stream is None or (self._muted and event != "failed"):
            return
        line = events.encode(event, **fields)
        try:
            with self._lock:
                self._stream.write(line + "\n")
                self._stream.flush()
        except (OSError, ValueError):  # nobody reads any more (EINVAL on Windows): the run goes on until told otherwise
            self._stream = None


class _Stage:
    """Time of one stage: when to speak, and how long it will still take (from the recent half of its steps)."""

    def __init__(self) -> None:
        self._marks: list[tuple[float, int]] = []
        self._spoken = float("-inf")

    def due(self, step: int, total: int) -> bool:
        now = time.monotonic()
        if not self._marks or step < self._marks[-1][1]:
            self._marks, self._spoken = [(now, step)], float("-inf")
        if step >= total or now - self._spoken >= 0.25:
            self._spoken = now
            self._marks.append((now, step))
            return True
        return False

    def seconds_left(self, step: int, total: int) -> float | None:
        now, _ = self._marks[-1]
        start, first = self._marks[len(self._marks) // 2 - 1] if len(self._marks) > 3 else self._marks[0]
        if step <= first:
            return None
        return round((now - start) / (step - first) * (total - step), 1)


def _read_word(file: Path | None) -> str:
    if file is None:
        return ""
    try:
        return file.read_text(encoding="utf-8").strip().lower()
    except (OSError, UnicodeDecodeError):
        return ""  # not there yet, or being written: the next look sees it
