"""Which predicted label map belongs to which reference, and what their values are called."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from HiEndMAECore.errors import InputError
from HiEndMAECore.volumes import files


@dataclass(frozen=True)
class Pairs:
    """pairs: {case name: (prediction, reference)}; and the names that have only one of the two."""

    pairs: dict[str, tuple[Path, Path]]
    without_prediction: tuple[str, ...] = ()
    without_reference: tuple[str, ...] = ()


def find_pairs(prediction: Path, reference: Path) -> Pairs:
    """Pair two files (whatever their names), or the label maps of folders by the names of their cases.

    Raises `InputError`: `file_missing`, `no_cases`, `case_twice`, `no_pairs`.
    """
    predictions, references = _cases(prediction), _cases(reference)
    if not prediction.is_dir() and not reference.is_dir():
        return Pairs({next(iter(references)): (prediction, reference)})
    both = sorted(predictions.keys() & references.keys())
    if not both:
        told = f"No case of {prediction} has the name of a case of {reference}."
        raise InputError("no_pairs", told, "Cases pair by their file names: NAME.nii.gz, NAME_0000.nii.gz.")
    return Pairs(
        {name: (predictions[name], references[name]) for name in both},
        # Beside one file given by name, the rest of the other folder is nobody's concern.
        tuple(sorted(references.keys() - predictions.keys())) if prediction.is_dir() else (),
        tuple(sorted(predictions.keys() - references.keys())) if reference.is_dir() else (),
    )


def structure_names(labels: Path | None, reference: Path) -> dict[int, str]:
    """{value: name} out of `labels` (dataset.json or model.json), else of the dataset.json beside or above `reference`.

    Understands name -> value, value -> name, and a list of {"name", "value"}; the background (0), regions of several
    values and nnU-Net's `ignore` are no structures. Raises `InputError` `labels_unreadable`.
    """
    folder = reference if reference.is_dir() else reference.parent
    above = (file for file in (folder / "dataset.json", folder.parent / "dataset.json") if file.is_file())
    file = labels or next(above, None)
    if file is None:
        return {}
    try:
        told = json.loads(file.read_text(encoding="utf-8"))["labels"]
        if isinstance(told, list):
            named = {int(label["value"]): str(label["name"]) for label in told}
        elif all(str(key).isdecimal() for key in told):
            named = {int(key): str(name) for key, name in told.items()}
        else:
            named = {int(value): str(name) for name, value in told.items() if not isinstance(value, list)}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        advice = "Give a dataset.json or model.json with 'labels'."
        raise InputError("labels_unreadable", f"{file} names no structures.", advice) from error
    return {value: name for value, name in named.items() if value > 0 and name != "ignore"}


def _cases(place: Path) -> dict[str, Path]:
    """The label maps of a folder, or the one file, by name. Entropy maps and reports are none."""
    if not place.exists():
        raise InputError("file_missing", f"{place} does not exist.", "Check the path.")
    if not place.is_dir():
        return {files.case_name(place): place}
    cases: dict[str, Path] = {}
    for path in sorted(place.iterdir()):
        name = files.case_name(path)
        if not files.is_scan_file(path) or name.endswith("_entropy") or name.startswith("."):  # "._NAME": macOS
            continue
        if name in cases:
            raise InputError("case_twice", f"{cases[name]} and {path} are both case {name}.", "Keep one of them.")
        cases[name] = path
    if not cases:
        raise InputError("no_cases", f"{place} holds no label map.", "Give a folder of label maps, or one file.")
    return cases
