"""Compare methods in equal processor time and report the table, or compare finished reports of evaluate.

  python -m HiEndMAECore.compare --preset one-label --data FOLDER --output table.jsonl --cpu-seconds 600
  python -m HiEndMAECore.compare --report table.jsonl --baseline shipped
  python -m HiEndMAECore.compare --reports a.json b.json

A job is an arm, a training case, a seed and a region. Finished jobs are lines of the table and are not run again; several
processes may work on one table. --list-jobs prints the jobs for any scheduler, which --job selects one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cli.options import CommandConfig, option, require_positive
from .cli.runner import run_command
from .errors import UsageError
from .experiments.job_list import Selection, list_jobs, use_engines
from .experiments.plan import SPLITS, Budget, read_plan
from .experiments.presets import PRESETS, read_preset
from .reporting.reporter import Reporter

_DEFAULT_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class CompareConfig(CommandConfig):
    """Options of `compare`: what to run, or what to report."""

    plan: Path | None = option(None, help="JSON file with data sets and arms.")
    preset: str | None = option(None, help="Plan that comes with the engine.", choices=tuple(PRESETS))
    data: Path | None = option(None, help="Folder of the data sets (default: that of the plan).")
    output: Path | None = option(None, help="Table to continue, TABLE.jsonl; or report to write, REPORT.json.")
    split: str = option("tune", help="Cases to segment; test must be asked for.", choices=SPLITS)
    arms: tuple[str, ...] = option((), help="Arms to run (default: all).")
    regions: tuple[str, ...] = option((), help="Data sets to run, or 'DATASET to TARGET' (default: all).")
    cases: tuple[str, ...] = option((), help="Training cases, or 'first' of each data set (default: all).")
    seeds: tuple[int, ...] = option((), help="Seeds of the commands (default: 0).")
    cpu_seconds: float | None = option(None, help="Processor time of each whole learning chain (default: 600).")
    steps: int | None = option(None, help="Optimizer steps of each chain, instead of --cpu-seconds.")
    threads: int = option(1, help="Threads of each child process.")
    engine: tuple[str, ...] = option(
        (), help="ARM=FOLDER: run an arm with the engine of another checkout; a new name copies the plan's first arm."
    )
    shifted: bool = option(False, help="Also segment shifted copies of the scans, and report the change.")
    keep_models: bool = option(True, help="Keep the trained models in TABLE.work.")
    list_jobs: bool = option(False, help="Print the jobs, and run nothing.")
    job: tuple[str, ...] = option((), help="Run these jobs alone, by the IDs of --list-jobs.", metavar="ID")
    report: tuple[Path, ...] = option((), help="Tables to report, instead of running.", metavar="TABLE")
    baseline: str | None = option(None, help="Arm of the tables that the others are compared with.", metavar="ARM")
    reports: tuple[Path, ...] = option((), help="Reports of evaluate: the first is compared with each other one.")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "cpu_seconds", "steps", "threads")
        if sum(map(bool, (self.plan, self.preset, self.report, self.reports))) != 1:
            raise UsageError("usage", "Give one of --plan, --preset, --report and --reports.", "See: compare --help")
        if self.cpu_seconds and self.steps:
            raise UsageError("usage", "--cpu-seconds and --steps exclude each other.", "Give one of the two.")
        if self.preset and self.data is None:
            raise UsageError("usage", "--preset needs the folder of the data.", "Give --data.")
        is_run = bool(self.plan or self.preset)
        ending = ".jsonl" if is_run else ".json"
        if (self.output and self.output.suffix != ending) or (is_run and not self.output and not self.list_jobs):
            message = f"--output is {self.output or 'missing'}."
            raise UsageError("usage", message, f"Give a name that ends in {ending}.")


def run(config: CompareConfig, report: Reporter | None = None) -> dict[str, Any]:
    """Run the jobs of a plan, or report tables or reports; returns the path that was written as "table" or "report".

    Raises:
        InputError: A file cannot be used; or `some_jobs_failed`, and the table has the others.
        UsageError: The results cannot be compared, such as those of two splits.
    """
    report = report or Reporter(quiet=True)
    budget = Budget(steps=config.steps) if config.steps else Budget(cpu_seconds=config.cpu_seconds)
    if config.report or config.reports:
        from .experiments import report as reporting

        if config.reports:
            return reporting.report_evaluations(config.reports, config.output, seed=config.seed, report=report)
        return reporting.report_tables(
            config.report, config.output, budget=budget, baseline=config.baseline, seed=config.seed, report=report
        )
    data = config.data.resolve() if config.data else None
    plan = read_preset(config.preset, data) if config.preset and data else read_plan(config.plan or Path(), data)
    plan = use_engines(plan, config.engine)
    selection = Selection(
        split=config.split, budget=budget if config.steps else Budget(cpu_seconds=config.cpu_seconds or _DEFAULT_SECONDS),
        arms=config.arms, regions=config.regions, cases=config.cases, seeds=config.seeds or (0,), jobs=config.job,
        shifted=config.shifted,
    )  # fmt: skip
    from .experiments import run as running
    from .experiments.arms import Machine

    jobs, machine = list_jobs(plan, selection), Machine.of(config.threads, config.device)
    if config.list_jobs:
        return running.print_jobs(jobs, config.output, report)
    assert config.output is not None  # __post_init__
    return running.run_plan(
        plan, jobs, config.output, split=config.split, machine=machine, keep_models=config.keep_models, report=report
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return run_command(CompareConfig, run, argv, command="compare", description=__doc__ or "")


if __name__ == "__main__":
    raise SystemExit(main())
