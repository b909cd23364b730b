"""Run one command of the engine in a child process, and follow it from Slicer's main thread without ever blocking.

Usage:

    job = Job("segment", SegmentConfig(…), on_event=show, on_end=done)
    job.start()
    job.finish()     # stop now, with a usable result
    job.cancel()     # ask it to stop; after GRACE_SECONDS the whole process tree is ended

Two threads read the child's outputs into a queue. A timer on the main thread empties it, and calls `on_event` with each
event and `on_end`, once, with a `JobEnd`. Everything that the child wrote is in `job.log`.
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

from HiEndMAECore.cli.options import CommandConfig, to_json
from HiEndMAECore.errors import HiEndMAEError
from HiEndMAECore.reporting.events import decode
from HiEndMAESegmentationLib import ENGINE_FOLDER, MODULE_FOLDER

GRACE_SECONDS = 2.0  # a cancelled job has this long to end by itself
OFFLINE_PACKAGE = "offline-package"  # the one command that belongs to the module, not to the engine
_POLL_MS = 50
_POLL_LIMIT_SECONDS = 0.02  # longest time that one poll may keep the main thread
_LONGEST_LINE_BYTES = 1_000_000
_LOGS_KEPT = 20


@dataclass(frozen=True)
class JobEnd:
    """The end of a job; `state` is "finished", "failed", "cancelled" or "killed" (ended without a last event)."""

    state: str
    code: str = ""
    message: str = ""
    advice: str = ""
    outputs: dict[str, str] = field(default_factory=dict)
    exit_code: int | None = None


class Job:
    """A run of one command in a child process.

    Args:
        command: A command of `HiEndMAECore`, or `OFFLINE_PACKAGE`.
        config: The command's options; events, control file and parent process are filled in here.
        on_event: Called with every event except the last one.
        on_end: Called once, when the child process is gone.
    """

    def __init__(
        self,
        command: str,
        config: CommandConfig,
        *,
        on_event: Callable[[dict[str, Any]], None],
        on_end: Callable[[JobEnd], None],
    ) -> None:
        self.command = command
        self.log = _new_log(command)
        self.end: JobEnd | None = None
        self.pid: int | None = None
        self._on_event, self._on_end = on_event, on_end
        self._folder = Path(slicer.app.temporaryPath) / f"HiEndMAE-{uuid.uuid4().hex}"
        self._control = self._folder / "control"
        self._config = dataclasses.replace(config, events=True, control=self._control, parent_pid=os.getpid())
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._open_pipes = 0
        self._last_event: dict[str, Any] | None = None
        self._cancel_time: float | None = None
        self._exit_time: float | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._log_stream: IO[str] | None = None
        self._timer = qt.QTimer()
        self._timer.setInterval(_POLL_MS)
        self._timer.connect("timeout()", self._poll)

    def start(self) -> None:
        """Start the child process; if that is impossible, the job ends at once with a message."""
        settings = self._folder / "config.json"
        try:
            self._folder.mkdir(mode=0o700)
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self._log_stream = self.log.open("w", encoding="utf-8", errors="replace")
            settings.write_text(json.dumps(to_json(self._config)), encoding="utf-8")
        except OSError as error:
            message = _("The job's files could not be written ({reason}).").format(reason=error.strerror)
            self._finish(JobEnd("failed", code_of(error), message))
            return
        python = shutil.which("PythonSlicer")
        if python is None:
            advice = _("Install Slicer again: its folder lacks PythonSlicer.")
            self._finish(JobEnd("failed", "python_absent", _("Slicer's Python was not found."), advice))
            return
        try:
            self._process = _start_process(python, self.command, settings)
        except OSError as error:
            message = _("The job could not be started ({reason}).").format(reason=error.strerror)
            self._finish(JobEnd("failed", "not_started", message, _("Does a virus scanner block it?")))
            return
        self.pid = self._process.pid
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            self._open_pipes += 1
            threading.Thread(target=self._read, args=(stream,), name="HiEndMAE reader", daemon=True).start()
        self._timer.start()

    @property
    def running(self) -> bool:
        """Return whether the job has started and has not ended."""
        return self._process is not None and self.end is None

    def finish(self) -> None:
        """Ask the command to stop now, with a usable result."""
        self._request("finish")

    def cancel(self) -> None:
        """Ask the command to stop; if it still runs after `GRACE_SECONDS`, its process tree is ended."""
        if self.running and self._cancel_time is None:
            self._cancel_time = time.monotonic()
            self._request("cancel")

    def kill(self) -> None:
        """End the process tree now, without calling `on_end`: Slicer is closing."""
        self._timer.stop()
        self._end_process_tree()
        self._clean_up()

    def _request(self, word: str) -> None:
        """Write a request into the control file."""
        with contextlib.suppress(OSError):  # the disk is full: a cancelled job is ended after its grace time
            self._control.write_text(word, encoding="utf-8")

    # -- reader threads ----------------------------------------------------------------------------------------------

    def _read(self, stream: IO[bytes]) -> None:
        """Put the lines of one output into the queue, and None at its end."""
        with stream:
            for line in iter(lambda: stream.readline(_LONGEST_LINE_BYTES), b""):
                self._lines.put(line.decode("utf-8", "replace").rstrip("\r\n"))
        self._lines.put(None)

    # -- main thread -------------------------------------------------------------------------------------------------

    def _poll(self) -> None:
        """Handle the lines in the queue for a short time, then see whether the process has ended."""
        deadline = time.monotonic() + _POLL_LIMIT_SECONDS
        while time.monotonic() < deadline:
            try:
                line = self._lines.get_nowait()
            except queue.Empty:
                self._check_process()
                return
            if line is None:
                self._open_pipes -= 1
            else:
                self._handle_line(line)

    def _handle_line(self, line: str) -> None:
        """Write a line into the log, and pass it on if it is an event."""
        assert self._log_stream is not None
        with contextlib.suppress(OSError):  # the disk is full: the job goes on without its log
            self._log_stream.write(line + "\n")
            self._log_stream.flush()
        event = decode(line) if line.startswith("{") else None
        if event is None:
            return
        if event["event"] in ("finished", "failed"):
            self._last_event = event
        else:
            self._on_event(event)

    def _check_process(self) -> None:
        """End a cancelled job whose grace time is over, and finish the job once its process is gone."""
        now = time.monotonic()
        assert self._process is not None
        if self._cancel_time is not None and now - self._cancel_time > GRACE_SECONDS:
            self._end_process_tree()
        if self._process.poll() is None:
            return
        self._exit_time = self._exit_time or now
        if self._open_pipes and now - self._exit_time < 1.0:  # the last lines may not have arrived yet
            return
        self._end_process_tree()  # a launcher that was killed leaves its child running
        self._finish(self._end_of(self._process.returncode))

    def _end_of(self, exit_code: int) -> JobEnd:
        """Return how the job ended, from its last event and its exit code."""
        last = self._last_event
        if last and last["event"] == "finished":
            return JobEnd("finished", outputs=dict(last["outputs"]), exit_code=exit_code)
        if self._cancel_time is not None or (last and last["code"] == "cancelled"):
            return JobEnd("cancelled", "cancelled", _("Cancelled. Nothing was changed."), exit_code=exit_code)
        if last:
            return JobEnd("failed", last["code"], last["message"], last["advice"], exit_code=exit_code)
        message = _("The job was ended from outside before it was done.")
        advice = _("Most often the computer ran out of memory: close other programs, and try again.")
        return JobEnd("killed", "killed", message, advice, exit_code=exit_code)

    def _finish(self, end: JobEnd) -> None:
        """Store how the job ended, remove its files and call `on_end`."""
        self._timer.stop()
        self.end = end
        self._clean_up()
        self._on_end(end)

    def _clean_up(self) -> None:
        """Close the log and remove the job's own files."""
        if self._log_stream is not None:
            with contextlib.suppress(OSError):
                self._log_stream.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end_process_tree(self) -> None:
        """End the child process and all of its children."""
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


