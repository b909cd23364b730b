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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from HiEndMAECore.errors import InputError
from HiEndMAECore.io.file_names import case_name, is_dicom_file, is_scan_file

from .cases import Case, find_cases


def read_exclusion_list(file: Path) -> set[str]:
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


_TEST_FOLDER = "imagests"  # nnU-Net and Decathlon keep the scans of their tests there


@dataclass(frozen=True)
class ExclusionList:
    """`listed`: names of cases. `cases`: scans that the list gives as files or folders. `inputs`: where scans are
    looked for; a test folder among them that was not named itself is held out as well."""

    listed: frozenset[str]
    cases: tuple[Case, ...]
    inputs: tuple[Path, ...]

    @classmethod
    def read(cls, file: Path | None, inputs: Sequence[Path]) -> ExclusionList:
        """From a list (see `read_hold_out`): what exists from the list's folder or from here is a path. Raises
        `InputError`."""
        names, paths = set(), []
        here = file.parent if file else Path()
        for entry in read_exclusion_list(file) if file else ():
            there = [path for path in (here / entry, Path(entry)) if path.exists()]
            usable = [path for path in there if path.is_dir() or is_scan_file(path) or is_dicom_file(path)]
            if usable and (usable[0].is_file() or "/" in entry or "\\" in entry):
                paths.append(usable[0])
            else:
                names.add(entry)
                names.add(case_name(Path(entry)))
        return cls(frozenset(names), tuple(find_cases(paths)) if paths else (), tuple(inputs))

    def names(self, name: str) -> bool:
        """Is a case of this name listed?"""
        return name in self.listed

    def part(self, found: Sequence[Case]) -> tuple[list[Case], list[Case]]:
        """(held out, the rest): all scans whose voxels must not get in, and the cases of `found` that may."""
        files = {path.resolve() for case in self.cases for path in case.channels}
        held = [case for case in found if self._holds(case, files)]
        known = {path.resolve() for case in held for path in case.channels}
        elsewhere = [case for case in self.cases if not known & {path.resolve() for path in case.channels}]
        return held + elsewhere, [case for case in found if case not in held]

    def _holds(self, case: Case, files: set[Path]) -> bool:
        first = case.channels[0]
        own = {case.name, case_name(first)}  # a clash of names puts folders in front of the name that was listed
        return bool(own & self.listed or files & {path.resolve() for path in case.channels} or self._is_test(first))

    def _is_test(self, path: Path) -> bool:
        for given in self.inputs:
            if given.is_dir() and path.absolute().is_relative_to(given.absolute()):
                below = path.absolute().relative_to(given.absolute())
                return _TEST_FOLDER in (part.lower() for part in below.parts)
        return False
