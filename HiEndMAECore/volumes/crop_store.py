"""The store of prepared scans that pretraining reads: crops come off the disk without their volumes.

    STORE/manifest.json   how the scans were prepared; each scan kept, each left out with its reason
    STORE/NAME.npy        (C, H, W, D) float16 in [0, 1], memory-mapped
    STORE/NAME.tissue.npy (N, 3) int32, voxels on tissue, drawn evenly, for positive crops

A scan counts once its entry is in the manifest; every file is written beside its place and renamed.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from HiEndMAECore.errors import InputError
from HiEndMAECore.reporting.writing import write_text

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
_TISSUE_SAMPLES = 20_000
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
        if manifest.get("format_version") != FORMAT_VERSION:
            raise InputError(
                "store_newer", f"The store {path} has an unknown format.", "Update HiEndMAE or prepare the scans again."
            )
        return cls(path, manifest)

    def __len__(self) -> int:
        return len(self.manifest["scans"])

    @property
    def channels(self) -> int:
        return int(self.manifest["channels"])

    def shape(self, index: int) -> tuple[int, int, int]:
        """(H, W, D) of a prepared scan."""
        h, w, d = self.manifest["scans"][index]["shape"][1:]
        return h, w, d

    def tissue(self, index: int) -> np.ndarray:
        """(N, 3) int32 voxels on tissue; may be empty."""
        return np.load(self.path / f"{self.manifest['scans'][index]['file']}.tissue.npy", mmap_mode="r")

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
        scan = np.load(self.path / f"{self.manifest['scans'][index]['file']}.npy", mmap_mode="r")
        out = np.zeros((scan.shape[0], *size), dtype=np.float32)
        inside = self.inside(index, start=start, size=size)
        source = tuple(
            slice(first + low, first + high) if high else slice(0) for first, (low, high) in zip(start, inside)
        )
        out[(slice(None), *(slice(*pair) for pair in inside))] = scan[(slice(None), *source)]
        return out


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
    return manifest


def read_hold_out(file: Path) -> set[str]:
    """Names of cases that must not get into a store: one a line, or every string in a JSON file such as splits.json
    (all of its lists). Raises `InputError`."""
    try:
        text = file.read_text(encoding="utf-8")
        data = json.loads(text) if file.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise InputError(
            "list_unreadable", f"The list {file} cannot be read ({error}).", "Give a text file."
        ) from error
    groups = list(data.values()) if isinstance(data, dict) else [data]
    names = {str(name).strip() for group in groups for name in (group if isinstance(group, list) else [group])}
    return names - {""}


def add_scan(store: Path, name: str, array: np.ndarray, *, seed: int = 0) -> dict[str, Any]:
    """Write one prepared scan (C, H, W, D) in [0, 1]; returns its manifest entry (`name`, `file`, `shape`)."""
    store.mkdir(parents=True, exist_ok=True)
    tissue = np.argwhere(array.max(axis=0) > 0).astype(np.int32)
    if len(tissue) > _TISSUE_SAMPLES:
        tissue = np.random.default_rng(seed).choice(tissue, _TISSUE_SAMPLES, replace=False)
    _replace(store / f"{name}.tissue.npy", lambda stream: np.save(stream, tissue))
    _replace(store / f"{name}.npy", lambda stream: np.save(stream, array.astype(np.float16)))
    return {"name": name, "file": name, "shape": list(array.shape)}


def write_manifest(store: Path, manifest: Mapping[str, Any]) -> None:
    """Replace the manifest in one step."""
    write_text(store / MANIFEST, json.dumps({"format_version": FORMAT_VERSION, **manifest}, indent=1) + "\n")


def _replace(path: Path, write: Callable[[Any], Any]) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
