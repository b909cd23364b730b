"""Bring scans to one grid and one range of intensities, once, so that pretraining reads crops instead of volumes.

  python -m HiEndMAECore.prepare --input scans/ --output store

Inputs are NIfTI, NRRD, MHA, DICOM and data-set folders in any mixture. Label maps and duplicates of a scan are detected by
their voxels. A scan that cannot be used is skipped with its reason; a rerun adds only what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cli.options import CommandConfig, option, require_positive
from .cli.runner import run_command
from .errors import UsageError
from .models.schema import check_spacing_option
from .preprocessing.defaults import CT_WINDOW_HU
from .reporting.reporter import Reporter


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(CommandConfig):
    """Options of the command: scans, store, grid and intensities."""

    input: tuple[Path, ...] = option((), help="Scans, folders of scans, or .txt lists of them.", required=True)
    output: Path = option(help="Store to write (a folder).", required=True)
    spacing: tuple[float, float, float] = option(
        (1.5, 1.5, 1.5), help="Grid in mm along right, anterior, superior.", metavar=("R", "A", "S")
    )
    window: tuple[float, float] = option(CT_WINDOW_HU, help="CT: the HU that become 0 and 1.", metavar=("LOW", "HIGH"))
    modality: str = option("ct", help="ct: window in HU; mri: percentiles of each scan.", choices=("ct", "mri"))
    hold_out: Path | None = option(
        None,
        help="Cases to exclude, such as test cases: names, files or folders, one per line, or a JSON file with lists of them. "
        "Copies of them under other names are excluded too, if they are among the inputs or the list gives their files.",
        metavar="FILE",
    )
    workers: int | None = option(
        None, help="Worker processes, one thread each; 0: in the main process (default: one for each core)."
    )
    limit: int | None = option(None, help="Preprocess at most this many scans, in order of name.")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "spacing", "limit")
        check_spacing_option(self.spacing)
        if self.workers is not None and self.workers < 0:
            raise UsageError("usage", f"--workers is {self.workers}.", "Give 0 or more.")
        if not self.window[0] < self.window[1]:
            raise UsageError("usage", f"--window is {self.window}.", "The first value must be the smaller one.")


def run(config: PrepareConfig, report: Reporter | None = None) -> dict[str, Any]:
    """Preprocess the scans that the store lacks.

    Args:
        config: The options of the command.
        report: Receives progress and warnings.

    Returns:
        {"store": its folder}.

    Raises:
        InputError: Not one scan can be used.
    """
    report = report or Reporter(quiet=True)
    from .data.store_builder import StorePlan, build_store
    from .preprocessing.intensity import IntensityNormalization
    from .preprocessing.pipeline import PreprocessingPlan

    window = IntensityNormalization("window", *config.window)
    normalization = window if config.modality == "ct" else IntensityNormalization.percentiles()
    plan = StorePlan(
        inputs=config.input,
        output=config.output,
        preprocessing=PreprocessingPlan(config.spacing, normalization),
        exclusion_list=config.hold_out,
        workers=config.workers,
        limit=config.limit,
        seed=config.seed,
    )
    build_store(plan, report)
    return {"store": config.output}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return run_command(PrepareConfig, run, argv, command="prepare", description=__doc__ or "")


if __name__ == "__main__":
    raise SystemExit(main())
