"""The store of prepared scans that pretraining reads: crops come off the disk without their volumes.

    STORE/manifest.json   how the scans were prepared; each scan kept, each left out with its reason
    STORE/NAME.b2nd       (C, H, W, D) uint8, 0 to 255 for 0 to 1, in compressed cubes that are read one by one;
                          without the package blosc2 NAME.npy, the same voxels uncompressed, memory-mapped
    STORE/NAME.tissue.npy (N, 3) int16, voxels on tissue, drawn evenly, for positive crops

256 levels cost 0.5 HU of a CT window of 425 HU at most on average, far below the noise of a scan; format, cubes and
compression were chosen by measuring (Testing/Benchmarks/crops.py, results.md). A scan counts once its entry is in the
manifest; every file is written beside its place and renamed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from HiEndMAECore.errors import InputError, MissingDependencyError

MANIFEST = "manifest.json"
FORMAT_VERSION = 2
FORMATS = ("b2nd", "npy")
_LEVELS = 255.0
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # first and end voxel along H, W, D


@dataclass(frozen=True)
class CropStore:
    """A store opened for reading. Usage: `CropStore.open(path).crop(0, start=(0, 0, 0), size=(48, 48, 48))`."""

    path: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> CropStore:
        """Raises `InputError` where there is no readable store with at least one scan."""
        manifest = read_manifest(path)
        if not manifest or not manifest.get("scans"):
            raise InputError(
                "store_empty",
                f"There is no store of prepared scans at {path}.",
                f"Make one with: python -m HiEndMAECore.prepare --input DIR --output {path}",
            )
        return cls(path, manifest)

    def __len__(self) -> int:
        return len(self.manifest["scans"])

    @property
    def digest(self) -> str:
        """What two stores of the same scans, prepared alike, share."""
        scans = [[entry["name"], entry.get("content"), entry["shape"]] for entry in self.manifest["scans"]]
        message = json.dumps([self.manifest.get("preparation"), scans], sort_keys=True)
        return hashlib.blake2b(message.encode(), digest_size=16).hexdigest()

    @property
    def channels(self) -> int:
        return int(self.manifest["channels"])

    def shape(self, index: int) -> tuple[int, int, int]:
        """(H, W, D) of a prepared scan."""
        h, w, d = self.manifest["scans"][index]["shape"][1:]
        return h, w, d

    def tissue(self, index: int) -> np.ndarray:
        """(N, 3) int16 voxels on tissue; may be empty."""
        return np.load(_files_of(self.path, self.manifest["scans"][index])[1], mmap_mode="r")

    def inside(self, index: int, *, start: Sequence[int], size: Sequence[int]) -> Box:
        """Per axis, first and end voxel of the crop at `start` that lie inside the scan, in the crop's own
        coordinates: what is outside is padding. (0, 0) along an axis where no voxel does. Reads nothing."""
        pairs = []
        for first, wanted, there in zip(start, size, self.shape(index)):
            low, high = max(-first, 0), min(there - first, wanted)
            pairs.append((low, high) if low < high else (0, 0))
        return pairs[0], pairs[1], pairs[2]

    def crop(self, index: int, *, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
        """(C, *size) float32; what lies outside the scan is 0 (air, or the darkest)."""
        entry = self.manifest["scans"][index]
        out = np.zeros((entry["shape"][0], *size), dtype=np.float32)
        inside = self.inside(index, start=start, size=size)
        source = tuple(
            slice(first + low, first + high) if high else slice(0) for first, (low, high) in zip(start, inside)
        )
        target = out[(slice(None), *(slice(*pair) for pair in inside))]
        np.multiply(self._read(entry, source), np.float32(1 / _LEVELS), out=target)
        return out

    def _read(self, entry: Mapping[str, Any], where: tuple[slice, ...]) -> np.ndarray:
        """Opened anew for each crop: it costs little beside unpacking, and no thread or process shares a handle."""
        file, _ = _files_of(self.path, entry)
        try:
            if entry["format"] == "npy":
                return np.load(file, mmap_mode="r")[(slice(None), *where)]
            if not (blosc2 := _blosc2()):
                raise MissingDependencyError.of("blosc2", "to read this store of compressed scans")
            return blosc2.open(str(file), mode="r", dparams=blosc2.DParams(nthreads=1))[(slice(None), *where)]
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(
                "store_damaged", f"{file} cannot be read ({error}).", "Delete this file and prepare again."
            ) from error


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the store at `path`, empty when there is none; raises `InputError` when it is damaged."""
    file = path / MANIFEST
    if not file.is_file():
        return {}
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            "store_damaged", f"{file} cannot be read ({error}).", "Delete the store and prepare again."
        ) from error
    if not isinstance(manifest, dict):
        raise InputError("store_damaged", f"{file} is not a manifest.", "Delete the store and prepare again.")
    if (version := manifest.get("format_version")) != FORMAT_VERSION:
        raise InputError(
            "store_newer" if isinstance(version, int) and version > FORMAT_VERSION else "store_older",
            f"The store {path} has format {version}; this version reads format {FORMAT_VERSION}.",
            "Update HiEndMAE, or prepare the scans again into another folder.",
        )
    scans = manifest.get("scans", [])
    if not isinstance(scans, list):
        raise _bad_entry(path, scans, "is not a list of scans")
    for entry in scans:
        _files_of(path, entry)
    return manifest


def _files_of(store: Path, entry: Any) -> tuple[Path, Path]:
    """The two files of a scan, voxels and tissue, by its manifest entry. Raises `InputError` unless both lie in the
    store: an entry is text from a file, and must not lead reading or deleting to other places."""
    if not isinstance(entry, Mapping):
        raise _bad_entry(store, entry, "does not describe a scan")
    name, kind = entry.get("file"), entry.get("format")
    if not _is_plain(name):
        raise _bad_entry(store, entry, f"names the file {name!r}, which is not a plain name")
    if kind not in FORMATS:
        raise _bad_entry(store, entry, f"names the format {kind!r}, which is not one of {', '.join(FORMATS)}")
    voxels, tissue = store / f"{name}.{kind}", store / f"{name}.tissue.npy"
    for file in (voxels, tissue):
        try:
            inside = file.resolve().parent == store.resolve()
        except (OSError, RuntimeError):  # a link that leads to itself
            inside = False
        if not inside:
            raise _bad_entry(store, entry, f"names the file {file.name!r}, which leads out of the store")
    return voxels, tissue


def _is_plain(name: object) -> bool:
    """Is this the name of a file, on every system, without any way to another folder?"""
    if not isinstance(name, str) or name in ("", ".", "..") or "\0" in name:
        return False
    return not set(name) & set("/\\") and not PureWindowsPath(name).drive


def _bad_entry(store: Path, entry: Any, reason: str) -> InputError:
    name = entry.get("name") if isinstance(entry, Mapping) else entry
    return InputError(
        "store_damaged",
        f"{store / MANIFEST} cannot be used: its entry {str(name)[:80]!r} {reason}.",
        "The store was damaged or changed; delete it and prepare the scans again.",
    )


def _blosc2() -> Any:
    """The package, or None where it is missing."""
    try:
        import blosc2
    except ImportError:
        return None
    return blosc2
