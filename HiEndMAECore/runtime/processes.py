"""Processes: whether one exists, and which of the processes of `torchrun` this one is. Imports on a bare Python."""

from __future__ import annotations

import os


def process_exists(pid: int) -> bool:
    """Return whether a process runs.

    Args:
        pid: The number of the process.

    Returns:
        False when there is none, and for a zombie, which has ended. True when it runs, when the system does not allow
        the question, and when psutil is not installed.
    """
    try:
        import psutil
    except ImportError:  # `doctor` also runs before the required packages are installed
        return True
    if not psutil.pid_exists(pid):
        return False
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def rank_from_environment() -> int:
    """Return the number of this process among those that `torchrun` started; 0 without it."""
    return int(os.environ.get("RANK", "0"))


def local_rank_from_environment() -> int:
    """Return the number of this process on its machine; 0 without `torchrun`."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size_from_environment() -> int:
    """Return how many processes `torchrun` started on all machines; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def started_by_torchrun() -> bool:
    """Return whether `torchrun` started this process, and may restart it."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def restarted_by_torchrun() -> bool:
    """Return whether `torchrun` has restarted the processes of this machine after one of them was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
