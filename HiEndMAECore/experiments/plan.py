"""The plan of a comparison as a JSON file, and the list of its jobs.

    {"datasets": [{"name": "BTCV", "folder": "Dataset102_BTCV"},
                  {"name": "abdomen A", "cases": {"A": {"image": "ct.nii.gz", "label": "organs.nii.gz"}},
                   "labels": {"liver": 5}, "modality": "ct", "splits": {"train": ["A"]},
                   "targets": [{"dataset": "BTCV", "structures": {"liver": "liver"}}]}],
     "arms": [{"name": "shipped", "learn": [["finetune"]], "apply": ["segment", "--clean"]},
              {"name": "elastix", "script": ["propagate_elastix.py"]}]}

Paths are relative to the folder of the data. A data set is a folder in nnU-Net's layout with a splits.json (`train`, `tune`
and `test`), or a list of cases. Each arm trains on one case of `train` at a time, and is applied to the tested split of the
targets, by default of the data set itself. Arguments may hold the placeholders of `arms.py`. Standard library alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from HiEndMAECore.errors import InputError
from HiEndMAECore.io.bounded_json import parse_json_object

SPLITS = ("tune", "test")
MODALITIES = ("ct", "mri")
TARGETS_PLACEHOLDER = "{targets}"


@dataclass(frozen=True)
class TargetPlan:
    """A data set to which the models of another one are applied.

    Attributes:
        dataset: Its name.
        structures: Name in the training data set -> name in the target; None pairs equal names.
    """

    dataset: str
    structures: Mapping[str, str] | None = None


@dataclass(frozen=True)
class DatasetPlan:
    """A data set of the plan.

    Attributes:
        name: Its name in tables.
        folder: Folder in nnU-Net's layout; None for a list of cases.
        cases: Image and label map by name of the case, where there is no such folder.
        labels: Name and value of the structures that are used of these label maps.
        modality: "ct" or "mri"; None takes it from the name of the first channel.
        splits: Names of cases by split.
        targets: The data sets to apply the models to.
    """

    name: str
    folder: Path | None
    splits: Mapping[str, tuple[str, ...]]
    targets: tuple[TargetPlan, ...]
    modality: str | None = None
    cases: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Arm:
    """A method to compare: a chain of commands that learn and one that applies the model, or a script without a model.

    Attributes:
        name: Its name in tables.
        learn: Commands with their arguments; the last one gets the steps that the budget allows.
        apply: The command that segments, with its arguments.
        script: A script of Testing/Benchmarks with its arguments, instead of both.
        engine: Folder with another version of the engine, such as a checkout.
    """

    name: str
    learn: tuple[tuple[str, ...], ...] = ()
    apply: tuple[str, ...] = ()
    script: tuple[str, ...] = ()
    engine: Path | None = None

    def settings(self) -> dict[str, Any]:
        """Return what distinguishes the arm from another one of its name, without paths of the machine."""
        chain = {"learn": [list(part) for part in self.learn], "apply": list(self.apply), "script": list(self.script)}
        return {**{key: value for key, value in chain.items() if value}, "other_engine": self.engine is not None}


@dataclass(frozen=True)
class Plan:
    """The data sets and the arms of a comparison."""

    datasets: tuple[DatasetPlan, ...]
    arms: tuple[Arm, ...]

    def dataset(self, name: str) -> DatasetPlan:
        """Return the data set of a name that `parse_plan` has checked."""
        return next(dataset for dataset in self.datasets if dataset.name == name)


@dataclass(frozen=True)
class Budget:
    """What each chain may spend on learning: processor seconds of the whole chain, or optimizer steps."""

    cpu_seconds: float | None = None
    steps: int | None = None

    def to_json(self) -> dict[str, float | int]:
        """Return the one that is given."""
        return {"steps": self.steps} if self.steps is not None else {"cpu_seconds": self.cpu_seconds or 0.0}


@dataclass(frozen=True)
class Job:
    """An arm, trained on one case with one seed, and applied to one target.

    Attributes:
        arm: The arm.
        dataset: Data set of the training case.
        target: The data set that is segmented, and the names of its structures.
        training_case: The labelled scan to learn from.
        seed: Seed of all commands.
        split: Split of the target.
        cases: The cases of this split.
        budget: None for a script, which learns nothing.
        shifted: Also segment shifted copies of the cases.
    """

    arm: Arm
    dataset: DatasetPlan
    target: TargetPlan
    training_case: str
    seed: int
    split: str
    cases: tuple[str, ...]
    budget: Budget | None
    shifted: bool = False

    @property
    def region(self) -> str:
        """The data set, and the target where it is another one."""
        own = self.target.dataset == self.dataset.name
        return self.dataset.name if own else f"{self.dataset.name} to {self.target.dataset}"

    @property
    def training_id(self) -> str:
        """Identifies the trained model, which jobs with other targets share."""
        return digest({**self._training(), "target": self.target.dataset if self.uses_targets else None})

    @property
    def uses_targets(self) -> bool:
        """Whether the scans to be segmented, without their labels, are used for learning."""
        return any(TARGETS_PLACEHOLDER in command for command in self.arm.learn)

    @property
    def id(self) -> str:
        """Identifies the job; a table holds one finished line of each."""
        structures = None if self.target.structures is None else dict(self.target.structures)
        applied = {"target": self.target.dataset, "structures": structures, "split": self.split}
        return digest({**self._training(), **applied, "cases": list(self.cases), "shifted": self.shifted})

    def describe(self) -> dict[str, Any]:
        """Return the fields of a table's line that are known before the job has run."""
        return {
            "format": 1,
            "kind": "shifted" if self.shifted else "unshifted",
            "job": self.id,
            "arm": self.arm.name,
            "region": self.region,
            "dataset": self.dataset.name,
            "target": self.target.dataset,
            "training_case": self.training_case,
            "seed": self.seed,
            "split": self.split,
            "budget": self.budget.to_json() if self.budget else None,
            "settings": self.arm.settings(),
            "digest": digest(self.arm.settings()),
            "uses_targets": self.uses_targets,
        }

    def _training(self) -> dict[str, Any]:
        return {
            "arm": self.arm.name,
            "settings": self.arm.settings(),
            "dataset": self.dataset.name,
            "training_case": self.training_case,
            "seed": self.seed,
            "budget": self.budget.to_json() if self.budget else None,
        }


