"""Which predicted label map belongs to which reference, and what their values are called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from HiEndMAECore.errors import InputError
from HiEndMAECore.io.file_names import case_name, is_scan_file


@dataclass(frozen=True)
class MatchedCases:
    """pairs: {case name: (prediction, reference)}; and the names that have only one of the two."""

    pairs: dict[str, tuple[Path, Path]]
    without_prediction: tuple[str, ...] = ()
    without_reference: tuple[str, ...] = ()


def match_cases(prediction: Path, reference: Path) -> MatchedCases:
    """Pair two files (whatever their names), or the label maps of folders by the names of their cases.

    Raises `InputError`: `file_missing`, `no_cases`, `case_twice`, `no_pairs`.
    """
    predictions, references = _cases(prediction), _cases(reference)
    if not prediction.is_dir() and not reference.is_dir():
        return MatchedCases({next(iter(references)): (prediction, reference)})
    both = sorted(predictions.keys() & references.keys())
    if not both:
        message = f"No case of {prediction} has the name of a case of {reference}."
        raise InputError("no_pairs", message, "Cases pair by their file names: NAME.nii.gz, NAME_0000.nii.gz.")
    return MatchedCases(
        {name: (predictions[name], references[name]) for name in both},
        # Beside one file given by name, the rest of the other folder is nobody's concern.
        tuple(sorted(references.keys() - predictions.keys())) if prediction.is_dir() else (),
        tuple(sorted(predictions.keys() - references.keys())) if reference.is_dir() else (),
    )


def _cases(place: Path) -> dict[str, Path]:
    """The label maps of a folder, or the one file, by name. Entropy maps and reports are none."""
    if not place.exists():
        raise InputError("file_missing", f"{place} does not exist.", "Check the path.")
    if not place.is_dir():
        return {case_name(place): place}
    cases: dict[str, Path] = {}
    for path in sorted(place.iterdir()):
        name = case_name(path)
        if not is_scan_file(path) or name.endswith("_entropy") or name.startswith("."):  # "._NAME": macOS
            continue
        if name in cases:
            raise InputError("case_twice", f"{cases[name]} and {path} are both case {name}.", "Keep one of them.")
        cases[name] = path
    if not cases:
        raise InputError("no_cases", f"{place} holds no label map.", "Give a folder of label maps, or one file.")
    return cases
