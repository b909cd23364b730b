"""Which scans must not get into a store, so that no network is tested on scans that it was pretrained on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from HiEndMAECore.errors import InputError
from HiEndMAECore.io.file_names import case_name, is_dicom_file, is_scan_file

from .cases import Case, find_cases

_TEST_FOLDER = "imagests"  # nnU-Net and Decathlon keep their test scans there


def read_exclusion_list(file: Path) -> set[str]:
    """Return the entries of an exclusion list: names of cases, files or folders.

    Args:
        file: A text file with one entry a line, or a JSON file, of which every string in lists and objects is taken
            (such as splits.json).

    Raises:
        InputError: `list_unreadable`.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        entries = _strings(json.loads(text)) if file.suffix == ".json" else text.splitlines()
        return {entry.strip() for entry in entries} - {""}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            "list_unreadable", f"The list {file} cannot be read ({error}).", "Give a text file."
        ) from error


def _strings(data: Any) -> Iterator[str]:
    """Yield every string and number in JSON data; the keys of objects are not taken."""
    if isinstance(data, dict):
        data = list(data.values())
    if isinstance(data, list):
        for part in data:
            yield from _strings(part)
    elif data is not None:
        yield str(data)


@dataclass(frozen=True)
class ExclusionList:
    """The scans that must not get into a store.

    Attributes:
        names: Names of cases on the list.
        cases: Scans that the list gives as files or folders.
        inputs: Where scans are looked for. The scans of a test folder (imagesTs) among them are excluded too, unless
            the folder is an input itself.
        entries: The names on the list, as they were written.
    """

    names: frozenset[str]
    cases: tuple[Case, ...]
    inputs: tuple[Path, ...]
    entries: tuple[str, ...] = ()

    @classmethod
    def read(cls, file: Path | None, inputs: Sequence[Path]) -> ExclusionList:
        """Read a list; an entry that exists as a path from the list's folder or from the working folder is a path.

        Args:
            file: The list (see `read_exclusion_list`), or None.
            inputs: Files and folders in which scans are looked for.

        Raises:
            InputError: The list, or a path on it, cannot be read.
        """
        names, paths, entries = set(), [], []
        folder = file.parent if file else Path()
        for entry in sorted(read_exclusion_list(file)) if file else ():
            existing = [path for path in (folder / entry, Path(entry)) if path.exists()]
            usable = [path for path in existing if path.is_dir() or is_scan_file(path) or is_dicom_file(path)]
            if usable and (usable[0].is_file() or "/" in entry or "\\" in entry):
                paths.append(usable[0])
            else:
                names |= {entry, case_name(Path(entry))}
                entries.append(entry)
        cases = tuple(find_cases(paths)) if paths else ()
        return cls(frozenset(names), cases, tuple(inputs), tuple(entries))

    def split(self, found: Sequence[Case]) -> tuple[list[Case], list[Case]]:
        """Split the found cases.

        Returns:
            All scans whose voxels must not get in (those of `found`, then those that only the list gives), and the cases
            of `found` that may get in.
        """
        files = {path.resolve() for case in self.cases for path in case.channels}
        excluded = [case for case in found if self._excludes(case, files)]
        known = {path.resolve() for case in excluded for path in case.channels}
        elsewhere = [case for case in self.cases if not known & {path.resolve() for path in case.channels}]
        return excluded + elsewhere, [case for case in found if case not in excluded]

    def unmatched(self, found: Sequence[Case]) -> list[str]:
        """Return the names on the list that no found case has: misspelt ones exclude nothing."""
        known = {name for case in found for name in (case.name, case_name(case.channels[0]))}
        return [entry for entry in self.entries if not {entry, case_name(Path(entry))} & known]

    def _excludes(self, case: Case, files: set[Path]) -> bool:
        first = case.channels[0]
        own = {case.name, case_name(first)}  # equal names get their folder in front, which the list does not have
        return bool(own & self.names or files & {path.resolve() for path in case.channels} or self._is_test_scan(first))

    def _is_test_scan(self, path: Path) -> bool:
        """Return whether a scan lies in a test folder below every input folder that contains it."""
        scan = path.absolute()
        below = [
            scan.relative_to(folder.absolute()).parts
            for folder in self.inputs
            if folder.is_dir() and scan.is_relative_to(folder.absolute())
        ]
        return bool(below) and all(_TEST_FOLDER in (part.lower() for part in parts) for parts in below)
