"""Small data sets, plans and stand-in engines for the tests of experiments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from HiEndMAECore.data.phantom import PHANTOM_STRUCTURES, make_patient
from HiEndMAECore.experiments.job_list import Selection
from HiEndMAECore.experiments.plan import Budget
from HiEndMAECore.io.writers import write_label_map, write_scalar_map

SHAPE, SPACING = (42, 36, 36), (8.0, 8.0, 8.0)
SPLITS = {"train": ["p1", "p2"], "tune": ["p3"], "test": ["p4"]}

# Copies the labels of the labelled scan, which lie on the grid of the targets, and counts its runs.
COPY_SCRIPT = """
import argparse, pathlib, shutil
parser = argparse.ArgumentParser()
for name in ("image", "label", "output", "modality", "seed", "threads", "runs", "wait-for"):
    parser.add_argument("--" + name)
parser.add_argument("--targets", nargs="+")
options = parser.parse_args()
with open(options.runs, "a") as runs:
    runs.write(options.label + chr(10))
if options.wait_for:
    import time
    while not pathlib.Path(options.wait_for).exists():
        time.sleep(0.05)
for target in options.targets:
    name = pathlib.Path(target.split(",")[0]).name.replace("_0000", "")
    shutil.copyfile(options.label, pathlib.Path(options.output) / name)
"""

# An engine whose `finetune` burns 0.5 s of processor time and 0.02 s a step, and copies a model.
FAKE_FINETUNE = """
import argparse, shutil, time
parser = argparse.ArgumentParser()
for name in ("steps", "output", "seed", "device", "dataset", "cases", "parent-pid", "model"):
    parser.add_argument("--" + name)
parser.add_argument("--events", action="store_true")
options = parser.parse_args()
while time.process_time() < 0.5 + 0.02 * int(options.steps):
    pass
shutil.copytree(options.model, options.output)
"""
FAKE_SEGMENT = """
import argparse, pathlib, shutil
parser = argparse.ArgumentParser()
for name in ("output", "seed", "device", "parent-pid", "model", "labels"):
    parser.add_argument("--" + name)
parser.add_argument("--input", nargs="+")
parser.add_argument("--events", action="store_true")
options = parser.parse_args()
for target in options.input:
    name = pathlib.Path(target).name.replace("_0000", "")
    shutil.copyfile(pathlib.Path(options.labels) / name, pathlib.Path(options.output) / name)
"""


def write_dataset(folder: Path, *, seeds: Sequence[int] = (1, 2, 3, 4)) -> Path:
    """Write coarse digital patients p1, p2, … as a data set in nnU-Net's layout with splits.json."""
    for seed in seeds:
        scan, labels = make_patient(seed, shape=SHAPE, spacing=SPACING)
        write_scalar_map(folder / "imagesTr" / f"p{seed}_0000.nii.gz", scan.array[0], scan.geometry)
        write_label_map(folder / "labelsTr" / f"p{seed}.nii.gz", labels.array[0], labels.geometry)
    names = {structure.name: structure.value for structure in PHANTOM_STRUCTURES}
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, **names}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))
    (folder / "splits.json").write_text(json.dumps(SPLITS))
    return folder


def write_script(folder: Path) -> tuple[Path, Path]:
    """Write the script that copies labels; return it and the file in which it counts its runs."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "copy_labels.py").write_text(COPY_SCRIPT)
    return folder / "copy_labels.py", folder / "runs.txt"


def write_engine(folder: Path) -> Path:
    """Write a checkout with stand-ins for `finetune` and `segment`."""
    package = folder / "HiEndMAECore"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "finetune.py").write_text(FAKE_FINETUNE)
    (package / "segment.py").write_text(FAKE_SEGMENT)
    return folder


def write_plan(file: Path, dataset: Path, arms: Sequence[dict[str, Any]], **values: Any) -> Path:
    """Write a plan with one data set."""
    content = {"datasets": [{"name": "phantoms", "folder": str(dataset)}], "arms": list(arms), **values}
    file.write_text(json.dumps(content))
    return file


def select(split: str = "tune", **values: Any) -> Selection:
    """Return a selection with a budget of 5 steps, where `values` have no other one."""
    return Selection(**{"split": split, "budget": Budget(steps=5), **values})
