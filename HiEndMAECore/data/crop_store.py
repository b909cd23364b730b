"""The store of preprocessed scans that pretraining reads: crops come from the disk without their volumes.

    STORE/manifest.json   how the scans were preprocessed; an entry for each scan, and each skipped scan with its reason
    STORE/NAME.b2nd       (C, H, W, D) uint8, 0 to 255 for 0 to 1, in compressed cubes that are read one by one;
                          without the package blosc2 NAME.npy, the same voxels uncompressed, memory-mapped
    STORE/NAME.tissue.npy (N, 3) int16, voxels of tissue, drawn evenly, as centers of positive crops

256 levels cost at most 0.5 HU of a CT window of 425 HU on average, far below the noise of a scan. Format, cubes and
compression were chosen by measuring (Testing/Benchmarks/crops.py, results.md). A scan is in the store once its entry is in
the manifest; every file is complete or absent.
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
from HiEndMAECore.models.schema import SchemaError, check_preparation

MANIFEST = "manifest.json"
FORMAT_VERSION = 2
FORMATS = ("b2nd", "npy")
LEVELS = 255.0  # stored value of an intensity of 1
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # first and end voxel along H, W and D


@dataclass(frozen=True)
class CropStore:
    """A store that is open for reading.

    Usage: `CropStore.open(path).crop(0, start=(0, 0, 0), size=(48, 48, 48))`.
    """

    path: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> CropStore:
        """Open the store at `path`. Raises `InputError` when there is no readable store with at least one scan."""
        manifest = read_manifest(path)
        if not manifest or not manifest.get("scans"):
            raise InputError(
                "store_empty",
                f"There is no store of prepared scans at {path}.",
                f"Make one with: python -m HiEndMAECore.prepare --input DIR --output {path}",
            )
        try:
            check_preparation(manifest.get("preparation"))
        except SchemaError as error:  # found now, not when a run of days writes its model
            raise InputError(
                "store_damaged",
                f"The manifest of the store {path} is damaged: {error}.",
                "Delete the store and prepare again.",
            ) from error
        return cls(path, manifest)

    def __len__(self) -> int:
        return len(self.manifest["scans"])

    @property
    def digest(self) -> str:
        """Return what identifies the scans and their preprocessing: equal for two stores of the same scans."""
        scans = [[entry["name"], entry.get("content"), entry["shape"]] for entry in self.manifest["scans"]]
        identity = json.dumps([self.manifest.get("preparation"), scans], sort_keys=True)
        return hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()

    @property
    def channels(self) -> int:
        """Return the number of channels of every scan."""
        return int(self.manifest["channels"])

    def shape(self, index: int) -> tuple[int, int, int]:
        """Return (H, W, D) of the preprocessed scan with this index."""
        h, w, d = self.manifest["scans"][index]["shape"][1:]
        return h, w, d

    def tissue(self, index: int) -> np.ndarray:
        """Return (N, 3) int16, voxels of tissue; N may be 0."""
        return np.load(scan_files(self.path, self.manifest["scans"][index])[1], mmap_mode="r")

    def valid_box(self, index: int, *, start: Sequence[int], size: Sequence[int]) -> Box:
        """Return which part of a crop lies inside the scan; the rest is padding. No file is read.

        Args:
            index: The scan.
            start: First voxel of the crop in the scan; may be negative.
            size: Voxels of the crop along H, W and D.

        Returns:
            First and end voxel along each axis, in the coordinates of the crop; (0, 0) where no voxel is inside.
        """
        pairs = []
        for first, wanted, length in zip(start, size, self.shape(index)):
            low, high = max(-first, 0), min(length - first, wanted)
            pairs.append((low, high) if low < high else (0, 0))
        return pairs[0], pairs[1], pairs[2]

    def crop(self, index: int, *, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
        """Return a crop (C, *size) as float32 in [0, 1]; voxels outside the scan are 0. Arguments as of `valid_box`."""
        entry = self.manifest["scans"][index]
        out = np.zeros((entry["shape"][0], *size), dtype=np.float32)
        box = self.valid_box(index, start=start, size=size)
        source = tuple(slice(first + low, first + high) if high else slice(0) for first, (low, high) in zip(start, box))
        target = out[(slice(None), *(slice(*pair) for pair in box))]
        np.multiply(self._read(entry, source), np.float32(1 / LEVELS), out=target)
        return out

    def _read(self, entry: Mapping[str, Any], where: tuple[slice, ...]) -> np.ndarray:
        """Read a box of a scan.

        The file is opened for each crop: that costs little beside decompression, and no thread shares a handle.
        """
        file, _ = scan_files(self.path, entry)
        try:
            if entry["format"] == "npy":
                return np.load(file, mmap_mode="r")[(slice(None), *where)]
            if not (blosc2 := import_blosc2()):
                raise MissingDependencyError.of("blosc2", "to read this store of compressed scans")
            return blosc2.open(str(file), mode="r", dparams=blosc2.DParams(nthreads=1))[(slice(None), *where)]
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(
                "store_damaged", f"{file} cannot be read ({error}).", "Delete this file and prepare again."
            ) from error


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of the store at `path`, empty when there is none. Raises `InputError` when it is damaged."""
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
        scan_files(path, entry)
    return manifest


def scan_files(store: Path, entry: Any) -> tuple[Path, Path]:
    """Return the two files of a scan by its manifest entry.

    An entry is text from a file, and must not lead reading or deleting to other places.

    Args:
        store: Folder of the store.
        entry: The entry of the scan in the manifest.

    Returns:
        The file of voxels and the file of tissue voxels.

    Raises:
        InputError: `store_damaged`, unless both names are plain and lie in the store.
    """
    if not isinstance(entry, Mapping):
        raise _bad_entry(store, entry, "does not describe a scan")
    name, kind = entry.get("file"), entry.get("format")
    if not is_plain_name(name):
        raise _bad_entry(store, entry, f"names the file {name!r}, which is not a plain name")
    if kind not in FORMATS:
        raise _bad_entry(store, entry, f"names the format {kind!r}, which is not one of {', '.join(FORMATS)}")
    voxels, tissue = store / f"{name}.{kind}", store / f"{name}.tissue.npy"
    for file in (voxels, tissue):
        try:
            in_store = file.resolve().parent == store.resolve()
        except (OSError, RuntimeError):  # a link that leads to itself
            in_store = False
        if not in_store:
            raise _bad_entry(store, entry, f"names the file {file.name!r}, which leads out of the store")
    return voxels, tissue


def is_plain_name(name: object) -> bool:
    """Return whether this is the name of a file on every system, and leads to no other folder."""
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


def import_blosc2() -> Any:
    """Return the package blosc2, or None where it is not installed."""
    try:
        import blosc2
    except ImportError:
        return None
    return blosc2
