"""Training data of fine-tuning: select the labelled cases, read them, and preprocess them for the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from HiEndMAECore.data.cases import Case
from HiEndMAECore.data.label_table import model_structures, read_structures
from HiEndMAECore.data.labelled_cases import (
    cases_from_dataset,
    cases_from_files,
    check_compatible,
    collect_structures,
    read_labelled_case,
)
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
        ignore: Label value of unlabelled voxels, if the data set has one.
    """

    cases: tuple[Case, ...]
    structures: tuple[Structure, ...]
    ignore: int | None = None


def select_cases(
    *,
    images: Sequence[str],
    labels: Sequence[Path],
    dataset: Path | None,
    names: Sequence[str],
    share: int | None,
    structures: Path | None,
    seed: int,
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

    Raises:
        InputError: The data set or the file of names cannot be used.
    """
    if dataset:
        read = cases_from_dataset(dataset, names, share=share, seed=seed)
        selection = CaseSelection(read.cases, read.structures, read.ignore)
    else:
        selection = CaseSelection(tuple(cases_from_files(images, labels)), ())
    if structures:
        selection = CaseSelection(selection.cases, read_structures(structures), selection.ignore)
    return selection


@dataclass(frozen=True)
class TrainingData:
    """Training cases on the network's grid, with their preprocessing and structures."""

    cases: list[TrainingCase]
    preprocessing: PreprocessingPlan
    structures: tuple[Structure, ...]


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
    cases = selection.cases
    read = [read_labelled_case(cases[step], report=report) for step in report.steps("reading", len(cases))]
    check_compatible(read, ignore=selection.ignore)
    preprocessing = choose_preprocessing(read, preset=preset, spacing=spacing, initial=initial)
    if retain_structures and initial and initial.description:
        structures = model_structures(initial.description)
    else:
        structures = collect_structures(read, selection.structures)
    return TrainingData(
        preprocess_training_cases(read, preprocessing, structures, report=report), preprocessing, structures
    )
