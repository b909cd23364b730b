"""The files of the plan's data sets, all in nnU-Net's layout: what a plan lists as single files is written as a data set."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from HiEndMAECore.data.cases import Case
from HiEndMAECore.data.datasets import Dataset, read_dataset
from HiEndMAECore.errors import InputError
from HiEndMAECore.io.alignment import align_label_map
from HiEndMAECore.io.atomic import atomic_folder
from HiEndMAECore.io.locks import file_lock
from HiEndMAECore.io.readers import read_label_map, read_volume
from HiEndMAECore.io.writers import write_label_map, write_scalar_map

from .plan import DatasetPlan, Job, Plan, TargetPlan


@dataclass(frozen=True)
class LabelPair:
    """A structure in the training data set and in the target.

    Attributes:
        source: Label value in the training data set, and so in results.
        target: Label value in the target's references.
        source_name: Name in the training data set.
        name: Name in the target, which tables show.
    """

    source: int
    target: int
    source_name: str
    name: str


@dataclass(frozen=True)
class OpenDataset:
    """A data set on disk, its cases by name, and its modality."""

    folder: Path
    dataset: Dataset
    modality: str

    def case(self, name: str) -> Case:
        """Return a labelled case; raise `InputError` `case_absent` when there is none of this name."""
        for case in self.dataset.cases:
            if case.name == name:
                return case
        message = f"The data set {self.folder} has no labelled case {name}."
        raise InputError("case_absent", message, "Correct its splits.json.")


def open_dataset(plan: DatasetPlan, work: Path) -> OpenDataset:
    """Return a data set of a plan; single files are written as a data set once, below the folder `work`."""
    folder = plan.folder
    if folder is None:
        folder = work / "data" / plan.name.replace(" ", "_")
        with file_lock(folder.with_name(f"{folder.name}.lock")):
            if not (folder / "dataset.json").is_file():
                _write_dataset(plan, folder)
    dataset = read_dataset(folder)
    is_ct = bool(dataset.channel_names) and dataset.channel_names[0].upper().startswith("CT")
    return OpenDataset(folder, dataset, plan.modality or ("ct" if is_ct else "mri"))


def pair_labels(source: Dataset, target: Dataset, plan: TargetPlan) -> list[LabelPair]:
    """Return the structures that are scored.

    Raises:
        InputError: `structures_unknown`: the plan names a structure that a data set lacks, or there is no common one.
    """
    own = {structure.name: structure.value for structure in source.structures}
    other = {structure.name: structure.value for structure in target.structures}
    names = {name: name for name in own if name in other} if plan.structures is None else plan.structures
    absent = [name for name in names if name not in own] + [name for name in names.values() if name not in other]
    if absent or not names:
        message = f"{source.name} and {target.name} have no structure in common."
        if absent:
            message = f"The structure '{absent[0]}' is neither in {source.name} nor in {target.name}."
        raise InputError("structures_unknown", message, "Correct 'structures' of the target in the plan.")
    return [LabelPair(own[first], other[second], first, second) for first, second in names.items()]


def open_job(plan: Plan, job: Job, work: Path) -> tuple[OpenDataset, OpenDataset, list[LabelPair]]:
    """Return the training data set of a job, the target, and the structures that are scored."""
    source = open_dataset(job.dataset, work)
    target = open_dataset(plan.dataset(job.target.dataset), work)
    return source, target, pair_labels(source.dataset, target.dataset, job.target)


def _write_dataset(plan: DatasetPlan, folder: Path) -> None:
    """Write single files as a data set: scans as NIfTI, label maps on their grids with the chosen structures alone."""
    values = {value: number for number, value in enumerate(plan.labels.values(), start=1)}
    with atomic_folder(folder) as temporary:
        for name, files in plan.cases.items():
            scan = read_volume(files["image"], name=name)
            labels = align_label_map(scan, read_label_map(files["label"]))
            chosen = np.zeros(labels.shape, np.uint8)
            for value, number in values.items():
                chosen[labels.array[0] == value] = number
            write_scalar_map(temporary / "imagesTr" / f"{name}_0000.nii.gz", scan.array[0], scan.geometry)
            write_label_map(temporary / "labelsTr" / f"{name}.nii.gz", chosen, scan.geometry)
        description = {
            "name": plan.name,
            "channel_names": {"0": "MRI" if plan.modality == "mri" else "CT"},
            "labels": {"background": 0, **{name: values[value] for name, value in plan.labels.items()}},
            "numTraining": len(plan.cases),
            "file_ending": ".nii.gz",
        }
        (temporary / "dataset.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
