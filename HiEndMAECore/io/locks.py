"""Locks of files between processes. The operating system frees them when a process ends, however it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from HiEndMAECore.errors import MissingDependencyError


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold the lock file `path` during the block, and wait for it first."""
    with _lock(path):
        yield


@contextlib.contextmanager
def try_file_lock(path: Path) -> Iterator[bool]:
    """Hold the lock file `path` during the block, where no other process holds it.

    Yields:
        True when this process holds the lock; False when another one does.
    """
    import filelock

    lock = _lock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _lock(path: Path):  # type: ignore[no-untyped-def]
    """Return the lock of a file; its folder is made."""
    try:
        import filelock
    except ImportError as error:
        raise MissingDependencyError.of("filelock", "to share a table between processes") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(str(path))
