"""Bring scans to one grid and one range of intensities, once, so that pretraining reads crops instead of volumes.

  python -m HiEndMAECore.prepare --input scans/ --output store

A scan that cannot be used is left out with its reason; a rerun prepares only what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .configuration import DoorConfig, option, require_positive
from .errors import InputError, UsageError
from .reporting.front_door import open_door
from .reporting.reporter import Reporter


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(DoorConfig):
    """Which scans, where to, on which grid."""

    input: tuple[Path, ...] = option((), help="Scans, folders of scans, or .txt lists of them.", required=True)
    output: Path | None = option(help="Store to write (a folder).", required=True)
    spacing: tuple[float, float, float] = option((1.5, 1.5, 1.5), help="Grid in mm along right, anterior, superior.")
    window: tuple[float, float] = option((-175.0, 250.0), help="CT: the HU that become 0 and 1.")
    modality: str = option("ct", help="ct: window in HU; mri: percentiles of each scan.", choices=("ct", "mri"))
    hold_out: Path | None = option(
        None, help="Cases that must not get in: names one a line, or a JSON file with lists of names."
    )
    limit: int | None = option(None, help="Prepare at most so many scans, the first by name.")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "spacing", "limit")
        if not self.window[0] < self.window[1]:
            raise UsageError("usage", f"--window is {self.window}.", "The first value must be the smaller one.")


def run(config: PrepareConfig, report: Reporter | None = None) -> dict[str, Any]:
    """Prepare what is missing; returns the store. Raises `InputError` when not one scan can be used."""
    report = report or Reporter(quiet=True)
    assert config.output is not None
    from .volumes import crop_store
    from .volumes.datasets import find_cases
    from .volumes.files import read_volume
    from .volumes.preparation import Normalisation, PreparationPlan, prepare

    window = Normalisation("window", *config.window)
    plan = PreparationPlan(config.spacing, window if config.modality == "ct" else Normalisation.percentiles())
    held_out = crop_store.read_hold_out(config.hold_out) if config.hold_out else set()
    found = find_cases(config.input)
    cases = [case for case in found if case.name not in held_out]
    held = sum(case.name in held_out for case in found)
    cases = cases[: config.limit]

    manifest = crop_store.read_manifest(config.output)
    if manifest and manifest["preparation"] != plan.to_json():
        raise InputError(
            "store_differs",
            f"The store {config.output} was prepared differently: {manifest['preparation']}.",
            "Use the same settings, or another --output.",
        )
    scans = {scan["name"]: scan for scan in manifest.get("scans", []) if scan["name"] not in held_out}
    left_out: dict[str, str] = {}
    channels = manifest.get("channels")

    def save() -> None:
        told = {"preparation": plan.to_json(), "channels": channels, "held_out": held}
        reasons = [{"name": name, "reason": reason} for name, reason in left_out.items()]
        ordered = [scans[name] for name in sorted(scans)]
        crop_store.write_manifest(config.output, {**told, "scans": ordered, "left_out": reasons})  # type: ignore[arg-type]

    for step in report.steps("preparing", len(cases)):
        case = cases[step]
        if case.name in scans:
            continue
        try:
            volume = read_volume(case.channels)
            if channels not in (None, volume.channels):
                raise InputError("channels_do_not_fit", f"{case.name} has {volume.channels} channels, not {channels}.")
        except InputError as error:
            left_out[case.name] = str(error)
            report.warning(error.code, error.message, f"It was left out. {error.advice}".strip())
            continue
        channels = volume.channels
        scans[case.name] = crop_store.add_scan(config.output, case.name, prepare(volume, plan).array, seed=config.seed)
        save()
    if not scans:
        raise InputError("nothing_prepared", "Not one of these scans could be used.", "See the reasons above.")
    save()
    report.metric("scans", len(scans), left_out=len(left_out), held_out=held)
    report.say(f"{len(scans)} scans are in {config.output}; {len(left_out)} could not be used, {held} were held out.")
    return {"store": config.output}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return open_door(PrepareConfig, run, argv, door="prepare", description=__doc__ or "")


if __name__ == "__main__":
    raise SystemExit(main())