def digest(values: Mapping[str, Any]) -> str:
    """Return 12 hexadecimal digits of plain JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def read_plan(file: Path, data: Path | None = None) -> Plan:
    """Read a plan.

    Args:
        file: JSON file of this module's docstring.
        data: Folder of the data (default: that of the file).

    Raises:
        InputError: `plan_unreadable`, `plan_ill_formed`, or what is wrong with a splits.json.
    """
    try:
        content = parse_json_object(file.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            "plan_unreadable", f"The plan {file} cannot be used: {reason}.", "Give a JSON file."
        ) from error
    return parse_plan(content, data or file.parent, source=str(file))


def parse_plan(content: Mapping[str, Any], data: Path, *, source: str) -> Plan:
    """Return the plan in a JSON object; see `read_plan`."""
    data = data.resolve()  # child processes have another working directory
    try:
        datasets = tuple(_parse_dataset(entry, data) for entry in _entries(content, "datasets"))
        arms = tuple(_parse_arm(entry) for entry in _entries(content, "arms"))
        _check_names(datasets, arms)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        message = f"The plan {source} is ill-formed: {error if isinstance(error, ValueError) else repr(error)}."
        raise InputError("plan_ill_formed", message, "See HiEndMAECore/experiments/plan.py for the format.") from error
    return Plan(datasets, arms)


def _entries(content: Mapping[str, Any], key: str) -> Sequence[Mapping[str, Any]]:
    entries = content.get(key)
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"'{key}' is not a list of objects")
    if nameless := [entry for entry in entries if not isinstance(entry.get("name"), str) or not entry["name"]]:
        raise ValueError(f"'{key}' has an entry without a name: {nameless[0]}")
    return entries


def _parse_dataset(entry: Mapping[str, Any], data: Path) -> DatasetPlan:
    """Return a data set; raise `ValueError` for an impossible entry, `InputError` for a folder that cannot be used."""
    name = str(entry["name"])
    if ("folder" in entry) == ("cases" in entry):
        raise ValueError(f"the data set '{name}' needs either 'folder' or 'cases'")
    if entry.get("modality") not in (None, *MODALITIES):
        raise ValueError(f"the data set '{name}' has the modality {entry['modality']!r}, not ct or mri")
    targets = tuple(
        TargetPlan(str(target["dataset"]), target.get("structures"))
        for target in entry.get("targets", [{"dataset": name}])
    )
    folder = data / entry["folder"] if "folder" in entry else None
    cases = {
        str(case): {"image": data / files["image"], "label": data / files["label"]}
        for case, files in entry.get("cases", {}).items()
    }
    labels = {str(key): int(value) for key, value in entry.get("labels", {}).items()}
    if cases and not labels:
        raise ValueError(f"the data set '{name}' needs 'labels': names and values of its structures")
    splits = entry["splits"] if "splits" in entry else _read_splits(folder, name)
    splits = {str(split): tuple(map(str, names)) for split, names in splits.items()}
    return DatasetPlan(name, folder, splits, targets, entry.get("modality"), cases, labels)


def _read_splits(folder: Path | None, name: str) -> Mapping[str, Any]:
    if folder is None:
        raise ValueError(f"the data set '{name}' has 'cases' and needs 'splits'")
    file = folder / "splits.json"
    try:
        return parse_json_object(file.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        message = f"The splits of the data set '{name}' cannot be read: {file}: {reason}."
        raise InputError("splits_unreadable", message, "Give splits.json: train, tune and test.") from error


def _parse_arm(entry: Mapping[str, Any]) -> Arm:
    name = str(entry["name"])
    if ("script" in entry) == ("learn" in entry):
        raise ValueError(f"the arm '{name}' needs either 'learn' or 'script'")
    commands = [*entry.get("learn", []), entry.get("apply", ["segment"]), entry.get("script", ["none"])]
    if not all(isinstance(part, list) and part and all(isinstance(word, str) for word in part) for part in commands):
        raise ValueError(f"the arm '{name}' has a command that is not a list of words")
    if "script" in entry:
        return Arm(name, script=tuple(entry["script"]))
    return Arm(name, tuple(tuple(part) for part in entry["learn"]), tuple(entry.get("apply", ["segment"])))


def _check_names(datasets: Sequence[DatasetPlan], arms: Sequence[Arm]) -> None:
    """Raise `ValueError` for names that occur twice and for targets that are no data set."""
    for kind, names in (("data set", [dataset.name for dataset in datasets]), ("arm", [arm.name for arm in arms])):
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"the {kind} '{min(twice)}' is named twice")
    known = {dataset.name for dataset in datasets}
    for dataset in datasets:
        for target in dataset.targets:
            if target.dataset not in known:
                raise ValueError(f"the target '{target.dataset}' of '{dataset.name}' is no data set of the plan")
