"""Read labelled cases from disk, check them, and collect the structures that they label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import nibabel as nib
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
_MAX_LABEL = 65535
_PLANES = {"sagittal": "LR", "coronal": "PA", "axial": "IS"}  # by the directions of the axis across the slices


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
class PartialLabels:
    """How to read label maps that label only a part of their scan, or only some of the structures.

    Attributes:
        ignore: Value of voxels that nobody judged, if there is one.
        ignore_unlabelled_slices: axial, coronal or sagittal: the slices of this plane without any label are ignored.
        absent_is_background: Whether a structure that only other cases label is background in a case. False: it is unknown
            there, and neither found nor missed.
    """

    ignore: int | None = None
    ignore_unlabelled_slices: str | None = None
    absent_is_background: bool = False


@dataclass(frozen=True)
class LabelledCase:
    """One case in memory.

    Attributes:
        scan: The scan.
        labels: Its label map on the same grid.
        ignore: Value of voxels that nobody judged, if there is one; it is no structure.
    """

    scan: Volume
    labels: Volume
    ignore: int | None = None

    @cached_property
    def values(self) -> frozenset[int]:
        """The values of the structures in the label map."""
        return frozenset(int(value) for value in np.unique(self.labels.array)) - {0, self.ignore}


def read_labelled_case(case: Case, *, report: Reporter, partial: PartialLabels | None = None) -> LabelledCase:
    """Read and check one labelled case.

    Args:
        case: The case with its files.
        report: Receives the warnings of the readers, and which slices count.
        partial: How to read a label map that labels only a part of the scan; None: all of it is labelled.

    Raises:
        InputError: A file cannot be used, the label map is not on the voxels of the scan, or it has only ignored voxels.
    """
    partial = partial or PartialLabels()
    if case.label is None:
        raise InputError("label_absent", f"The case {case.name} has no label map.", "Give one with --label.")
    scan = read_volume(case.channels, name=case.name)
    labels = align_label_map(scan, read_label_map(case.label))
    for note in (*scan.notes, *labels.notes):
        report.warning(**note)
    if labels.array.max() > _MAX_LABEL:
        message = f"The label map {case.label} has values up to {labels.array.max()}."
        raise InputError("labels_too_large", message, "Renumber them: 65535 at most.")
    values = len(np.unique(labels.array)) - 1
    if values > _MANY_LABELS and not looks_like_labels(labels):
        message = f"{case.label} has {values} different values, mixed like those of a scan."
        raise InputError("labels_look_like_a_scan", message, "Give the label map that belongs to the scan.")
    read = LabelledCase(scan, labels, partial.ignore)
    if not read.values:
        message = f"The label map {case.label} has only background and ignored voxels ({partial.ignore})."
        raise InputError("empty_label", message, "Label a structure, or check --ignore.")
    plane = partial.ignore_unlabelled_slices
    return ignore_unlabelled_slices(read, plane, report=report) if plane else read


def ignore_unlabelled_slices(case: LabelledCase, plane: str, *, report: Reporter) -> LabelledCase:
    """Ignore all slices of a case that have no structure: those between the labelled ones and those beyond them.

    Args:
        case: The case; at least one structure is labelled.
        plane: Plane of the slices, axial, coronal or sagittal; that of a tilted grid is the nearest one.
        report: Receives a message about how many slices count.

    Returns:
        The case with ignored slices; with its own ignore value, or one that its label map does not use.
    """
    array = case.labels.array[0]
    codes = nib.aff2axcodes(case.labels.affine)
    axis = next(axis for axis, code in enumerate(codes) if code in _PLANES[plane])
    is_structure = array != 0 if case.ignore is None else (array != 0) & (array != case.ignore)
    labelled = is_structure.any(axis=tuple({0, 1, 2} - {axis}))
    counts = f"{np.count_nonzero(labelled)} of {len(labelled)}"
    report.info(f"{case.scan.name}: {counts} {plane} slices are labelled and count, the others are ignored.")
    ignore = case.ignore
    if ignore is None:
        ignore = next(value for value in range(1, len(case.values) + 2) if value not in case.values)
    array = array.astype(np.promote_types(array.dtype, np.min_scalar_type(ignore)))
    np.moveaxis(array, axis, 0)[~labelled] = ignore
    return LabelledCase(case.scan, replace(case.labels, array=array[None]), ignore)


def check_compatible(cases: Sequence[LabelledCase]) -> None:
    """Check that one network can be trained on all cases.

    Args:
        cases: The cases.

    Raises:
        InputError: A case has other channels than the first.
    """
    first = cases[0].scan
    for case in cases:
        if case.scan.channels != first.channels:
            message = f"{case.scan.name} has {case.scan.channels} channel(s), {first.name} has {first.channels}."
            raise InputError("channels_do_not_fit", message, "Give every scan the same channels, in the same order.")


def collect_structures(cases: Sequence[LabelledCase], known: Sequence[Structure] = ()) -> tuple[Structure, ...]:
    """Return the structures to train on: every value in any label map, with the names of `known` where it has one."""
    values = sorted(frozenset[int]().union(*(case.values for case in cases)))
    named = {structure.value: structure for structure in known}
    colors = label_colors(len(values))
    return tuple(
        named.get(value, Structure(value, f"structure {value}", color)) for value, color in zip(values, colors)
    )
