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
from pathlib import Path


def process_exists(pid: int) -> bool:
    """Is there a process of this number? True when that cannot be told."""
    if sys.platform == "win32":
        import ctypes

        kernel = ctypes.windll.kernel32
        handle = kernel.OpenProcess(0x00100000, False, pid)  # SYNCHRONIZE
        if not handle:
            return bool(kernel.GetLastError() == 5)  # access denied: it is there, and not ours to open
        waiting = kernel.WaitForSingleObject(handle, 0)
        kernel.CloseHandle(handle)
        return waiting != 0
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """On Linux an ended child that nobody waited for still has a number; it is gone all the same."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return False
