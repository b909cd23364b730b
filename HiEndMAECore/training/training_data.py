"""Training data of fine-tuning: select the labelled cases, read them, and preprocess them for the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from HiEndMAECore.data.cases import Case
from HiEndMAECore.data.label_table import model_structures, read_label_table
from HiEndMAECore.data.labelled_cases import (
    LabelledCase,
    PartialLabels,
    cases_from_dataset,
    cases_from_files,
    check_compatible,
    collect_structures,
    read_labelled_case,
)
from HiEndMAECore.errors import InputError
from HiEndMAECore.io.structure import Structure
from HiEndMAECore.models.pretrained import PretrainedWeights
from HiEndMAECore.preprocessing.pipeline import PreprocessingPlan
from HiEndMAECore.reporting.reporter import Reporter

from .presets import Preset, choose_preprocessing
from .training_cases import TrainingCase, preprocess_training_cases


@dataclass(frozen=True)
class CaseSelection:
    """Labelled cases to train on.

    Attributes:
        cases: The cases on disk.
        structures: Known structures, from the data set or a file of names; may be empty.
        partial: How to read label maps that label only a part of the scan or of the structures.
    """

    cases: tuple[Case, ...]
    structures: tuple[Structure, ...]
    partial: PartialLabels


def select_cases(
    *,
    images: Sequence[str],
    labels: Sequence[Path],
    dataset: Path | None,
    names: Sequence[str],
    share: int | None,
    structures: Path | None,
    seed: int,
    partial: PartialLabels | None = None,
) -> CaseSelection:
    """Select the cases to train on: those of a data set, or single files.

    Args:
        images: Scans, one a case; the channels of one case are joined by commas.
        labels: Label maps in the same order.
        dataset: Folder of a data set, instead of images and labels.
        names: Cases of the data set; empty: all.
        share: Percent of the data set's cases.
        structures: JSON file with the structures' names.
        seed: Seed that decides which cases a share contains.
        partial: How to read label maps that label only a part; None: they label all. Without an ignore value, that of the
            file of names or of the data set is used.

    Raises:
        InputError: The data set or the file of names cannot be used.
    """
    if dataset:
        read = cases_from_dataset(dataset, names, share=share, seed=seed)
        cases, known, ignore = read.cases, read.structures, read.ignore
    else:
        cases, known, ignore = tuple(cases_from_files(images, labels)), (), None
    if structures:
        table = read_label_table(structures)
        known, ignore = table.structures, ignore if table.ignore is None else table.ignore
    partial = partial or PartialLabels()
    if partial.ignore is None:
        partial = replace(partial, ignore=ignore)
    return CaseSelection(cases, known, partial)


@dataclass(frozen=True)
class TrainingData:
    """Training cases on the network's grid, with their preprocessing and structures.

    Attributes:
        cases: The training cases.
        preprocessing: Spacing and intensities of the network's grid.
        structures: Structures of the model.
        unlabelled: Those that no case labels: the initial model (`--improve`) has them.
    """

    cases: list[TrainingCase]
    preprocessing: PreprocessingPlan
    structures: tuple[Structure, ...]
    unlabelled: tuple[Structure, ...] = ()


def load_training_data(
    selection: CaseSelection,
    preset: Preset,
    initial: PretrainedWeights | None,
    *,
    spacing: Sequence[float] | None,
    retain_structures: bool,
    report: Reporter,
) -> TrainingData:
    """Read, check and preprocess the selected cases. The scans at full resolution are released.

    Args:
        selection: Cases to read.
        preset: Sizes for this machine.
        initial: Initial weights, which may determine spacing and intensities.
        spacing: Requested spacing in mm along right, anterior and superior.
        retain_structures: True trains the structures of the initial model (`--improve`); False those of the label maps.
        report: Receives the progress of the stage `reading`, and warnings.

    Raises:
        InputError: A case cannot be used, or the cases do not fit together.
    """
    cases, partial = selection.cases, selection.partial
    read = [
        read_labelled_case(cases[step], report=report, partial=partial) for step in report.steps("reading", len(cases))
    ]
    check_compatible(read)
    preprocessing = choose_preprocessing(read, preset=preset, spacing=spacing, initial=initial)
    if retain_structures and initial and initial.description:
        structures = model_structures(initial.description)
        _check_ignore(partial.ignore, structures)
    else:
        structures = collect_structures(read, selection.structures)
    unknown = [()] * len(read) if partial.absent_is_background else find_unknown_classes(read, structures)
    training_cases = preprocess_training_cases(read, preprocessing, structures, unknown=unknown, report=report)
    labelled = frozenset[int]().union(*(case.values for case in read))
    unlabelled = tuple(structure for structure in structures if structure.value not in labelled)
    return TrainingData(training_cases, preprocessing, structures, unlabelled)


def find_unknown_classes(cases: Sequence[LabelledCase], structures: Sequence[Structure]) -> list[tuple[int, ...]]:
    """Return for each case the classes that it does not label although another case does."""
    labelled = frozenset[int]().union(*(case.values for case in cases))
    return [
        tuple(index + 1 for index, structure in enumerate(structures) if structure.value in labelled - case.values)
        for case in cases
    ]


def _check_ignore(ignore: int | None, structures: Sequence[Structure]) -> None:
    """Raise `InputError` when the ignore value is that of a structure of the model."""
    for structure in structures:
        if structure.value == ignore:
            raise InputError(
                "ignore_is_a_structure",
                f"The ignore value {ignore} is the value of '{structure.name}' in the model.",
                "Renumber the ignored voxels, or start from the model with --init instead of --improve.",
            )
