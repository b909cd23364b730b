"""Which files make a case: scans found in folders and lists, and the nnU-Net and Decathlon dataset layouts."""

from __future__ import annotations

import colorsys
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from HiEndMAECore.errors import InputError

from .files import case_name, is_dicom_file, is_scan_file, suffix_of
from .volume import Structure

_LABEL_FOLDERS = {"labelstr", "labelsts"}
_NUMBERED = re.compile(r"(.+)_(\d{4})$")
_PALETTE = (
    *((230, 75, 60), (70, 150, 220), (245, 200, 60), (95, 190, 90), (165, 100, 210), (245, 140, 50), (60, 200, 195)),
    *((235, 120, 180), (160, 200, 70), (150, 105, 70), (110, 120, 235), (250, 175, 150), (40, 130, 110)),
    *((190, 170, 230), (200, 60, 120), (150, 160, 170)),
)  # told apart on grey scans, neighbours far apart in hue


@dataclass(frozen=True)
class Case:
    """One patient's scan: a file or DICOM folder for each channel, and its label map if there is one."""

    name: str
    channels: tuple[Path, ...]
    label: Path | None = None


@dataclass(frozen=True)
class Dataset:
    """A labelled dataset. `unlabelled`: its scans without a label map; test sets are not among them. `ignore`: the label
    value of voxels that nobody judged, if there is one; it is none of the structures."""

    name: str
    structures: tuple[Structure, ...]
    cases: tuple[Case, ...]
    unlabelled: tuple[Case, ...] = ()
    channel_names: tuple[str, ...] = field(default=())
    ignore: int | None = None


def label_colours(n: int) -> list[tuple[int, int, int]]:
    """`n` colours (red, green, blue, 0 to 255) that can be told apart; the first ones never change with `n`."""
    colours = list(_PALETTE[:n])
    for index in range(len(colours), n):
        hue = (index * 0.618034) % 1.0  # golden ratio: each new hue falls into the largest gap
        saturation, value = (0.55, 0.95) if index % 2 else (0.85, 0.75)
        red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))
        colours.append((red, green, blue))
    return colours


# -- loose files -------------------------------------------------------------------------------------------------


def find_cases(inputs: Sequence[str | Path], *, leave_out: Path | None = None) -> list[Case]:
    """Every scan among files, folders (and what they contain) and .txt lists, sorted by name.

    `NAME_0000`, `NAME_0001`, … of one folder are the channels of one case; a folder that holds DICOM files is one case.
    Folders of label maps (labelsTr, labelsTs), hidden ones and `leave_out` (resolved; results of an earlier run, say) are
    passed over. Same names get their folder in front.
    """
    paths = list(dict.fromkeys(found for one in inputs for found in _scans(Path(one), leave_out)))
    if not paths:
        raise InputError(
            "no_scans",
            f"No scan was found in {', '.join(str(one) for one in inputs) or 'nothing'}.",
            "Give NIfTI, NRRD or MHA files, folders of DICOM files, or a .txt list of them.",
        )
    groups: dict[tuple[Path, str, str], dict[int, Path]] = {}
    for path in paths:
        if numbered := _NUMBERED.match(_stem(path)):
            groups.setdefault((path.parent, numbered[1], suffix_of(path)), {})[int(numbered[2])] = path
    cases: list[Case] = []
    taken: set[Path] = set()
    for (_, name, _), channels in groups.items():
        if set(channels) == set(range(len(channels))):  # else the numbers count patients, not channels
            cases.append(Case(name, tuple(channels[index] for index in sorted(channels))))
            taken.update(channels.values())
    cases += [Case(_own_name(path), (path,)) for path in paths if path not in taken]
    return sorted(_told_apart(cases), key=lambda case: case.name)


def _stem(path: Path) -> str:
    return path.name[: len(path.name) - len(suffix_of(path))] if is_scan_file(path) else ""


def _own_name(path: Path) -> str:
    return _stem(path) or case_name(path)


def _scans(path: Path, leave_out: Path | None, *, listed: bool = False) -> Iterator[Path]:
    if path.is_dir():
        yield from _scans_below(path, leave_out)
    elif not path.exists():
        raise InputError("file_missing", f"There is no file or folder {path}.", "Check the path.")
    elif path.suffix.lower() == ".txt" and not listed:
        for line in path.read_text(encoding="utf-8-sig").splitlines():
            if line.strip():
                yield from _scans(path.parent / line.strip(), leave_out, listed=True)
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


def _scans_below(folder: Path, leave_out: Path | None) -> Iterator[Path]:
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(
            n
            for n in folders
            if not n.startswith(".") and n.lower() not in _LABEL_FOLDERS and Path(here, n).resolve() != leave_out
        )
        files = [Path(here, name) for name in sorted(names) if not name.startswith(".")]
        scans = [file for file in files if is_scan_file(file)]
        yield from (s for s in scans if not (suffix_of(s) == ".img" and _header_of(s) in names))
        if any(is_dicom_file(file) for file in files if file not in scans):
            yield Path(here)


def _header_of(image: Path) -> str:
    return image.name[:-4] + ".hdr"