def _start_process(python: str, command: str, settings: Path) -> subprocess.Popen[bytes]:
    """Start `command` with Slicer's Python, without a window, as a process group that can be ended as one."""
    module, folder = f"HiEndMAECore.{command}", ENGINE_FOLDER
    if command == OFFLINE_PACKAGE:
        module, folder = "HiEndMAESegmentationLib.engine.offline_package", MODULE_FOLDER
    group: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        group = {"creationflags": subprocess.CREATE_NO_WINDOW}
    return subprocess.Popen(
        [python, "-m", module, "--config", str(settings), "--events"],
        cwd=folder,  # `-m` searches here: Slicer's additional module paths do not apply to PythonSlicer
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"},
        **group,
    )


def code_of(error: Exception) -> str:
    """Return the error code of an error of the operating system."""
    return "disk_full" if getattr(error, "errno", None) == errno.ENOSPC else "files_failed"


def as_typed_error(error: Exception) -> HiEndMAEError:
    """Return the error itself if it is typed, else an error with a message that gives the system's reason."""
    if isinstance(error, HiEndMAEError):
        return error
    message = _("The files could not be written or read ({reason}).")
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return HiEndMAEError(code_of(error), message.format(reason=reason))


def _new_log(command: str) -> Path:
    """Return the path of a new log file beside Slicer's settings, and remove the oldest logs."""
    folder = Path(slicer.app.slicerUserSettingsFilePath).parent / "HiEndMAE" / "logs"
    logs = sorted(folder.glob("*.log"))
    for old in logs[: max(0, len(logs) - _LOGS_KEPT + 1)]:
        with contextlib.suppress(OSError):  # on Windows another program may have it open
            old.unlink(missing_ok=True)
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    return folder / f"{stamp}_{len(logs):03d}_{command}.log"
