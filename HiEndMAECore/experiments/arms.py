"""Run an arm as child processes: the chain that learns with equal processor time, and the command that segments.

Placeholders in the arguments of an arm: `{work}` folder of the training, `{model}` the model in it, `{dataset}` folder of the
training data set, `{case}` the training case, `{seed}`, and, as a whole word, `{targets}` the scans to be segmented.
A script gets `--image --label --targets --output --modality --seed --threads` and writes a label map NAME.nii.gz a target.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import HiEndMAECore
from HiEndMAECore.data.cases import Case
from HiEndMAECore.errors import HiEndMAEError, InputError
from HiEndMAECore.models.folder import read_description
from HiEndMAECore.reporting import events
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.runtime.child_process import ChildResult, run_child, thread_environment

from .plan import TARGETS_PLACEHOLDER, Arm, Job
from .step_timing import StepTiming, choose_trial_steps, fit_timing

PACKAGE_ROOT = Path(HiEndMAECore.__file__).resolve().parents[1]
SCRIPTS = Path("Testing") / "Benchmarks"
_LOG_TAIL_CHARACTERS = 300


@dataclass(frozen=True)
class Machine:
    """Where the child processes compute: number of threads, and the device of the commands."""

    threads: int = 1
    device: str = "cpu"

    @classmethod
    def of(cls, threads: int, device: str) -> Machine:
        """Return the machine for the options of the command; `auto` is the processor, whose time is the budget."""
        return cls(threads, "cpu" if device == "auto" else device)


@dataclass(frozen=True)
class ChainInputs:
    """The files of a training.

    Attributes:
        work: Folder of the training.
        dataset: Folder of the training data set.
        training_case: The labelled case.
        modality: "ct" or "mri".
        targets: The scans to be segmented; a case's channels are joined by commas.
    """

    work: Path
    dataset: Path
    training_case: Case
    modality: str
    targets: tuple[str, ...]

    @property
    def model(self) -> Path:
        """The trained model."""
        return self.work / "model"


class ArmRunner:
    """Runs the commands of one job.

    Args:
        job: The job.
        inputs: Its files.
        machine: Threads and device.
        report: Cancels.
    """

    def __init__(self, job: Job, inputs: ChainInputs, machine: Machine, report: Reporter) -> None:
        self.job = job
        self.inputs = inputs
        self._machine = machine
        self._report = report
        self._root = job.arm.engine or PACKAGE_ROOT

    def learn(self, timing: StepTiming | None) -> tuple[dict[str, Any], StepTiming | None]:
        """Run the chain that learns.

        Args:
            timing: Timing of an earlier chain of the same arm and training case; None measures it where it is needed.

        Returns:
            What is recorded of the training, and the timing.

        Raises:
            InputError: `job_failed`, or `budget_too_small`.
        """
        *first, last = self.job.arm.learn
        results = [self._run(self._learning_words(command, self.inputs.model)) for command in first]
        budget = self.job.budget
        assert budget is not None
        steps = budget.steps
        if budget.cpu_seconds is not None:
            left = budget.cpu_seconds - sum(result.cpu_seconds for result in results)
            timing = timing or self._measure_steps(last, left)
            steps = timing.steps_within(left)
        results.append(self._run([*self._learning_words(last, self.inputs.model), "--steps", str(steps)]))
        return {
            "steps": steps,
            "seconds_per_step": round(timing.seconds_per_step, 4) if timing else None,
            "setup_seconds": round(timing.setup_seconds, 2) if timing else None,
            "cpu_seconds": round(sum(result.cpu_seconds for result in results), 2),
            "clock_seconds": round(sum(result.clock_seconds for result in results), 2),
            **_read_model(self.inputs.model),
        }, timing

    def apply(self, cases: Mapping[str, str], output: Path) -> float:
        """Segment scans.

        Args:
            cases: The scan of each case; channels are joined by commas.
            output: Folder for label maps NAME.nii.gz.

        Returns:
            Processor seconds of the whole process.

        Raises:
            InputError: `job_failed`, also when a label map is missing.
        """
        output.mkdir(parents=True, exist_ok=True)
        result = self._run(self._applying_words(list(cases.values()), output))
        if missing := [name for name in cases if not (output / f"{name}.nii.gz").is_file()]:
            raise InputError("job_failed", f"The arm {self.job.arm.name} wrote no label map of {missing[0]}.", "")
        return result.cpu_seconds

    def _measure_steps(self, command: Sequence[str], seconds: float) -> StepTiming:
        """Time short runs of the last command, and return its set-up and its seconds per step."""
        trials: dict[int, float] = {}
        while (steps := choose_trial_steps(trials, seconds)) is not None:
            model = self.inputs.work / f"trial-{steps}"
            words = [*self._learning_words(command, model), "--steps", str(steps)]
            trials[steps] = self._run(words).cpu_seconds
        return fit_timing(trials)

    def _learning_words(self, command: Sequence[str], model: Path) -> list[str]:
        """Return the command line of a part of the chain."""
        name, *options = self._expand(command)
        words = [sys.executable, "-m", f"HiEndMAECore.{name}", *options, *self._common_options()]
        if name == "finetune":
            words += ["--dataset", str(self.inputs.dataset), "--cases", self.job.training_case]
            if "--output" not in options:
                words += ["--output", str(model)]
        return words

    def _applying_words(self, scans: Sequence[str], output: Path) -> list[str]:
        """Return the command line that segments."""
        arm, inputs = self.job.arm, self.inputs
        if arm.script:
            name, *options = self._expand(arm.script)
            label = inputs.training_case.label
            return [
                sys.executable, str(find_script(arm, name)), *options,
                "--image", ",".join(map(str, inputs.training_case.channels)), "--label", str(label),
                "--targets", *scans, "--output", str(output), "--modality", inputs.modality,
                "--seed", str(self.job.seed), "--threads", str(self._machine.threads),
            ]  # fmt: skip
        name, *options = self._expand(arm.apply)
        words = [sys.executable, "-m", f"HiEndMAECore.{name}", *options, *self._common_options()]
        return [*words, "--model", str(inputs.model), "--input", *scans, "--output", str(output)]

    def _common_options(self) -> list[str]:
        seed, parent = str(self.job.seed), str(os.getpid())
        return ["--seed", seed, "--device", self._machine.device, "--events", "--parent-pid", parent]

    def _expand(self, words: Sequence[str]) -> list[str]:
        """Return the arguments with the values of their placeholders."""
        values = {
            "{work}": str(self.inputs.work),
            "{model}": str(self.inputs.model),
            "{dataset}": str(self.inputs.dataset),
            "{case}": self.job.training_case,
            "{seed}": str(self.job.seed),
        }
        expanded: list[str] = []
        for word in words:
            if word == TARGETS_PLACEHOLDER:
                expanded += self.inputs.targets
                continue
            for placeholder, value in values.items():
                word = word.replace(placeholder, value)
            expanded.append(word)
        return expanded

    def _run(self, words: Sequence[str]) -> ChildResult:
        """Run one process; raise `InputError` `job_failed` with its own message when it fails."""
        path = os.pathsep.join([str(self._root), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {
            **os.environ,
            **thread_environment(self._machine.threads),
            "PYTHONPATH": path,
            "PYTHONUTF8": "1",
        }
        log = self.inputs.work / "log.txt"
        result = run_child(words, environment=environment, log=log, check=self._report.check, folder=self.inputs.work)
        if result.exit_code:
            raise _failure(self.job, result, log)
        return result


def find_script(arm: Arm, name: str) -> Path:
    """Return a script of the benchmarks; raise `InputError` `script_missing` where there is none."""
    path = (arm.engine or PACKAGE_ROOT) / SCRIPTS / name
    if not path.is_file():
        message = f"The script {name} of the arm {arm.name} is not in {path.parent}."
        raise InputError("script_missing", message, "Run compare from a clone of the project.")
    return path


def _failure(job: Job, result: ChildResult, log: Path) -> HiEndMAEError:
    """Return the error of a child that failed: its event `failed`, or the end of its log."""
    for line in reversed(result.output.splitlines()):
        event = events.decode(line)
        if event is not None and event["event"] == "failed":
            return InputError("job_failed", f"{job.arm.name}: {event['message']}", str(event["advice"]))
    tail = log.read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL_CHARACTERS:].strip()
    message = f"A process of the arm {job.arm.name} ended with code {result.exit_code}: {tail}"
    return InputError("job_failed", message, f"See {log}.")


def _read_model(model: Path) -> dict[str, Any]:
    """Return the digest and the expected Dice by structure of a model."""
    description = read_description(model)
    estimate = description.training.get("self_check") or {}
    expected = {row["name"]: row["expected"] for row in estimate.get("structures", ()) if row["expected"] is not None}
    return {"weights_sha256": description.weights_sha256, "expected": expected}