def _told_apart(cases: list[Case]) -> list[Case]:
    """Names that clash get their format behind if they share a folder, else as many folders in front as it takes."""
    here = Counter((case.channels[0].parent, case.name) for case in cases)
    bases = [
        case.name + suffix_of(case.channels[0]).replace(".", "_")
        if here[case.channels[0].parent, case.name] > 1
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


# -- datasets ----------------------------------------------------------------------------------------------------


def read_dataset(folder: str | Path) -> Dataset:
    """A folder in nnU-Net layout (imagesTr, labelsTr; labels as name -> value) or Decathlon's (labels as value -> name,
    a list of training pairs). InputError when its dataset.json or the files it promises are not there."""
    folder = Path(folder)
    source = folder / "dataset.json"
    if not source.is_file():
        raise InputError(
            "dataset_json_missing", f"There is no dataset.json in {folder}.", "Give a dataset in nnU-Net's layout."
        )
    try:
        data = json.loads(source.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError) as error:
        raise _ill_formed(source, f"it is not JSON ({error})") from error
    if not isinstance(data, dict):
        raise _ill_formed(source, "it is not a JSON object")
    structures, ignore = _structures(source, data)
    channels = data.get("channel_names", data.get("modality", {"0": "scan"}))
    if not isinstance(channels, dict) or not channels:
        raise _ill_formed(source, "'channel_names' is no object of channel numbers and names")
    names = tuple(str(channels[key]) for key in sorted(channels, key=lambda key: (len(str(key)), str(key))))
    if isinstance(data.get("training"), list):
        cases, unlabelled = _decathlon_cases(source, data)
    else:
        cases, unlabelled = _nnunet_cases(source, data, len(names))
    if not cases and not unlabelled:
        raise InputError("dataset_empty", f"The dataset {folder} has no cases.", "Put scans into its imagesTr folder.")
    return Dataset(str(data.get("name") or folder.name), structures, tuple(cases), tuple(unlabelled), names, ignore)


def nested_share(cases: Sequence[Case], percent: float, *, seed: int) -> list[Case]:
    """`percent` of the cases, one at least, sorted by name. Of one seed a smaller share lies within every larger one, also
    when cases are added later or listed in another order."""
    if not 0 < percent <= 100:
        raise ValueError(f"the share is {percent} percent, must lie above 0 and not above 100")
    drawn = sorted(cases, key=lambda case: hashlib.sha256(f"{seed} {case.name}".encode()).digest())
    return sorted(drawn[: max(1, round(len(drawn) * percent / 100))], key=lambda case: case.name)


def _structures(source: Path, data: Mapping[str, Any]) -> tuple[tuple[Structure, ...], int | None]:
    labels = data.get("labels")
    if not isinstance(labels, dict) or not labels:
        raise _ill_formed(source, "'labels' is no object of names and values")
    if all(str(key).isdigit() for key in labels):
        pairs = [(str(name), int(key)) for key, name in labels.items()]
    else:
        for name, value in labels.items():
            if isinstance(value, list):
                raise _ill_formed(source, f"label '{name}' is a region of several values, which is not supported")
            if isinstance(value, bool) or not str(value).isdigit():
                raise _ill_formed(source, f"label '{name}' has the value {value!r}, not a whole number")
        pairs = [(str(name), int(value)) for name, value in labels.items()]
    ignore = dict(pairs).get("ignore")
    pairs = sorted((pair for pair in pairs if pair[1] != 0 and pair[0] != "ignore"), key=lambda pair: pair[1])
    if not pairs or len({value for _, value in pairs}) < len(pairs):
        raise _ill_formed(source, "'labels' has no structure, or one value twice")
    colours = label_colours(len(pairs))
    return tuple(Structure(value, name, colour) for (name, value), colour in zip(pairs, colours)), ignore


def _decathlon_cases(source: Path, data: Mapping[str, Any]) -> tuple[list[Case], list[Case]]:
    cases = []
    for entry in data["training"]:
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("image"), str)
            or not isinstance(entry.get("label"), str)
        ):
            raise _ill_formed(source, f"'training' has an entry without image and label: {entry!r}")
        image, label = source.parent / entry["image"], source.parent / entry["label"]
        cases.append(Case(case_name(image), (_there(image, source),), _there(label, source)))
    return sorted(cases, key=lambda case: case.name), []


def _nnunet_cases(source: Path, data: Mapping[str, Any], channels: int) -> tuple[list[Case], list[Case]]:
    folder, ending = source.parent, str(data.get("file_ending", ".nii.gz"))
    if isinstance(data.get("dataset"), dict):  # nnU-Net v2: files may lie anywhere
        try:
            cases = [
                Case(
                    str(name),
                    tuple(_there(folder / image, source) for image in entry["images"]),
                    _there(folder / entry["label"], source),
                )
                for name, entry in data["dataset"].items()
            ]
        except (KeyError, TypeError) as error:
            raise _ill_formed(source, f"'dataset' has an entry without images and label ({error})") from error
        return sorted(cases, key=lambda case: case.name), []

    def images(of: str, name: str) -> tuple[Path, ...]:
        return tuple(_there(folder / of / f"{name}_{index:04d}{ending}", source) for index in range(channels))

    def names(of: str) -> list[str]:
        files = sorted((folder / of).glob(f"*_0000{ending}")) if (folder / of).is_dir() else []
        return [file.name[: -len(f"_0000{ending}")] for file in files]

    labels = {f.name[: -len(ending)]: f for f in sorted((folder / "labelsTr").glob(f"*{ending}")) if f.name[0] != "."}
    cases = [Case(name, images("imagesTr", name), label) for name, label in labels.items()]
    unlabelled = [Case(name, images("imagesTr", name)) for name in names("imagesTr") if name not in labels]
    unlabelled += [Case(name, images("imagesUnlabelled", name)) for name in names("imagesUnlabelled")]
    return cases, _told_apart(unlabelled)


def _there(path: Path, source: Path) -> Path:
    if not path.is_file():
        raise InputError(
            "dataset_file_missing",
            f"The dataset {source.parent} lacks {path}.",
            "Complete the copy, or leave the case out.",
        )
    return path


def _ill_formed(source: Path, why: str) -> InputError:
    return InputError(
        "dataset_json_ill_formed",
        f"{source} does not describe a dataset: {why}.",
        "Follow nnU-Net's dataset.json: channel_names, labels (name and value) and file_ending.",
    )
