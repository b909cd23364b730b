"""The identity of a scan's files: their number, size, time of change and digest, so that a changed scan is recognized."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from HiEndMAECore.io.atomic import sha256_file
from HiEndMAECore.io.file_names import file_suffix, is_dicom_file

_PAIR_SUFFIXES = (".hdr", ".img")
_DETACHABLE_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
_HEADER_BYTES = 1 << 16
_DATA_FILE = re.compile(rb"^\s*(?:data ?file|ElementDataFile)\s*[:=]\s*(\S.*?)\s*$", re.IGNORECASE | re.MULTILINE)


def describe_inputs(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Describe the files of each channel of a scan as plain JSON.

    Args:
        paths: A file or a DICOM folder for each channel.

    Returns:
        {"files": number, "bytes": size, "modified": time of the newest change in ms, "sha256": digest} for each channel; an
        empty list, which matches no input, if a file cannot be read. Reading the scan reports the reason.
    """
    try:
        return [{**_describe_size(path), "sha256": _digest(path)} for path in paths]
    except OSError:
        return []


def are_same_inputs(paths: Sequence[Path], described: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the files of `paths` are those that `describe_inputs` described.

    Only files of the same size and time of change are read.

    Raises:
        OSError: A file cannot be read.
    """
    sizes = [_describe_size(path) for path in paths]
    if [{key: entry[key] for key in ("files", "bytes", "modified")} for entry in described] != sizes:
        return False
    return [entry["sha256"] for entry in described] == [_digest(path) for path in paths]


def scan_files(path: Path) -> list[Path]:
    """Return the files that hold one channel of a scan, sorted: also the voxels beside a header, and a series' slices.

    Args:
        path: A file or a DICOM folder.
    """
    if path.is_dir():
        return sorted(file for file in path.iterdir() if is_dicom_file(file))
    suffix = file_suffix(path)
    if suffix in _PAIR_SUFFIXES:
        same_folder = path.absolute().parent.iterdir()
        return sorted(f for f in same_folder if f.stem == path.stem and f.suffix.lower() in _PAIR_SUFFIXES)
    if suffix in _DETACHABLE_SUFFIXES:
        return sorted({path, *_detached_data(path)})
    if not suffix and is_dicom_file(path):
        return scan_files(path.absolute().parent)
    return [path]


def _detached_data(header: Path) -> list[Path]:
    """Return the file beside a NRRD or MetaImage header that it names as the file of its voxels, if there is one."""
    with header.open("rb") as stream:
        named = _DATA_FILE.search(stream.read(_HEADER_BYTES))
    data = header.with_name(Path(named[1].decode("utf-8", "replace")).name) if named else header
    return [data] if data.is_file() else []


def _describe_size(path: Path) -> dict[str, Any]:
    stats = [file.stat() for file in scan_files(path)]
    newest = max((stat.st_mtime_ns for stat in stats), default=0)
    return {"files": len(stats), "bytes": sum(stat.st_size for stat in stats), "modified": newest // 1_000_000}


def _digest(path: Path) -> str:
    """Return the SHA-256 of one file, or of the sorted digests of several."""
    digests = [sha256_file(file) for file in scan_files(path)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(sorted(digests)).encode("ascii")).hexdigest()
