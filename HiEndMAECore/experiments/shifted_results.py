"""Results on shifted copies beside those on the unchanged scans, scored on the same voxels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from HiEndMAECore.data.cases import Case
from HiEndMAECore.io.alignment import align_label_map
from HiEndMAECore.io.readers import read_label_map, read_volume
from HiEndMAECore.io.volume import Volume
from HiEndMAECore.io.writers import write_scalar_map

from .case_lists import LabelPair
from .scoring import score_arrays
from .shifted_copies import Parameters, draw_copies, retained_shares, shift_labels, shift_scan

Apply = Callable[[Mapping[str, str], Path], None]


def score_shifted_copies(
    cases: Mapping[str, Case],
    results: Path,
    pairs: Sequence[LabelPair],
    apply: Apply,
    *,
    seed: int,
    ignore: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Write, segment and score the shifted copies of the cases.

    Args:
        cases: The labelled cases by name.
        results: Folder of the job; `scans` in it holds the results on the unchanged scans.
        pairs: The structures.
        apply: Segments the scans of a mapping into a folder.
        seed: Seed of the parameters.
        ignore: Value of reference voxels that are not scored.

    Returns:
        By the name of the copy and the case: "parameters", and for each structure "dice", "unshifted_dice" (of the result
        on the unchanged scan, on the copy's voxels) and "retained", the share of its volume that the copy shows.
    """
    parameters: dict[str, dict[str, Parameters]] = {}
    for name, case in cases.items():
        for copy, drawn in _write_copies(name, case, results, seed=seed).items():
            parameters.setdefault(copy, {})[name] = drawn
    scores: dict[str, dict[str, Any]] = {}
    for copy, by_case in parameters.items():
        scans = {name: _copied_scan(results, copy, name, len(cases[name].channels)) for name in by_case}
        apply(scans, results / copy)
        scores[copy] = {
            name: {
                "parameters": drawn,
                "structures": _score_copy(name, cases[name], results, copy, drawn, pairs, ignore),
            }
            for name, drawn in by_case.items()
        }
    return scores


def _write_copies(name: str, case: Case, results: Path, *, seed: int) -> dict[str, Parameters]:
    """Write every shifted copy of a case, and return the parameters of each."""
    scan = read_volume(case.channels, name=name)
    parameters = draw_copies(scan, _reference(case, scan), seed=seed)
    for copy, drawn in parameters.items():
        shifted = shift_scan(scan, drawn)
        for channel, array in enumerate(shifted.array):
            write_scalar_map(_copy_folder(results, copy) / f"{name}_{channel:04d}.nii.gz", array, shifted.geometry)
    return parameters


def _reference(case: Case, scan: Volume) -> Volume:
    """Return the label map of a case on the grid of its scan."""
    assert case.label is not None  # cases without one were refused when the scans were scored
    return align_label_map(scan, read_label_map(case.label, allow_empty=True))


def _score_copy(
    name: str,
    case: Case,
    results: Path,
    copy: str,
    parameters: Parameters,
    pairs: Sequence[LabelPair],
    ignore: int | None,
) -> dict[str, dict[str, Any]]:
    """Return the scores of each structure that the copy of one case shows."""
    scan = read_volume(case.channels, name=name)
    reference = _reference(case, scan)
    unshifted = align_label_map(scan, read_label_map(results / "scans" / f"{name}.nii.gz", allow_empty=True))
    found = read_label_map(results / copy / f"{name}.nii.gz", allow_empty=True)
    true = shift_labels(reference, parameters)
    before, after = (
        score_arrays(result.array[0], true.array[0], true.affine, pairs, ignore=ignore)
        for result in (shift_labels(unshifted, parameters), found)
    )
    shares = retained_shares(reference, true)
    retained = {pair.name: shares.get(pair.target, 0.0) for pair in pairs}
    return {
        structure: {
            "dice": score["dice"],
            "unshifted_dice": before[structure]["dice"],
            "retained": round(retained[structure], 3),
        }
        for structure, score in after.items()
    }


def _copy_folder(results: Path, copy: str) -> Path:
    return results / "copies" / copy


def _copied_scan(results: Path, copy: str, name: str, channels: int) -> str:
    """Return the files of a copy; channels are joined by commas."""
    return ",".join(str(_copy_folder(results, copy) / f"{name}_{index:04d}.nii.gz") for index in range(channels))
