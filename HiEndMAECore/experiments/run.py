"""Run the jobs of a plan: train, segment, score, and append a line to the table."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import HiEndMAECore
from HiEndMAECore.data.cases import Case
from HiEndMAECore.errors import Cancelled, HiEndMAEError, InputError, classify_exception
from HiEndMAECore.io.atomic import write_text
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.runtime.processor import processor_flags, processor_name, repository_commit

from .arms import PACKAGE_ROOT, ArmRunner, ChainInputs, Machine, find_script
from .case_lists import LabelPair, OpenDataset, open_job
from .plan import Job, Plan, digest
from .scoring import expected_by_target, list_missed, score_files
from .shifted_results import score_shifted_copies
from .step_timing import StepTiming
from .table import DONE, FAILED, Table

_STAGE = "jobs"
_NOT_TRAINED: dict[str, Any] = {
    "steps": None,
    "seconds_per_step": None,
    "setup_seconds": None,
    "cpu_seconds": 0.0,
    "clock_seconds": 0.0,
    "weights_sha256": None,
    "expected": {},
}


@dataclass
class Outcome:
    """What became of the jobs: how many were finished before, are done, failed, or run in another process."""

    finished_before: int = 0
    done: int = 0
    failed: int = 0
    claimed: int = 0


def run_jobs(
    plan: Plan,
    jobs: Sequence[Job],
    table: Table,
    *,
    machine: Machine,
    keep_models: bool = True,
    report: Reporter,
) -> Outcome:
    """Run the jobs that the table does not hold, and append a line for each.

    A job that fails gets a line with its message, and the others go on. A job that another process has claimed is skipped.

    Args:
        plan: The plan.
        jobs: Its selected jobs.
        table: The table.
        machine: Threads and device of the child processes.
        keep_models: False deletes a model when the selected jobs that use it are finished.
        report: Receives progress, and a warning for each failure.

    Raises:
        Cancelled: The run was cancelled. What is in the table stays there, and the next run goes on.
    """
    outcome = Outcome()
    report.progress(_STAGE, 0, len(jobs))
    for number, job in enumerate(jobs, start=1):
        with table.claim(job.training_id) as is_held:
            if not is_held:
                outcome.claimed += 1
            elif job.id in table.finished_ids():  # read after the claim, because another process may have finished it
                outcome.finished_before += 1
            else:
                report.info(f"Job {number} of {len(jobs)}: {title(job)}.")
                line = _run_job(plan, job, table.work, machine, report)
                table.append(line)
                outcome.done += line["status"] == DONE
                outcome.failed += line["status"] == FAILED
            if is_held and not keep_models:
                _delete_finished_model(job, jobs, table)
        report.progress(_STAGE, number, len(jobs))
    return outcome


def run_plan(
    plan: Plan, jobs: Sequence[Job], output: Path, *, split: str, machine: Machine, keep_models: bool, report: Reporter
) -> dict[str, Any]:
    """Run the selected jobs of a plan; arguments as of `run_jobs`.

    Args:
        plan: The plan.
        jobs: Its selected jobs.
        output: TABLE.jsonl.
        split: Split of the jobs.
        machine: Threads and device of the child processes.
        keep_models: Keep the trained models.
        report: Receives progress and warnings.

    Returns:
        The table as "table".

    Raises:
        UsageError: `splits_mixed`: the table holds another split.
        InputError: `some_jobs_failed`: the table has the others.
    """
    table = Table(output.resolve())
    table.check_split(split)
    outcome = run_jobs(plan, jobs, table, machine=machine, keep_models=keep_models, report=report)
    report.info(
        f"{outcome.done} job(s) done, {outcome.finished_before} finished before, {outcome.claimed} in other processes, "
        f"{outcome.failed} failed. The table is {output}."
    )
    if outcome.failed:
        message = f"{outcome.failed} of {len(jobs)} jobs failed; their messages are in {output}."
        raise InputError("some_jobs_failed", message, "Run the same command again to retry them.")
    return {"table": output}


def print_jobs(jobs: Sequence[Job], output: Path | None, report: Reporter) -> dict[str, Any]:
    """Print ID, state and title of each job; `output` is the table that may hold finished ones."""
    finished = Table(output.resolve()).finished_ids() if output else set()
    for job in jobs:
        report.print_result(f"{job.id}  {'done' if job.id in finished else 'open'}  {title(job)}")
    report.metric("jobs", len(jobs), done=sum(job.id in finished for job in jobs))
    return {}


def title(job: Job) -> str:
    """Return one line that names a job for a person and for a scheduler."""
    budget = "no budget" if job.budget is None else " ".join(f"{k} {v:g}" for k, v in job.budget.to_json().items())
    kind = ", shifted copies" if job.shifted else ""
    return f"{job.arm.name}: {job.region}, trained on {job.training_case}, seed {job.seed}, {job.split}, {budget}{kind}"


def _run_job(plan: Plan, job: Job, work: Path, machine: Machine, report: Reporter) -> dict[str, Any]:
    """Return the line of a job, finished or failed."""
    line = {**job.describe(), **describe_machine(job, machine)}
    try:
        return {**line, "status": DONE, **_results(plan, job, work, machine, report)}
    except Cancelled:
        raise
    except Exception as error:
        known = error if isinstance(error, HiEndMAEError) else classify_exception(error)
        code = known.code if known else "internal_fault"
        message = str(known) if known else f"{type(error).__name__}: {error}"
        report.warning(code, f"Failed: {title(job)}: {message}", "The next run of the same command tries it again.")
        return {**line, "status": FAILED, "code": code, "message": message}


def _results(plan: Plan, job: Job, work: Path, machine: Machine, report: Reporter) -> dict[str, Any]:
    """Train or find the model, segment the cases, and return what the line records of it."""
    source, target, pairs = open_job(plan, job, work)
    cases = {name: target.case(name) for name in job.cases}
    folder = work / "trainings" / job.training_id
    folder.mkdir(parents=True, exist_ok=True)
    scans = {name: ",".join(map(str, case.channels)) for name, case in cases.items()}
    training_case = source.case(job.training_case)
    inputs = ChainInputs(folder, source.folder.resolve(), training_case, source.modality, tuple(scans.values()))
    runner = ArmRunner(job, inputs, machine, report)
    if job.arm.script:
        find_script(job.arm, job.arm.script[0])
        training = dict(_NOT_TRAINED)
    else:
        training = _train_once(job, runner, work, machine)
    training["expected"] = expected_by_target(training["expected"], pairs)
    results = work / "results" / job.id
    shutil.rmtree(results, ignore_errors=True)
    apply_seconds = runner.apply(scans, results / "scans")
    scored = _score(cases, results / "scans", pairs, target, report)
    record = {
        **training,
        "apply_seconds_per_scan": round(apply_seconds / len(scans), 2),
        "cases": scored,
        "missed": list_missed(scored),
    }
    if job.shifted:
        apply = partial(_apply_to_folder, runner)
        record["copies"] = score_shifted_copies(
            cases, results, pairs, apply, seed=job.seed, ignore=target.dataset.ignore
        )
    shutil.rmtree(results)
    return record


def _train_once(job: Job, runner: ArmRunner, work: Path, machine: Machine) -> dict[str, Any]:
    """Return the record of the training, which jobs with other targets share; train where there is none."""
    folder = runner.inputs.work
    record = folder / "training.json"
    if record.is_file() and runner.inputs.model.exists():
        return json.loads(record.read_text(encoding="utf-8"))
    shutil.rmtree(folder)  # an interrupted training starts again, because its processor time is not known
    folder.mkdir()
    key = {"arm": job.arm.name, "settings": job.arm.settings(), "dataset": job.dataset.name, "case": job.training_case}
    timings = work / "timings" / f"{digest({**key, 'threads': machine.threads, 'device': machine.device})}.json"
    known = StepTiming(**json.loads(timings.read_text(encoding="utf-8"))) if timings.is_file() else None
    training, timing = runner.learn(known)
    if timing is not None and timing is not known:
        write_text(timings, json.dumps(vars(timing)) + "\n")
    for trial in folder.glob("trial-*"):
        shutil.rmtree(trial)
    write_text(record, json.dumps(training) + "\n")
    return training


def _apply_to_folder(runner: ArmRunner, scans: Mapping[str, str], output: Path) -> None:
    """Segment the scans of some cases."""
    runner.apply(scans, output)


def _score(
    cases: Mapping[str, Case], folder: Path, pairs: Sequence[LabelPair], target: OpenDataset, report: Reporter
) -> dict[str, dict[str, Any]]:
    """Return the scores of each case."""
    scores = {}
    for name, case in cases.items():
        report.check()
        if case.label is None:
            raise InputError("case_absent", f"The case {name} has no label map to be scored with.", "")
        prediction = folder / f"{name}.nii.gz"
        scores[name] = score_files(prediction, case.label, pairs, ignore=target.dataset.ignore)
    return scores


def describe_machine(job: Job, machine: Machine) -> dict[str, Any]:
    """Return what a line records of the machine and the engine."""
    root = job.arm.engine or PACKAGE_ROOT
    return {
        "threads": machine.threads,
        "device": machine.device,
        "processor": processor_name(),
        "processor_flags": processor_flags(),
        "engine": {"version": HiEndMAECore.__version__, "commit": repository_commit(root)},
    }


def _delete_finished_model(job: Job, jobs: Sequence[Job], table: Table) -> None:
    """Delete a trained model when no selected job needs it any more."""
    finished = table.finished_ids()
    if all(other.id in finished for other in jobs if other.training_id == job.training_id):
        shutil.rmtree(table.work / "trainings" / job.training_id, ignore_errors=True)
