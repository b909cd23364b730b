"""Matching of predicted label maps with reference label maps by the names of their cases."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from HiEndMAECore.errors import InputError
from HiEndMAECore.io.file_names import case_name, is_scan_file


@dataclass(frozen=True)
class MatchedCases:
    """The pairs of label maps to compare.

    Attributes:
        pairs: (prediction, reference) by the name of the case.
        without_prediction: Cases that have only a reference.
        without_reference: Cases that have only a prediction.
    """

    pairs: dict[str, tuple[Path, Path]]
    without_prediction: tuple[str, ...] = ()
    without_reference: tuple[str, ...] = ()


def match_cases(prediction: Path, reference: Path) -> MatchedCases:
    """Match predictions with references. Two files match whatever their names; in folders, cases match by name.

    Args:
        prediction: A label map, or a folder of them.
        reference: A label map, or a folder of them.

    Raises:
        InputError: `file_missing`, `no_cases`, `case_twice` or `no_pairs`.
    """
    predictions, references = _find_label_maps(prediction), _find_label_maps(reference)
    if not prediction.is_dir() and not reference.is_dir():
        return MatchedCases({next(iter(references)): (prediction, reference)})
    names = sorted(predictions.keys() & references.keys())
    if not names:
        message = f"No case of {prediction} has the name of a case of {reference}."
        raise InputError("no_pairs", message, "Cases pair by their file names: NAME.nii.gz, NAME_0000.nii.gz.")
    return MatchedCases(
        {name: (predictions[name], references[name]) for name in names},
        # A single file is compared with one case of the other folder, and the remaining cases there are not missing.
        tuple(sorted(references.keys() - predictions.keys())) if prediction.is_dir() else (),
        tuple(sorted(predictions.keys() - references.keys())) if reference.is_dir() else (),
    )


def _find_label_maps(path: Path) -> dict[str, Path]:
    """Return the label maps of a folder, or the one file, by name. Entropy maps and hidden files are ignored."""
    if not path.exists():
        raise InputError("file_missing", f"{path} does not exist.", "Check the path.")
    if not path.is_dir():
        return {case_name(path): path}
    cases: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        name = case_name(file)
        if not is_scan_file(file) or name.endswith("_entropy") or name.startswith("."):  # macOS writes "._NAME"
            continue
        if name in cases:
            raise InputError("case_twice", f"{cases[name]} and {file} are both case {name}.", "Keep one of them.")
        cases[name] = file
    if not cases:
        raise InputError("no_cases", f"{path} holds no label map.", "Give a folder of label maps, or one file.")
    return cases
