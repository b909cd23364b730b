"""Files and folders that are complete or absent: everything is written beside its place and renamed into it.

A temporary file has a random name of its own, so that two processes never share one and a planted link is never followed.
Its content reaches the disk before the rename, so that a power failure leaves the old file or the new one. This is the only
module of the engine that renames files into place. It needs the standard library alone.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from HiEndMAECore.errors import InputError

PARTIAL_SUFFIX = ".part"  # of files and folders that are being written
REPLACED_SUFFIX = ".old"  # of a folder that is being replaced
_BLOCK_BYTES = 1 << 20
_RENAME_WAIT_SECONDS, _RENAME_WAITS = 0.01, 20  # together more than a living process needs between its two renames
_UMASK = os.umask(0o022)  # the permissions that this process withholds can only be read by setting them
os.umask(_UMASK)


@contextlib.contextmanager
def atomic_path(path: Path, *, suffix: str = "") -> Iterator[Path]:
    """Yield a temporary file beside `path` that takes its place when the block ends without an exception.

    Args:
        path: The file to create or replace. Its folder is made.
        suffix: End of the temporary name, for writers that choose the format by it, such as ".nii.gz".

    Yields:
        The path of an empty file in the same folder, hidden, with a name that no other process has.

    Raises:
        OSError: The file cannot be created, flushed or renamed. The old file is unchanged then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".", suffix=f"{PARTIAL_SUFFIX}{suffix}", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_UMASK)
        _flush_file(temporary)
        os.replace(temporary, path)
        _flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` completely or not at all; its folder is made. Raises `OSError`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, with line ends as they are, completely or not at all; its folder is made.

    Raises:
        InputError: `output_unwritable`, naming the file and the system's reason.
    """
    try:
        write_bytes(path, text.encode("utf-8"))
    except (OSError, UnicodeEncodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            "output_unwritable", f"{path} cannot be written ({reason}).", "Choose another place, or free some space."
        ) from error


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its place when the block ends without an exception.

    A folder cannot be replaced by another in one step. The old one is renamed to a hidden name first; a process that is
    killed between the two renames leaves it there, and `recover_folder` brings it back.

    Args:
        path: The folder to create or replace. The folder that holds it is made.

    Raises:
        OSError: A file or folder cannot be created or renamed. The old folder stands at its place then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(path)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=PARTIAL_SUFFIX, dir=path.parent))
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_UMASK)
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush_file(file)
        if path.exists():
            replaced = _replaced_name(path)
            os.replace(path, replaced)
            try:
                os.replace(temporary, path)
            except OSError:
                os.replace(replaced, path)
                raise
            _flush_folder(path.parent)
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            os.replace(temporary, path)
            _flush_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Bring back the folder that a killed `atomic_folder` had renamed, when nothing stands at `path`.

    Another process may be between its two renames at this moment. That takes it microseconds, so it is given some time.
    """
    replaced = _replaced_name(path)
    if not replaced.exists():
        return
    if path.exists():
        shutil.rmtree(replaced, ignore_errors=True)  # the replacement was complete
        return
    for _ in range(_RENAME_WAITS):
        time.sleep(_RENAME_WAIT_SECONDS)
        if path.exists():
            return
    with contextlib.suppress(OSError):  # another process was quicker
        os.replace(replaced, path)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _replaced_name(path: Path) -> Path:
    return path.with_name(f".{path.name}{REPLACED_SUFFIX}")


def _flush_file(path: Path) -> None:
    handle = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_folder(path: Path) -> None:
    """Flush the names in a folder, where the system allows that (Windows and some network disks do not)."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)
