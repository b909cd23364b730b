"""Data sets in the layouts of nnU-Net and of the Medical Segmentation Decathlon."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from HiEndMAECore.errors import InputError
from HiEndMAECore.io.bounded_json import parse_json_object
from HiEndMAECore.io.file_names import case_name
from HiEndMAECore.io.structure import Structure

from .cases import Case, with_unique_names
from .label_table import LabelTable, parse_labels


@dataclass(frozen=True)
class Dataset:
    """A labelled data set.

    Attributes:
        name: Its name.
        structures: What its label maps label.
        cases: Its labelled cases.
        unlabelled: Its scans without a label map; those of test sets are not among them.
        channel_names: Names of the channels, in order.
        ignore: Label value of voxels that were not judged, if there is one; it is none of the structures.
    """

    name: str
    structures: tuple[Structure, ...]
    cases: tuple[Case, ...]
    unlabelled: tuple[Case, ...] = ()
    channel_names: tuple[str, ...] = field(default=())
    ignore: int | None = None


def read_dataset(folder: str | Path) -> Dataset:
    """Read a data set.

    Args:
        folder: A folder with a dataset.json, in nnU-Net's layout (imagesTr, labelsTr; labels as name -> value) or in the
            Decathlon's (labels as value -> name, a list of training pairs).

    Raises:
        InputError: dataset.json is missing or ill-formed, or names files that are missing.
    """
    folder = Path(folder)
    source = folder / "dataset.json"
    if not source.is_file():
        raise InputError(
            "dataset_json_missing", f"There is no dataset.json in {folder}.", "Give a dataset in nnU-Net's layout."
        )
    try:
        data = parse_json_object(source.read_bytes())
    except (ValueError, OSError) as error:
        raise _ill_formed(source, f"it {error}") from error
    table = _read_table(source, data)
    channels = data.get("channel_names", data.get("modality", {"0": "scan"}))
    if not isinstance(channels, dict) or not channels:
        raise _ill_formed(source, "'channel_names' is not an object of channel numbers and names")
    names = tuple(str(channels[key]) for key in sorted(channels, key=lambda key: (len(str(key)), str(key))))
    if isinstance(data.get("training"), list):
        cases, unlabelled = _decathlon_cases(source, data)
    else:
        cases, unlabelled = _nnunet_cases(source, data, len(names))
    if not cases and not unlabelled:
        raise InputError("dataset_empty", f"The dataset {folder} has no cases.", "Put scans into its imagesTr folder.")
    title = str(data.get("name") or folder.name)
    return Dataset(title, table.structures, tuple(cases), tuple(unlabelled), names, table.ignore)


def nested_subset(cases: Sequence[Case], percent: float, *, seed: int) -> list[Case]:
    """Return a share of the cases such that, for one seed, a smaller share lies within every larger one.

    Adding cases later or listing them in another order does not change which of two cases comes first.

    Args:
        cases: The cases.
        percent: The share, above 0 and at most 100. At least one case is returned.
        seed: Seed of the order.

    Returns:
        The chosen cases, sorted by name.
    """
    if not 0 < percent <= 100:
        raise ValueError(f"the share is {percent} percent, must lie above 0 and not above 100")
    drawn = sorted(cases, key=lambda case: hashlib.sha256(f"{seed} {case.name}".encode()).digest())
    return sorted(drawn[: max(1, round(len(drawn) * percent / 100))], key=lambda case: case.name)


def _read_table(source: Path, data: Mapping[str, Any]) -> LabelTable:
    """Return the label table of a dataset.json."""
    labels = data.get("labels")
    if not isinstance(labels, dict):
        raise _ill_formed(source, "'labels' is not an object of names and values")
    try:
        table = parse_labels(labels)
    except ValueError as error:
        raise _ill_formed(source, str(error)) from error
    if not table.structures:
        raise _ill_formed(source, "'labels' has no structure")
    return table


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
        cases.append(Case(case_name(image), (_existing_file(image, source),), _existing_file(label, source)))
    return sorted(cases, key=lambda case: case.name), []


def _nnunet_cases(source: Path, data: Mapping[str, Any], channels: int) -> tuple[list[Case], list[Case]]:
    folder, ending = source.parent, str(data.get("file_ending", ".nii.gz"))
    if isinstance(data.get("dataset"), dict):  # nnU-Net v2: files may lie anywhere
        try:
            cases = [
                Case(
                    str(name),
                    tuple(_existing_file(folder / image, source) for image in entry["images"]),
                    _existing_file(folder / entry["label"], source),
                )
                for name, entry in data["dataset"].items()
            ]
        except (KeyError, TypeError) as error:
            raise _ill_formed(source, f"'dataset' has an entry without images and label ({error})") from error
        return sorted(cases, key=lambda case: case.name), []

    def images(of: str, name: str) -> tuple[Path, ...]:
        return tuple(_existing_file(folder / of / f"{name}_{index:04d}{ending}", source) for index in range(channels))

    def names(of: str) -> list[str]:
        files = sorted((folder / of).glob(f"*_0000{ending}")) if (folder / of).is_dir() else []
        return [file.name[: -len(f"_0000{ending}")] for file in files]

    labels = {f.name[: -len(ending)]: f for f in sorted((folder / "labelsTr").glob(f"*{ending}")) if f.name[0] != "."}
    cases = [Case(name, images("imagesTr", name), label) for name, label in labels.items()]
    unlabelled = [Case(name, images("imagesTr", name)) for name in names("imagesTr") if name not in labels]
    unlabelled += [Case(name, images("imagesUnlabelled", name)) for name in names("imagesUnlabelled")]
    return cases, with_unique_names(unlabelled)


def _existing_file(path: Path, source: Path) -> Path:
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
