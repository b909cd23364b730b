"""Requests that end a run early: by the control file, by a signal, or by the end of the parent process."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from HiEndMAECore.errors import Cancelled
from HiEndMAECore.runtime.processes import process_exists

_POLL_SECONDS = 1.0
_ORPHAN_GRACE_SECONDS = 60.0  # for a run without a parent to end by itself


class RunControl:
    """The requests to finish or to cancel a run, and the thread that receives them.

    The thread reads the control file and checks the parent process once a second. The file contains one word: `finish`
    asks for a usable result as soon as possible, `cancel` asks the run to stop.

    Args:
        file: Control file; it need not exist yet. None for none.
        parent_pid: Process whose end cancels the run. None for none.
    """

    def __init__(self, file: Path | None = None, parent_pid: int | None = None) -> None:
        self._file = file
        self._parent_pid = parent_pid
        self._cancel = threading.Event()
        self._finish = threading.Event()
        self._closed = threading.Event()

    @property
    def finish_requested(self) -> bool:
        """True when a usable result is wanted as soon as possible."""
        return self._finish.is_set()

    @property
    def cancel_requested(self) -> bool:
        """True when the run is to stop."""
        return self._cancel.is_set()

    def request_finish(self) -> None:
        """Ask the run for a usable result as soon as possible."""
        self._finish.set()

    def request_cancel(self) -> None:
        """Ask the run to stop at its next check."""
        self._cancel.set()

    def start(self) -> None:
        """Receive what is there already, then start the thread. Does nothing without a file and a parent."""
        if self._file is None and self._parent_pid is None:
            return
        self._receive()
        threading.Thread(target=self._poll, name="control", daemon=True).start()

    def close(self) -> None:
        """Stop the thread; the run has ended."""
        self._closed.set()

    def _poll(self) -> None:
        while not self._closed.wait(_POLL_SECONDS):
            self._receive()

    def _receive(self) -> None:
        """Read the control file and check the parent process once."""
        word = _read_word(self._file)
        if word == "cancel":
            self.request_cancel()
        elif word == "finish":
            self.request_finish()
        if self._parent_pid is not None and not process_exists(self._parent_pid):
            self._parent_pid = None
            self.request_cancel()
            threading.Thread(target=self._exit_after_grace, name="orphan", daemon=True).start()

    def _exit_after_grace(self) -> None:
        """End this process if the run does not end by itself. Files are renamed when they are complete, so none is damaged."""
        if not self._closed.wait(_ORPHAN_GRACE_SECONDS):
            os._exit(Cancelled.exit_code)


def _read_word(file: Path | None) -> str:
    """Return the word in the control file in lower case; an empty text while the file is absent or being written."""
    if file is None:
        return ""
    try:
        return file.read_text(encoding="utf-8").strip().lower()
    except (OSError, UnicodeDecodeError):
        return ""
