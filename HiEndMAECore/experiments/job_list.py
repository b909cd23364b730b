"""The jobs of a plan: what is selected of its arms, data sets, training cases and seeds. Standard library alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from HiEndMAECore.errors import InputError, UsageError

from .plan import Budget, DatasetPlan, Job, Plan, TargetPlan

FIRST_CASE = "first"


@dataclass(frozen=True)
class Selection:
    """What to run of a plan; empty tuples select everything.

    Attributes:
        split: "tune" or "test".
        budget: For the chains that learn.
        arms: Names of arms.
        regions: Names of data sets, or "DATASET to TARGET".
        cases: Names of training cases, or `FIRST_CASE` for the first one of each data set.
        seeds: Seeds; a script, which draws nothing, runs with the first one.
        jobs: IDs of jobs.
        shifted: Also list the jobs on shifted copies.
    """

    split: str
    budget: Budget
    arms: Sequence[str] = ()
    regions: Sequence[str] = ()
    cases: Sequence[str] = ()
    seeds: Sequence[int] = (0,)
    jobs: Sequence[str] = ()
    shifted: bool = False


def list_jobs(plan: Plan, selection: Selection) -> list[Job]:
    """Return the jobs of a selection, seed by seed, so that an interrupted table has all arms.

    Raises:
        UsageError: `selection_unknown`: a name is not in the plan.
        InputError: `case_trained_and_tested`.
    """
    _check_selection(plan, selection)
    jobs = [job for seed in selection.seeds for job in _jobs_of_seed(plan, selection, seed)]
    if selection.jobs:
        known = {job.id for job in jobs}
        _check_known("job", selection.jobs, known)
        jobs = [job for job in jobs if job.id in selection.jobs]
    return jobs


def use_engines(plan: Plan, engines: Sequence[str]) -> Plan:
    """Return the plan with arms that run another version of the engine.

    Args:
        plan: The plan.
        engines: Each NAME=FOLDER; a name that the plan lacks becomes a copy of its first arm.

    Raises:
        UsageError: `engine_unusable`.
    """
    arms = {arm.name: arm for arm in plan.arms}
    for text in engines:
        name, _, folder = text.partition("=")
        if not name or not (Path(folder) / "HiEndMAECore" / "__init__.py").is_file():
            message = f"--engine {text} does not name a folder with HiEndMAECore."
            raise UsageError("engine_unusable", message, "Give ARM=FOLDER, where FOLDER is a checkout of the project.")
        arms[name] = replace(arms.get(name, plan.arms[0]), name=name, engine=Path(folder).resolve())
    return replace(plan, arms=tuple(arms.values()))


def _jobs_of_seed(plan: Plan, selection: Selection, seed: int) -> Iterator[Job]:
    """Yield the jobs of one seed."""
    kinds = (False, True) if selection.shifted else (False,)
    for dataset in plan.datasets:
        for training_case in _training_cases(dataset, selection.cases):
            for arm in plan.arms:
                if (selection.arms and arm.name not in selection.arms) or (arm.script and seed != selection.seeds[0]):
                    continue
                budget = None if arm.script else selection.budget
                for target in dataset.targets:
                    cases = tuple(plan.dataset(target.dataset).splits.get(selection.split, ()))
                    if not cases:
                        continue
                    _check_separate(dataset, target, training_case, cases)
                    for shifted in kinds:
                        job = Job(
                            arm, dataset, target, training_case, seed, selection.split, cases, budget, shifted=shifted
                        )
                        if not selection.regions or {job.region, dataset.name} & set(selection.regions):
                            yield job


def _training_cases(dataset: DatasetPlan, chosen: Sequence[str]) -> Sequence[str]:
    """Return the selected training cases of a data set."""
    names = dataset.splits.get("train", ())
    return [name for name in names if not chosen or name in chosen or (FIRST_CASE in chosen and name == names[0])]


def _check_separate(dataset: DatasetPlan, target: TargetPlan, training_case: str, cases: Sequence[str]) -> None:
    if target.dataset == dataset.name and training_case in cases:
        raise InputError(
            "case_trained_and_tested",
            f"The case {training_case} of {dataset.name} would be trained on and tested.",
            "List each case once in splits.json.",
        )


def _check_selection(plan: Plan, selection: Selection) -> None:
    """Raise `UsageError` for a name that the plan does not have."""
    training_cases = {name for dataset in plan.datasets for name in dataset.splits.get("train", ())}
    pairs = {f"{dataset.name} to {target.dataset}" for dataset in plan.datasets for target in dataset.targets}
    _check_known("arm", selection.arms, {arm.name for arm in plan.arms})
    _check_known("data set or region", selection.regions, {dataset.name for dataset in plan.datasets} | pairs)
    _check_known("training case", selection.cases, training_cases | {FIRST_CASE})


def _check_known(kind: str, names: Sequence[str], known: set[str]) -> None:
    if unknown := [name for name in names if name not in known]:
        advice = f"Known: {', '.join(sorted(known)[:30])}."
        raise UsageError("selection_unknown", f"The plan has no {kind} '{unknown[0]}'.", advice)
