"""Segment scans with a model: one scan, a folder tree, or a list; the labels lie exactly on each scan's own grid.

python -m HiEndMAECore.segment --model my-model --input scans/ --output results/
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .configuration import DoorConfig, option, require_positive
from .errors import InputError, UsageError
from .reporting.front_door import open_door
from .reporting.reporter import Reporter

if TYPE_CHECKING:
    from .inference.predictor import Predictor
    from .volumes.datasets import Case

FORMATS = ("nii.gz", "nii", "nrrd", "seg.nrrd", "mha")


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(DoorConfig):
    """Model, scans, and what to write."""

    model: Path | None = option(help="Model folder or .zip.", required=True)
    input: tuple[str, ...] = option((), help="Scans, folders, .txt lists; channels joined by commas.", required=True)
    output: Path | None = option(help="Label map to write, or a folder for several.", required=True)
    series: str | None = option(None, help="Series UID, where a DICOM folder holds several.")
    frame: int | None = option(None, help="Frame of a 4D scan, counted from 0.")
    spacing: tuple[float, float, float] | None = option(None, help="Working grid in mm instead of the model's.")
    mirror: bool = option(False, help="Average over mirrored scans (8 times slower).")
    uncertainty: bool = option(False, help="Also write NAME_entropy: 0 where the model is sure, 1 where it is not.")
    clean: bool = option(False, help="Keep only the largest piece of each structure.")
    format: str = option("nii.gz", help="Format of results in a folder.", choices=FORMATS)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "spacing")


def run(config: SegmentConfig, report: Reporter | None = None) -> dict[str, Any]:
    """Segment all; a scan that cannot be used is told and skipped, and `InputError` comes at the end."""
    report = report or Reporter(quiet=True)
    assert config.model is not None
    assert config.output is not None
    from .devices import choose_device
    from .inference.predictor import Predictor
    from .volumes.datasets import Case, find_cases
    from .volumes.files import case_name, is_scan_file

    cases: list[Case] = []
    for text in config.input:
        files = tuple(Path(part) for part in text.split(","))
        cases += [Case(case_name(files[0]), files, None)] if len(files) > 1 else find_cases(files)
    into_file = is_scan_file(config.output) and not config.output.is_dir()
    if into_file and len(cases) > 1:
        raise UsageError("usage", f"{len(cases)} scans do not fit into one file {config.output}.", "Give a folder.")
    predictor = Predictor.load(config.model, device=choose_device(config.device))
    if config.mirror and any(side in s.name.lower() for s in predictor.structures for side in ("left", "right")):
        told = "The model knows left and right structures: averaging over mirrored scans confuses them."
        report.warning("mirror_confuses_sides", told, "Leave --mirror out.")

    outputs, failed = {}, {}
    for number, case in enumerate(cases):
        path = config.output if into_file else config.output / f"{case.name}.{config.format}"
        report.say(f"{case.name} ({number + 1} of {len(cases)})")
        try:
            _segment(case, predictor, path, config, report)
        except InputError as error:
            if len(cases) == 1:
                raise
            failed[case.name] = error
            report.warning(error.code, f"{case.name} was skipped: {error.message}", error.advice)
            continue
        outputs[case.name] = path
    if failed:
        raise InputError(
            "some_cases_failed",
            f"{len(outputs)} of {len(cases)} scans were segmented; these could not be used: {', '.join(failed)}.",
            "The reasons are given above; the other results are in place.",
        )
    report.say(f"Done: {len(outputs)} scan(s), results in {config.output}.")
    return outputs


def _segment(case: Case, predictor: Predictor, path: Path, config: SegmentConfig, report: Reporter) -> None:
    """One scan to its label map, its report and, when asked, its entropy map."""
    from .inference.cleaning import keep_largest
    from .reporting.run_record import versions
    from .reporting.writing import write_text
    from .volumes.files import read_volume, suffix_of, write_labels, write_scalar

    started = time.monotonic()
    told = len(report.warnings)
    volume = read_volume(case.channels, name=case.name, series=config.series, frame=config.frame)
    for note in volume.notes:
        report.warning(note["code"], f"{case.name}: {note['message']}", note["advice"])
    result = predictor.segment(
        volume, report=report, spacing=config.spacing, mirror=config.mirror, uncertainty=config.uncertainty
    )
    labels = result.labels
    removed: dict[int, int] = {}
    if config.clean:
        labels, removed = keep_largest(labels, [structure.value for structure in predictor.structures])
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = suffix_of(path)
    stem = path.name[: len(path.name) - len(suffix)]
    if result.entropy is not None:
        plain = ".nrrd" if suffix == ".seg.nrrd" else suffix
        write_scalar(path.with_name(f"{stem}_entropy{plain}"), result.entropy, volume.geometry)
    structures = []
    for structure in predictor.structures:
        voxels = int((labels == structure.value).sum())
        row = {
            "name": structure.name,
            "value": structure.value,
            "volume_ml": round(voxels * volume.geometry.voxel_ml, 3),
        }
        structures.append({**row, "cleaned_voxels": removed[structure.value]} if structure.value in removed else row)
    record = {
        "case": case.name,
        "model": predictor.description.name,
        "weights_sha256": predictor.description.weights_sha256,
        "spacing_mm": list(config.spacing or predictor.plan.spacing),
        "structures": structures,
        "warnings": report.warnings[told:],
        "versions": versions(),
        "seconds": round(time.monotonic() - started, 2),
    }
    write_text(path.with_name(f"{stem}.json"), json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    write_labels(path, labels, volume.geometry, structures=predictor.structures)  # last: where it is, all is there


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return open_door(SegmentConfig, run, argv, door="segment", description=__doc__ or "")


if __name__ == "__main__":
    raise SystemExit(main())
