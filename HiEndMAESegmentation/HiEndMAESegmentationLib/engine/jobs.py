"""One door of the engine in a process of its own, watched from Slicer's main thread without ever waiting for it.

Usage:

    job = Job("segment", SegmentConfig(…), on_event=show, on_end=done)
    job.start()
    job.finish()     # stop now, leave a usable result
    job.cancel()     # politely; after GRACE seconds the whole process tree is ended

Two threads read the child's outputs into a queue; a timer on the main thread empties it and calls `on_event` with each
event and `on_end`, once, with a `JobEnd`. Everything the child wrote is kept in `job.log`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import qt
import slicer
from slicer.i18n import tr as _

from HiEndMAECore.configuration import DoorConfig, to_json
from HiEndMAECore.reporting.events import decode
from HiEndMAESegmentationLib import ENGINE_FOLDER, MODULE_FOLDER

GRACE = 2.0  # seconds that a cancelled job has to end by itself
_LOOK_EVERY = 50  # ms
_AT_ONCE = 0.02  # seconds of the main thread that one look may take
_LONGEST_LINE = 1_000_000
_LOGS_KEPT = 20


@dataclass(frozen=True)
class JobEnd:
    """How a job ended. state: "finished", "failed", "cancelled" or "killed" (gone without a last word)."""

    state: str
    code: str = ""
    message: str = ""
    advice: str = ""
    outputs: dict[str, str] = field(default_factory=dict)
    exit_code: int | None = None


class Job:
    """A run of `python -m HiEndMAECore.<door>` with `config`; the door "kit" is the module's own."""

    def __init__(
        self,
        door: str,
        config: DoorConfig,
        *,
        on_event: Callable[[dict[str, Any]], None],
        on_end: Callable[[JobEnd], None],
    ) -> None:
        self.door = door
        self.log = _new_log(door)
        self.end: JobEnd | None = None
        self.pid: int | None = None
        self._on_event, self._on_end = on_event, on_end
        self._folder = Path(slicer.app.temporaryPath) / f"HiEndMAE-{uuid.uuid4().hex}"
        self._control = self._folder / "control"
        self._config = dataclasses.replace(config, events=True, control=self._control, parent_pid=os.getpid())
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._open_pipes = 0
        self._last: dict[str, Any] | None = None
        self._cancelled_at: float | None = None
        self._gone_at: float | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[str] | None = None
        self._timer = qt.QTimer()
        self._timer.setInterval(_LOOK_EVERY)
        self._timer.connect("timeout()", self._look)

    def start(self) -> None:
        """Start the child. A computer without PythonSlicer, or one that forbids it, ends the job at once, in words."""
        settings = self._folder / "config.json"
        try:
            self._folder.mkdir(mode=0o700)
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self._log = self.log.open("w", encoding="utf-8", errors="replace")
            settings.write_text(json.dumps(to_json(self._config)), encoding="utf-8")
        except OSError as error:
            told = _("The job's files could not be written ({reason}).").format(reason=error.strerror)
            self._finish(JobEnd("failed", code_of(error), told))
            return
        python = shutil.which("PythonSlicer")
        if python is None:
            advice = _("Install Slicer again: its folder lacks PythonSlicer.")
            self._finish(JobEnd("failed", "python_absent", _("Slicer's Python was not found."), advice))
            return
        name, folder = f"HiEndMAECore.{self.door}", ENGINE_FOLDER
        if self.door == "kit":
            name, folder = "HiEndMAESegmentationLib.engine.offline_package", MODULE_FOLDER
        command = [python, "-m", name, "--config", str(settings), "--events"]
        hidden: dict[str, Any] = {"start_new_session": True}  # its own group: the tree can be ended as one
        if sys.platform == "win32":
            hidden = {"creationflags": subprocess.CREATE_NO_WINDOW}
        try:
            self._process = subprocess.Popen(
                command,
                cwd=folder,  # `-m` looks here: Slicer's additional module paths do not reach PythonSlicer
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"},
                **hidden,
            )
        except OSError as error:
            told = _("The job could not be started ({reason}).").format(reason=error.strerror)
            self._finish(JobEnd("failed", "not_started", told, _("Is a virus scanner in the way?")))
            return
        self.pid = self._process.pid
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            self._open_pipes += 1
            threading.Thread(target=self._read, args=(stream,), name="HiEndMAE reader", daemon=True).start()
        self._timer.start()

    @property
    def running(self) -> bool:
        """Started, and not ended."""
        return self._process is not None and self.end is None

    def finish(self) -> None:
        """Ask for a usable result now."""
        self._say("finish")

    def cancel(self) -> None:
        """Ask to stop; what has not stopped after `GRACE` seconds is ended."""
        if self.running and self._cancelled_at is None:
            self._cancelled_at = time.monotonic()
            self._say("cancel")

    def kill(self) -> None:
        """End the process tree now, without a word to anybody: Slicer is closing."""
        self._timer.stop()
        self._end_tree()
        self._clean_up()

    def _say(self, word: str) -> None:
        with contextlib.suppress(OSError):  # a full disk: the cancelled job is ended after its grace
            self._control.write_text(word, encoding="utf-8")

    # -- the child's words: reader threads ---------------------------------------------------------------------------

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            for line in iter(lambda: stream.readline(_LONGEST_LINE), b""):
                self._lines.put(line.decode("utf-8", "replace").rstrip("\r\n"))
        self._lines.put(None)

    # -- the main thread ---------------------------------------------------------------------------------------------

    def _look(self) -> None:
        until = time.monotonic() + _AT_ONCE
        while time.monotonic() < until:
            try:
                line = self._lines.get_nowait()
            except queue.Empty:
                self._look_at_process()
                return
            if line is None:
                self._open_pipes -= 1
            else:
                self._hear(line)

    def _hear(self, line: str) -> None:
        assert self._log is not None
        with contextlib.suppress(OSError):  # the disk is full: the job goes on, its log does not
            self._log.write(line + "\n")
            self._log.flush()
        event = decode(line) if line.startswith("{") else None
        if event is None:
            return
        if event["event"] in ("finished", "failed"):
            self._last = event
        else:
            self._on_event(event)

    def _look_at_process(self) -> None:
        now = time.monotonic()
        assert self._process is not None
        if self._cancelled_at is not None and now - self._cancelled_at > GRACE:
            self._end_tree()
        if self._process.poll() is None:
            return
        self._gone_at = self._gone_at or now
        if self._open_pipes and now - self._gone_at < 1.0:  # its last words may still be on the way
            return
        self._end_tree()  # a launcher that was killed leaves its child behind
        self._finish(self._judge(self._process.returncode))

    def _judge(self, code: int) -> JobEnd:
        last = self._last
        if last and last["event"] == "finished":
            return JobEnd("finished", outputs=dict(last["outputs"]), exit_code=code)
        if self._cancelled_at is not None or (last and last["code"] == "cancelled"):
            return JobEnd("cancelled", "cancelled", _("Cancelled. Nothing was changed."), exit_code=code)
        if last:
            return JobEnd("failed", last["code"], last["message"], last["advice"], exit_code=code)
        told = _("The job was ended from outside before it was done.")
        advice = _("Most often the computer ran out of memory: close other programs, and try again.")
        return JobEnd("killed", "killed", told, advice, exit_code=code)

    def _finish(self, end: JobEnd) -> None:
        self._timer.stop()
        self.end = end
        self._clean_up()
        self._on_end(end)

    def _clean_up(self) -> None:
        if self._log is not None:
            with contextlib.suppress(OSError):
                self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end_tree(self) -> None:
        if self._process is None:
            return
        if sys.platform == "win32":
            subprocess.run(
                ["taskkill", "/PID", str(self._process.pid), "/T", "/F"],
                capture_output=True,
                check=False,
                creationflags=subprocess.CREATE_NO_WINDOW,
            )
        else:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=0.05)


def code_of(error: Exception) -> str:
    """What `advise` knows the system's error by."""
    return "disk_full" if getattr(error, "errno", None) == errno.ENOSPC else "files_failed"


def _new_log(door: str) -> Path:
    """A log file that outlives the job, beside Slicer's settings; the oldest make room."""
    folder = Path(slicer.app.slicerUserSettingsFilePath).parent / "HiEndMAE" / "logs"
    kept = sorted(folder.glob("*.log"))
    for old in kept[: max(0, len(kept) - _LOGS_KEPT + 1)]:
        with contextlib.suppress(OSError):  # open elsewhere, on Windows
            old.unlink(missing_ok=True)
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    return folder / f"{stamp}_{len(kept):03d}_{door}.log"
