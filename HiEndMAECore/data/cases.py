"""Find the scans of cases among files, folders and lists."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from HiEndMAECore.errors import InputError
from HiEndMAECore.io.file_names import case_name, file_suffix, is_dicom_file, is_scan_file

_LABEL_FOLDERS = {"labelstr", "labelsts"}
_NUMBERED = re.compile(r"(.+)_(\d{4})$")


@dataclass(frozen=True)
class Case:
    """One scan of a patient: a file or DICOM folder for each channel, and its label map if there is one."""

    name: str
    channels: tuple[Path, ...]
    label: Path | None = None


def find_cases(inputs: Sequence[str | Path], *, exclude: Path | None = None) -> list[Case]:
    """Find every scan among files, folders (with all folders below) and .txt lists.

    `NAME_0000`, `NAME_0001`, … of one folder are the channels of one case; a folder that holds DICOM files is one case.
    Folders of label maps (labelsTr, labelsTs) and hidden ones are skipped.

    Args:
        inputs: Files, folders and lists.
        exclude: A resolved folder to skip, such as that of earlier results.

    Returns:
        The cases, sorted by name; equal names get their folder in front.

    Raises:
        InputError: `no_scans`, `file_missing` or `not_a_volume`.
    """
    paths = list(dict.fromkeys(found for one in inputs for found in _scans(Path(one), exclude)))
    if not paths:
        raise InputError(
            "no_scans",
            f"No scan was found in {', '.join(str(one) for one in inputs) or 'nothing'}.",
            "Give NIfTI, NRRD or MHA files, folders of DICOM files, or a .txt list of them.",
        )
    groups: dict[tuple[Path, str, str], dict[int, Path]] = {}
    for path in paths:
        if numbered := _NUMBERED.match(_stem(path)):
            groups.setdefault((path.parent, numbered[1], file_suffix(path)), {})[int(numbered[2])] = path
    cases: list[Case] = []
    taken: set[Path] = set()
    for (_, name, _), channels in groups.items():
        if set(channels) == set(range(len(channels))):  # otherwise the numbers count patients, not channels
            cases.append(Case(name, tuple(channels[index] for index in sorted(channels))))
            taken.update(channels.values())
    cases += [Case(_stem(path) or case_name(path), (path,)) for path in paths if path not in taken]
    return sorted(with_unique_names(cases), key=lambda case: case.name)


def case_source(case: Case) -> str:
    """Return folder and file of a case, which distinguish it from another of the same name.

    The rest of the path describes the machine and not the scan.
    """
    return "/".join(case.channels[0].absolute().parts[-2:])


def _stem(path: Path) -> str:
    return path.name[: len(path.name) - len(file_suffix(path))] if is_scan_file(path) else ""


def _scans(path: Path, exclude: Path | None, *, listed: bool = False) -> Iterator[Path]:
    if path.is_dir():
        yield from _scans_below(path, exclude)
    elif not path.exists():
        raise InputError("file_missing", f"There is no file or folder {path}.", "Check the path.")
    elif path.suffix.lower() == ".txt" and not listed:
        for line in path.read_text(encoding="utf-8-sig").splitlines():
            if line.strip():
                yield from _scans(path.parent / line.strip(), exclude, listed=True)
    elif is_scan_file(path):
        yield path
    elif is_dicom_file(path):
        yield path.absolute().parent
    else:
        raise InputError(
            "not_a_volume",
            f"{path} is not a volume that can be read here.",
            "Give NIfTI, NRRD, MHA/MHD or a folder of DICOM files.",
        )


def _scans_below(folder: Path, exclude: Path | None) -> Iterator[Path]:
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(
            n
            for n in folders
            if not n.startswith(".") and n.lower() not in _LABEL_FOLDERS and Path(here, n).resolve() != exclude
        )
        files = [Path(here, name) for name in sorted(names) if not name.startswith(".")]
        scans = [file for file in files if is_scan_file(file)]
        yield from (s for s in scans if not (file_suffix(s) == ".img" and _header_of(s) in names))
        if any(is_dicom_file(file) for file in files if file not in scans):
            yield Path(here)


def _header_of(image: Path) -> str:
    return image.name[:-4] + ".hdr"


def with_unique_names(cases: list[Case]) -> list[Case]:
    """Return the cases with unique names.

    Cases of equal names in one folder get their format appended; others get as many folders in front as are needed.
    """
    in_folder = Counter((case.channels[0].parent, case.name) for case in cases)
    bases = [
        case.name + file_suffix(case.channels[0]).replace(".", "_")
        if in_folder[case.channels[0].parent, case.name] > 1
        else case.name
        for case in cases
    ]
    folders = [case.channels[0].absolute().parent.parts[1:] for case in cases]
    names = bases
    for depth in range(1, max(map(len, folders), default=0) + 1):
        count = Counter(names)
        if max(count.values()) == 1:
            break
        names = [
            re.sub(r"[^\w.-]", "_", "_".join([*above[-depth:], base])) if count[name] > 1 else name
            for name, base, above in zip(names, bases, folders)
        ]
    return [replace(case, name=name) for case, name in zip(cases, names)]
