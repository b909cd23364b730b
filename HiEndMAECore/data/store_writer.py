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

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from HiEndMAECore.data import crop_store
from HiEndMAECore.errors import HiEndMAEError, InputError
from HiEndMAECore.io.atomic import write_text
from HiEndMAECore.reporting.reporter import Reporter

from .cases import Case
from .crop_store import _LEVELS, FORMAT_VERSION, MANIFEST, _blosc2, _files_of, _is_plain

PARTIAL = ".part"  # suffix of a file being written
_TISSUE_SAMPLES = 10_000
_CHUNK, _BLOCK = 64, 32  # voxels along an edge: cubes that are found, cubes that are unpacked


def write_scan(store: Path, name: str, array: np.ndarray, *, seed: int = 0) -> dict[str, Any]:
    """Write one prepared scan (C, H, W, D) in [0, 1]; returns its manifest entry: `name`, `file`, `format`, `shape`,
    and `bytes` on disk. Raises `InputError` for a name that is no file's name on every system."""
    if not _is_plain(name):
        message = f"A scan called {name!r} cannot be put into a store: its name is not a plain file name."
        raise InputError("name_unusable", message, "Rename the scan.")
    store.mkdir(parents=True, exist_ok=True)
    voxels = np.empty(array.shape, np.uint8)
    for channel, into in zip(array, voxels):
        into[...] = np.rint(channel * np.float32(_LEVELS))
    there = np.flatnonzero(voxels.any(axis=0))
    if len(there) > _TISSUE_SAMPLES:
        there = np.random.default_rng(seed).choice(there, _TISSUE_SAMPLES, replace=False)
    tissue = np.stack(np.unravel_index(there, voxels.shape[1:]), axis=1).astype(np.int16)
    kind = "b2nd" if _blosc2() else "npy"
    files = [store / f"{name}.tissue.npy", store / f"{name}.{kind}"]
    _replace(files[0], lambda stream: np.save(stream, tissue))
    _replace(files[1], lambda stream: stream.write(_packed(voxels)) if kind == "b2nd" else np.save(stream, voxels))
    size = sum(file.stat().st_size for file in files)
    return {"name": name, "file": name, "format": kind, "shape": list(array.shape), "bytes": size}


def delete_scan_files(store: Path, entry: Mapping[str, Any]) -> None:
    """Take the files of a scan away (not its entry in the manifest). Raises `InputError`, and deletes nothing, where
    the entry leads out of the store."""
    for file in _files_of(store, entry):
        file.unlink(missing_ok=True)


def _packed(voxels: np.ndarray) -> bytes:
    blosc2 = _blosc2()
    packing = blosc2.CParams(
        codec=blosc2.Codec.LZ4HC, clevel=5, filters=[blosc2.Filter.NOFILTER], filters_meta=[0], nthreads=1
    )
    shape = voxels.shape[1:]
    chunks, blocks = ((1, *(max(1, min(edge, n)) for n in shape)) for edge in (_CHUNK, _BLOCK))
    return blosc2.asarray(voxels, chunks=chunks, blocks=blocks, cparams=packing, contiguous=True).to_cframe()


def write_manifest(store: Path, manifest: Mapping[str, Any]) -> None:
    """Replace the manifest in one step."""
    write_text(store / MANIFEST, json.dumps({"format_version": FORMAT_VERSION, **manifest}, indent=1) + "\n")


def _replace(path: Path, write: Callable[[Any], Any]) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


_SAVE_EVERY = 2.0  # seconds; what a killed run did since is done again


@dataclass
class StoreWriter:
    """`scans`: manifest entries by name. `left_out`: entries with reasons, of this run. `held`: contents (digests of
    voxels) of scans that were ever held out from this store, by source; they stay out for good."""

    store: Path
    manifest: dict[str, Any]
    scans: dict[str, dict[str, Any]]
    held: dict[str, str]
    left_out: dict[str, dict[str, str]] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)  # of contents
    _new: set[str] = field(default_factory=set)
    _saved: float = 0.0

    @classmethod
    def open(cls, store: Path, preparation: Mapping[str, Any]) -> StoreWriter:
        """Raises `InputError` for a damaged store, or one that was prepared differently. Clears what a killed run
        left half-written."""
        manifest = crop_store.read_manifest(store)
        if manifest and manifest["preparation"] != preparation:
            raise InputError(
                "store_differs",
                f"The store {store} was prepared differently: {manifest['preparation']}.",
                "Use the same settings, or another --output.",
            )
        for partial in store.glob(f".*{PARTIAL}"):
            partial.unlink(missing_ok=True)
        scans = {scan["name"]: scan for scan in manifest.get("scans", [])}
        shelf = cls(store, {"preparation": dict(preparation), **manifest}, scans, manifest.get("held_out_contents", {}))
        shelf._names = {scan["content"]: scan["name"] for scan in scans.values()}
        return shelf

    @property
    def bytes_a_scan(self) -> float:
        """Mean bytes on disk."""
        return sum(scan["bytes"] for scan in self.scans.values()) / max(len(self.scans), 1)

    def drop(self, unwanted: Callable[[Mapping[str, Any]], bool]) -> None:
        """Take scans out, their files as well once the manifest no longer names them."""
        entries = [entry for entry in self.scans.values() if unwanted(entry)]
        for entry in entries:
            del self.scans[entry["name"]], self._names[entry["content"]]
        if entries:
            self.save()
        for entry in entries:
            delete_scan_files(self.store, entry)

    def keep(self, case: Case, entry: dict[str, Any], report: Reporter) -> None:
        """Put a scan on the shelf. Of two copies the one that was there before this run stays, else the first by name:
        the order in which processes get done decides nothing."""
        twin = self._names.get(entry["content"])
        if twin is not None and (twin not in self._new or twin < case.name):
            delete_scan_files(self.store, entry)
            self._copy(case.name, entry["source"], twin, report)
            return
        if twin is not None:
            other = self.scans.pop(twin)
            delete_scan_files(self.store, other)
            self._copy(twin, other["source"], case.name, report)
        self.scans[case.name] = entry
        self._names[entry["content"]] = case.name
        self._new.add(case.name)
        if time.monotonic() - self._saved > _SAVE_EVERY:
            self.save()

    def leave_out(self, case: Case, error: HiEndMAEError, report: Reporter) -> None:
        """Write down why a scan is not in the store, and tell."""
        source = "/".join(case.channels[0].absolute().parts[-2:])
        self._leave(case.name, source, error, report)

    def _copy(self, name: str, source: str, of: str, report: Reporter) -> None:
        self._leave(name, source, InputError("duplicate", f"{name} has the same voxels as {of}."), report)

    def _leave(self, name: str, source: str, error: HiEndMAEError, report: Reporter) -> None:
        self.left_out[name] = {"name": name, "source": source, "code": error.code, "reason": str(error)}
        report.warning(error.code, error.message, f"It was left out. {error.advice}".strip())

    def save(self) -> None:
        """Write the manifest."""
        lists = {
            "scans": [self.scans[name] for name in sorted(self.scans)],
            "left_out": [self.left_out[name] for name in sorted(self.left_out)],
            "held_out_contents": self.held,
        }
        write_manifest(self.store, {**self.manifest, **lists})
        self._saved = time.monotonic()
