"""The cache of converted networks in the user's cache folder: a folder for each network, complete or absent.

A digest of the files lies beside them, so that a damaged folder is found before it is read. The newest are kept.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from HiEndMAECore.io.atomic import atomic_folder, sha256_file

MAX_NETWORKS = 8
_NETWORK, _DIGESTS = "network.xml", "sha256.txt"


def cache_folder() -> Path:
    """Return where this system keeps the caches of a user, with the folder of this package in it.

    Raises:
        RuntimeError: The system does not know the user's home folder.
    """
    if sys.platform == "win32":
        variable, usual = "LOCALAPPDATA", ("AppData", "Local")
    elif sys.platform == "darwin":
        variable, usual = "", ("Library", "Caches")
    else:
        variable, usual = "XDG_CACHE_HOME", (".cache",)
    named = Path(os.environ.get(variable, ""))
    return (named if named.is_absolute() else Path.home().joinpath(*usual)) / "HiEndMAE" / "openvino"


def find_network(key: str) -> Path | None:
    """Return the file of a cached network, or None if it is absent, damaged or cannot be read."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        folder = cache_folder() / key
        if (folder / _DIGESTS).read_text(encoding="utf-8") == _digests(folder):
            with contextlib.suppress(OSError):  # it is the newest now
                os.utime(folder)
            return folder / _NETWORK
    return None


def store_network(key: str, save: Callable[[Path], None]) -> None:
    """Write a network to the cache, in place of a damaged one, and delete the oldest. A full or read-only disk is no error.

    Args:
        key: Digest of everything that decides the converted network.
        save: Writes the network to the .xml file that it is given, and may write others beside it.
    """
    with contextlib.suppress(OSError, RuntimeError):
        folder = cache_folder() / key
        with atomic_folder(folder) as temporary:
            save(temporary / _NETWORK)
            (temporary / _DIGESTS).write_text(_digests(temporary), encoding="utf-8")
        newest_first = sorted(folder.parent.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in newest_first[MAX_NETWORKS:]:
            shutil.rmtree(old, ignore_errors=True)


def _digests(folder: Path) -> str:
    """Return a line with name and SHA-256 for each file of a cached network."""
    files = sorted(path for path in folder.iterdir() if path.name != _DIGESTS)
    return "".join(f"{path.name} {sha256_file(path)}\n" for path in files)
