"""Read labelled cases from disk, check them, and collect the structures that they label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from HiEndMAECore.errors import InputError
from HiEndMAECore.io.alignment import align_label_map
from HiEndMAECore.io.file_names import case_name, split_channels
from HiEndMAECore.io.readers import read_label_map, read_volume
from HiEndMAECore.io.structure import Structure
from HiEndMAECore.io.volume import Volume
from HiEndMAECore.reporting.reporter import Reporter

from .cases import Case
from .datasets import Dataset, nested_subset, read_dataset
from .ingest import looks_like_labels
from .label_table import label_colors

_MANY_LABELS = 64  # a label map with more labels is checked for being a scan


def cases_from_files(images: Sequence[str], labels: Sequence[Path]) -> list[Case]:
    """Return the cases of loose files.

    Args:
        images: One scan a case; channels are joined by commas.
        labels: One label map a case, in the same order.
    """
    files = [split_channels(image) for image in images]
    return [Case(case_name(f[0]), f, label) for f, label in zip(files, labels)]


def cases_from_dataset(folder: Path, names: Sequence[str] = (), *, share: int | None = None, seed: int = 0) -> Dataset:
    """Read a data set and choose among its labelled cases.

    Args:
        folder: Folder of the data set.
        names: Names of the cases; none takes all.
        share: Percent of them to take, None for all.
        seed: Seed of the share.

    Returns:
        The data set with the chosen cases alone.

    Raises:
        InputError: `case_absent`, or what `read_dataset` raises.
    """
    dataset = read_dataset(folder)
    found = {case.name: case for case in dataset.cases}
    absent = [name for name in names if name not in found]
    if absent:
        raise InputError("case_absent", f"{folder} has no labelled case {', '.join(absent)}.", "Check --cases.")
    cases = [found[name] for name in names or found]
    return replace(dataset, cases=tuple(cases if share is None else nested_subset(cases, share, seed=seed)))


@dataclass(frozen=True)
class LabelledCase:
    """One case in memory: the scan, and its label map on the same grid."""

    scan: Volume
    labels: Volume


def read_labelled_case(case: Case, *, report: Reporter) -> LabelledCase:
    """Read and check one labelled case.

    Args:
        case: The case with its files.
        report: Receives the warnings of the readers.

    Raises:
        InputError: A file cannot be used, or the label map is not on the voxels of the scan.
    """
    if case.label is None:
        raise InputError("label_absent", f"The case {case.name} has no label map.", "Give one with --label.")
    scan = read_volume(case.channels, name=case.name)
    labels = align_label_map(scan, read_label_map(case.label))
    for note in (*scan.notes, *labels.notes):
        report.warning(**note)
    if labels.array.max() > 65535:
        message = f"The label map {case.label} has values up to {labels.array.max()}."
        raise InputError("labels_too_large", message, "Renumber them: 65535 at most.")
    values = len(np.unique(labels.array)) - 1
    if values > _MANY_LABELS and not looks_like_labels(labels):
        message = f"{case.label} has {values} different values, mixed like those of a scan."
        raise InputError("labels_look_like_a_scan", message, "Give the label map that belongs to the scan.")
    return LabelledCase(scan, labels)


def check_compatible(cases: Sequence[LabelledCase], *, ignore: int | None = None) -> None:
    """Check that one network can be trained on all cases.

    Args:
        cases: The cases.
        ignore: Value of the label `ignore`, if the data set has one.

    Raises:
        InputError: A case has other channels than the first, or voxels labelled `ignore`.
    """
    first = cases[0].scan
    for case in cases:
        if case.scan.channels != first.channels:
            message = f"{case.scan.name} has {case.scan.channels} channel(s), {first.name} has {first.channels}."
            raise InputError("channels_do_not_fit", message, "Give every scan the same channels, in the same order.")
        if ignore is not None and (case.labels.array == ignore).any():
            message = f"The label map of {case.scan.name} has voxels of the label 'ignore' ({ignore})."
            advice = "Training cannot leave them out: choose cases without, or label them."
            raise InputError("ignore_not_supported", message, advice)


def collect_structures(cases: Sequence[LabelledCase], known: Sequence[Structure] = ()) -> tuple[Structure, ...]:
    """Return the structures to train on: every value in any label map, with the names of `known` where it has one."""
    values = sorted({int(value) for case in cases for value in np.unique(case.labels.array)} - {0})
    named = {structure.value: structure for structure in known}
    colors = label_colors(len(values))
    return tuple(
        named.get(value, Structure(value, f"structure {value}", color)) for value, color in zip(values, colors)
    )
