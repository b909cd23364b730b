"""A store being filled: what is in it, what was left out and why, saved as it grows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from HiEndMAECore.errors import HiEndMAEError, InputError
from HiEndMAECore.reporting.reporter import Reporter

from . import crop_store
from .datasets import Case

_SAVE_EVERY = 2.0  # seconds; what a killed run did since is done again


@dataclass
class Shelf:
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
    def open(cls, store: Path, preparation: Mapping[str, Any]) -> Shelf:
        """Raises `InputError` for a damaged store, or one that was prepared differently. Clears what a killed run
        left half-written."""
        manifest = crop_store.read_manifest(store)
        if manifest and manifest["preparation"] != preparation:
            raise InputError(
                "store_differs",
                f"The store {store} was prepared differently: {manifest['preparation']}.",
                "Use the same settings, or another --output.",
            )
        for partial in store.glob(f".*{crop_store.PARTIAL}"):
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
            crop_store.remove_scan(self.store, entry)

    def keep(self, case: Case, entry: dict[str, Any], report: Reporter) -> None:
        """Put a scan on the shelf. Of two copies the one that was there before this run stays, else the first by name:
        the order in which processes get done decides nothing."""
        twin = self._names.get(entry["content"])
        if twin is not None and (twin not in self._new or twin < case.name):
            crop_store.remove_scan(self.store, entry)
            self._copy(case.name, entry["source"], twin, report)
            return
        if twin is not None:
            other = self.scans.pop(twin)
            crop_store.remove_scan(self.store, other)
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
        crop_store.write_manifest(self.store, {**self.manifest, **lists})
        self._saved = time.monotonic()
