"""Write a store of preprocessed scans: its files, its manifest, and the list of skipped scans. See `crop_store`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from HiEndMAECore.errors import HiEndMAEError, InputError
from HiEndMAECore.io.atomic import PARTIAL_SUFFIX, atomic_path, write_text
from HiEndMAECore.reporting.reporter import Reporter

from .cases import Case, case_source
from .crop_store import (
    FORMAT_VERSION,
    LEVELS,
    MANIFEST,
    import_blosc2,
    is_plain_name,
    read_manifest,
    scan_files,
)

_TISSUE_SAMPLES = 10_000
_CHUNK_VOXELS, _BLOCK_VOXELS = 64, 32  # edges of the cubes that blosc2 addresses, and of those that it decompresses
_SAVE_SECONDS = 2.0  # between two writes of the manifest; what a killed run did since then is done again


def write_scan(store: Path, name: str, array: np.ndarray, *, seed: int = 0) -> dict[str, Any]:
    """Write the files of one preprocessed scan.

    Args:
        store: Folder of the store; it is made.
        name: Name of the case, and of its files.
        array: (C, H, W, D) in [0, 1].
        seed: Seed of the drawn tissue voxels.

    Returns:
        The manifest entry: `name`, `file`, `format`, `shape`, and `bytes` on disk.

    Raises:
        InputError: `name_unusable`, when the name is not a plain file name on every system.
        OSError: A file cannot be written.
    """
    if not is_plain_name(name):
        message = f"A scan called {name!r} cannot be put into a store: its name is not a plain file name."
        raise InputError("name_unusable", message, "Rename the scan.")
    voxels = np.empty(array.shape, np.uint8)
    for channel, target in zip(array, voxels):
        target[...] = np.rint(channel * np.float32(LEVELS))
    positions = np.flatnonzero(voxels.any(axis=0))
    if len(positions) > _TISSUE_SAMPLES:
        positions = np.random.default_rng(seed).choice(positions, _TISSUE_SAMPLES, replace=False)
    tissue = np.stack(np.unravel_index(positions, voxels.shape[1:]), axis=1).astype(np.int16)
    kind = "b2nd" if import_blosc2() else "npy"
    entry = {"name": name, "file": name, "format": kind, "shape": list(array.shape)}
    voxel_file, tissue_file = scan_files(store, entry)
    _save_array(tissue_file, tissue)
    if kind == "b2nd":
        with atomic_path(voxel_file) as temporary:
            temporary.write_bytes(_compress(voxels))
    else:
        _save_array(voxel_file, voxels)
    return {**entry, "bytes": sum(file.stat().st_size for file in (voxel_file, tissue_file))}


def delete_scan_files(store: Path, entry: Mapping[str, Any]) -> None:
    """Delete the files of a scan, and leave its entry in the manifest.

    Raises:
        InputError: The entry leads out of the store; nothing is deleted then.
    """
    for file in scan_files(store, entry):
        file.unlink(missing_ok=True)


def write_manifest(store: Path, manifest: Mapping[str, Any]) -> None:
    """Replace the manifest of a store in one step."""
    write_text(store / MANIFEST, json.dumps({"format_version": FORMAT_VERSION, **manifest}, indent=1) + "\n")


def _save_array(path: Path, array: np.ndarray) -> None:
    with atomic_path(path, suffix=".npy") as temporary, temporary.open("wb") as stream:
        np.save(stream, array)


def _compress(voxels: np.ndarray) -> bytes:
    """Return voxels (C, H, W, D) as a frame of blosc2, in cubes of one channel each."""
    blosc2 = import_blosc2()
    parameters = blosc2.CParams(
        codec=blosc2.Codec.LZ4HC, clevel=5, filters=[blosc2.Filter.NOFILTER], filters_meta=[0], nthreads=1
    )
    shape = voxels.shape[1:]
    chunks, blocks = ((1, *(max(1, min(edge, n)) for n in shape)) for edge in (_CHUNK_VOXELS, _BLOCK_VOXELS))
    return blosc2.asarray(voxels, chunks=chunks, blocks=blocks, cparams=parameters, contiguous=True).to_cframe()


@dataclass
class StoreWriter:
    """A store that is being filled; its manifest is saved as it grows.

    Attributes:
        store: Folder of the store.
        manifest: What the manifest holds beside the lists of scans.
        scans: Entries of the manifest by the name of the scan.
        excluded_digests: Voxel digests of all scans that were ever excluded from this store, by their source. They stay
            excluded for good.
        skipped: Scans that this run could not use, with reasons.
    """

    store: Path
    manifest: dict[str, Any]
    scans: dict[str, dict[str, Any]]
    excluded_digests: dict[str, str]
    skipped: dict[str, dict[str, str]] = field(default_factory=dict)
    _name_of_digest: dict[str, str] = field(default_factory=dict)
    _added: set[str] = field(default_factory=set)
    _saved: float = 0.0

    @classmethod
    def open(cls, store: Path, preparation: Mapping[str, Any]) -> StoreWriter:
        """Open a store for writing, and delete the partial files of a killed run.

        Args:
            store: Its folder, which need not exist.
            preparation: The preprocessing of its scans, as plain JSON.

        Raises:
            InputError: The store is damaged, or its scans were preprocessed differently.
        """
        manifest = read_manifest(store)
        if manifest and manifest["preparation"] != preparation:
            raise InputError(
                "store_differs",
                f"The store {store} was prepared differently: {manifest['preparation']}.",
                "Use the same settings, or another --output.",
            )
        for pattern in (f".*{PARTIAL_SUFFIX}", f".*{PARTIAL_SUFFIX}.npy"):
            for partial in store.glob(pattern):
                partial.unlink(missing_ok=True)
        scans = {scan["name"]: scan for scan in manifest.get("scans", [])}
        writer = cls(
            store, {"preparation": dict(preparation), **manifest}, scans, manifest.get("held_out_contents", {})
        )
        writer._name_of_digest = {scan["content"]: scan["name"] for scan in scans.values()}
        return writer

    @property
    def bytes_per_scan(self) -> float:
        """Return the mean size of a scan on disk in bytes."""
        return sum(scan["bytes"] for scan in self.scans.values()) / max(len(self.scans), 1)

    def remove(self, unwanted: Callable[[Mapping[str, Any]], bool]) -> None:
        """Remove scans whose entry is `unwanted`; their files go once the manifest no longer names them."""
        entries = [entry for entry in self.scans.values() if unwanted(entry)]
        for entry in entries:
            del self.scans[entry["name"]], self._name_of_digest[entry["content"]]
        if entries:
            self.save()
        for entry in entries:
            delete_scan_files(self.store, entry)

    def add(self, case: Case, entry: dict[str, Any], report: Reporter) -> None:
        """Add a scan whose files are written; skip exact duplicates.

        Of two duplicates the one stays that was in the store before this run, else the first by name, so that the order
        in which worker processes finish decides nothing.
        """
        duplicate = self._name_of_digest.get(entry["content"])
        if duplicate is not None and (duplicate not in self._added or duplicate < case.name):
            delete_scan_files(self.store, entry)
            self._skip_duplicate(case.name, entry["source"], duplicate, report)
            return
        if duplicate is not None:
            other = self.scans.pop(duplicate)
            delete_scan_files(self.store, other)
            self._skip_duplicate(duplicate, other["source"], case.name, report)
        self.scans[case.name] = entry
        self._name_of_digest[entry["content"]] = case.name
        self._added.add(case.name)
        if time.monotonic() - self._saved > _SAVE_SECONDS:
            self.save()

    def skip(self, case: Case, error: HiEndMAEError, report: Reporter) -> None:
        """Record why a scan is not in the store, and warn."""
        self._skip(case.name, case_source(case), error, report)

    def _skip_duplicate(self, name: str, source: str, original: str, report: Reporter) -> None:
        error = InputError("duplicate", f"{name} has the same voxels as {original}.")
        self._skip(name, source, error, report)

    def _skip(self, name: str, source: str, error: HiEndMAEError, report: Reporter) -> None:
        self.skipped[name] = {"name": name, "source": source, "code": error.code, "reason": str(error)}
        report.warning(error.code, error.message, f"It was skipped. {error.advice}".strip())

    def save(self) -> None:
        """Write the manifest."""
        lists = {
            "scans": [self.scans[name] for name in sorted(self.scans)],
            "left_out": [self.skipped[name] for name in sorted(self.skipped)],
            "held_out_contents": self.excluded_digests,
        }
        write_manifest(self.store, {**self.manifest, **lists})
        self._saved = time.monotonic()
