"""The command `finetune` on label maps that label a part of a scan, or some of the structures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_examples import cube_case, finetune

from HiEndMAECore import finetune as command
from HiEndMAECore.data.cases import Case
from HiEndMAECore.data.datasets import read_dataset
from HiEndMAECore.data.labelled_cases import PartialLabels, read_labelled_case
from HiEndMAECore.data.phantom import LEFT_KIDNEY, LIVER, PHANTOM_STRUCTURES, RIGHT_KIDNEY, SPINE, make_patient
from HiEndMAECore.errors import InputError, UsageError
from HiEndMAECore.inference.predictor import Predictor
from HiEndMAECore.io.readers import read_volume
from HiEndMAECore.io.writers import write_label_map, write_scalar_map
from HiEndMAECore.models.folder import read_description
from HiEndMAECore.preprocessing.laterality import Mirroring
from HiEndMAECore.preprocessing.pipeline import PreprocessingPlan
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.training import finetuning
from HiEndMAECore.training.default_recipe import DefaultRecipe, draw_batch
from HiEndMAECore.training.performance_estimate import _estimate_sizes
from HiEndMAECore.training.plans import FinetuningPlan
from HiEndMAECore.training.presets import PRESETS
from HiEndMAECore.training.training_cases import IGNORED, TrainingCase, preprocess_training_cases
from HiEndMAECore.training.training_data import find_unknown_classes, load_training_data, select_cases

IGNORE = 9
SHAPE, SPACING = (48, 40, 40), (7.0, 7.0, 7.0)


def write_patient(folder: Path, seed: int, edit: Any) -> tuple[str, Path]:
    """Write a digital patient whose label map is `edit(labels)`; return the paths of scan and label map."""
    scan, labels = make_patient(seed, shape=SHAPE, spacing=SPACING)
    paths = folder / f"p{seed}_0000.nii.gz", folder / f"p{seed}_labels.nii.gz"
    write_scalar_map(paths[0], scan.array[0], scan.geometry)
    write_label_map(paths[1], edit(labels.array[0]).astype(np.uint8), labels.geometry)
    return str(paths[0]), paths[1]


def without(*values: int) -> Any:
    return lambda labels: np.where(np.isin(labels, values), 0, labels)


def skip_slices(value: int) -> Any:
    """Return an edit that gives three of four axial slices the value."""
    return lambda labels: np.where(np.arange(labels.shape[2]) % 4 == 0, labels, value)


def train(folder: Path, cases: list[tuple[str, Path]], report: Reporter | None = None, **options: Any) -> Any:
    """Train on cases; return the description of the model."""
    settings: dict[str, Any] = {"steps": 2, "device": "cpu", "output": folder / "model", "spacing": SPACING, **options}
    images, labels = zip(*cases)
    command.run(command.FinetuneConfig(image=images, label=labels, **settings), report)
    return read_description(settings["output"])


@pytest.mark.parametrize("how", ["--ignore", "--ignore-unlabelled-slices", "names"])
def test_finetune_on_every_fourth_slice_ignores_the_others(how: str, tmp_path: Path) -> None:
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"labels": {"ignore": IGNORE, "liver": LIVER}}))
    options: dict[str, Any] = {
        "--ignore": {"ignore": IGNORE},
        "--ignore-unlabelled-slices": {"ignore_unlabelled_slices": "axial"},
        "names": {"names": names},
    }[how]
    case = write_patient(tmp_path, 1, skip_slices(0 if how == "--ignore-unlabelled-slices" else IGNORE))
    description = train(tmp_path, [case], **options)
    assert [label["value"] for label in description.labels] == [s.value for s in PHANTOM_STRUCTURES]
    (share,) = description.training["ignored_voxels"]
    assert share == pytest.approx(0.75, abs=0.08)
    assert "unknown_structures" not in description.training
    prediction = Predictor.load(tmp_path / "model", device=torch.device("cpu")).segment(read_volume(case[0])).labels
    assert IGNORE not in prediction


def test_finetune_reads_the_ignore_value_of_a_data_set(tmp_path: Path) -> None:
    image, label = write_patient(tmp_path, 1, skip_slices(IGNORE))
    for part, path, name in (("imagesTr", Path(image), "p_0000"), ("labelsTr", label, "p")):
        (tmp_path / part).mkdir()
        path.rename(tmp_path / part / f"{name}.nii.gz")
    labels = {"background": 0, **{s.name: s.value for s in PHANTOM_STRUCTURES}, "ignore": IGNORE}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(dataset))
    assert read_dataset(tmp_path).ignore == IGNORE
    config = command.FinetuneConfig(dataset=tmp_path, output=tmp_path / "m", steps=1, device="cpu", spacing=SPACING)
    command.run(config)
    description = read_description(tmp_path / "m")
    assert [label["name"] for label in description.labels] == [s.name for s in PHANTOM_STRUCTURES]
    assert description.training["ignored_voxels"][0] == pytest.approx(0.75, abs=0.08)


def test_resampling_ignores_a_voxel_where_the_largest_share_is_ignored(tmp_path: Path) -> None:
    """The grid is the scan's own, moved to half of the voxels along the last axis."""
    image, label = write_patient(tmp_path, 1, skip_slices(IGNORE))
    report, partial = Reporter(quiet=True), PartialLabels(ignore=IGNORE)
    case = read_labelled_case(Case("p", (Path(image),), label), report=report, partial=partial)
    structures = PHANTOM_STRUCTURES
    fine = PreprocessingPlan((SPACING[0], SPACING[1], SPACING[2] / 4))
    (training_case,) = preprocess_training_cases([case], fine, structures, report=report)
    assert training_case.ignored_share == pytest.approx(0.75, abs=0.05)
    judged = (training_case.classes != IGNORED).any(0).any(0)
    runs = np.flatnonzero(np.diff(np.concatenate([[0], judged.int().numpy(), [0]])))
    assert set(np.diff(runs)[::2].tolist()) <= {2, 4, 5}, "a labelled slice has its own thickness"


def test_finetune_learns_nothing_from_ignored_voxels(tmp_path: Path) -> None:
    """Labels below the ignored voxels do not change the losses: there are none."""
    case = cube_case()
    hidden = torch.zeros(28, 28, 28, dtype=torch.bool)
    hidden[:, :, 14:] = True
    part = TrainingCase("part", case.image, torch.where(hidden, IGNORED, case.classes).short())
    result = finetune(tmp_path, case=part, steps=8)
    assert all(np.isfinite(loss) for _, loss in result.losses)


def test_two_cases_with_different_structures_make_one_model(tmp_path: Path) -> None:
    cases = [
        write_patient(tmp_path, 1, without(LEFT_KIDNEY, RIGHT_KIDNEY)),
        write_patient(tmp_path, 2, without(LIVER)),
    ]
    report = Reporter(quiet=True)
    description = train(tmp_path, cases, report)
    assert [label["value"] for label in description.labels] == [s.value for s in PHANTOM_STRUCTURES]
    assert description.training["unknown_structures"] == [[RIGHT_KIDNEY, LEFT_KIDNEY], [LIVER]]
    messages = [warning["message"] for warning in report.warnings if warning["code"] == "structures_not_drawn"]
    assert any(f"p1 has no structure {RIGHT_KIDNEY}, structure {LEFT_KIDNEY}, which other" in text for text in messages)
    assert all("unknown there" in text for text in messages)


def test_absent_structures_are_background_where_the_option_says_so(tmp_path: Path) -> None:
    cases = [write_patient(tmp_path, 1, without(LIVER)), write_patient(tmp_path, 2, without())]
    report = Reporter(quiet=True)
    description = train(tmp_path, cases, report, absent_is_background=True)
    assert "unknown_structures" not in description.training
    messages = {warning["code"]: warning["message"] for warning in report.warnings}
    assert f"p1 has no structure {LIVER}. If the scan shows them" in messages["structures_not_drawn"]


def test_a_structure_that_no_case_labels_is_unknown_nowhere(tmp_path: Path) -> None:
    paths = [write_patient(tmp_path, seed, without(LIVER, value)) for seed, value in ((1, SPINE), (2, LIVER))]
    cases = [Case(f"p{index}", (Path(image),), label) for index, (image, label) in enumerate(paths)]
    read = [read_labelled_case(case, report=Reporter(quiet=True)) for case in cases]
    assert find_unknown_classes(read, PHANTOM_STRUCTURES) == [(7,), ()]
    assert find_unknown_classes(read[:1], PHANTOM_STRUCTURES) == [()]


def test_unknown_classes_change_sides_in_mirrored_crops() -> None:
    case = cube_case()
    cases = [TrainingCase("one", case.image, case.classes, unknown=(1,))]
    plan = FinetuningPlan(crop=(8, 8, 8), steps=1, batch_size=16, mirror_probability=0.5)
    recipe = DefaultRecipe(cases, classes=3, plan=plan, mirroring=Mirroring(True, ((1, 2),), ""))
    assert {(1,), (2,)} == set(draw_batch(cases, recipe, step=0, plan=plan).unknown)


def test_run_digest_depends_on_unknown_classes() -> None:
    case, plan = cube_case(), FinetuningPlan(crop=(8, 8, 8), steps=1)
    digests = {
        finetuning.digest_run(plan, [TrainingCase("a", case.image, case.classes, unknown=unknown)])
        for unknown in ((), (1,), (2,))
    }
    assert len(digests) == 3


def test_ignore_value_of_a_structure_of_the_model_to_improve_is_refused(tmp_path: Path) -> None:
    case = write_patient(tmp_path, 1, without())
    train(tmp_path, [case], steps=1)
    with pytest.raises(InputError) as caught:
        train(tmp_path, [case], improve=tmp_path / "model", output=tmp_path / "other", ignore=LIVER)
    assert caught.value.code == "ignore_is_a_structure"
    with pytest.raises(UsageError, match="--ignore is 0"):
        train(tmp_path, [case], ignore=0)


def test_given_ignore_value_goes_before_that_of_the_names(tmp_path: Path) -> None:
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"labels": {"ignore": IGNORE, "liver": LIVER}}))
    images, labels = zip(write_patient(tmp_path, 1, skip_slices(SPINE)))
    choice: dict[str, Any] = {"dataset": None, "names": (), "share": None, "seed": 0, "structures": names}
    for partial, ignore in ((PartialLabels(SPINE), SPINE), (None, IGNORE)):
        selection = select_cases(images=images, labels=labels, **choice, partial=partial)
        assert selection.partial.ignore == ignore
    data = load_training_data(
        select_cases(images=images, labels=labels, **choice, partial=PartialLabels(SPINE)), PRESETS["cpu"], None,
        spacing=SPACING, retain_structures=False, report=Reporter(quiet=True),
    )  # fmt: skip
    assert SPINE not in [structure.value for structure in data.structures]


def test_scribble_around_ignored_voxels_has_a_finite_size() -> None:
    """The box of two lines without its last planes has no judged voxel, and the estimate divided by zero after training."""
    classes = torch.full((24, 24, 3), IGNORED, dtype=torch.int16)
    classes[20, :21, 1] = classes[:21, 20, 1] = 1
    case = TrainingCase("scribble", torch.zeros((1, 24, 24, 3)), classes)
    (size,) = _estimate_sizes(case, torch.tensor([0.0, 41.0]))[1:]
    assert size == 21 * 21


def test_ignore_value_chosen_for_a_case_is_not_counted_as_a_structure_of_the_model(tmp_path: Path) -> None:
    """A case that lacks the liver may ignore its unlabelled slices with the liver's value."""
    image, label = write_patient(tmp_path, 1, skip_slices(LIVER))
    report, partial = Reporter(quiet=True), PartialLabels(ignore=LIVER)
    case = read_labelled_case(Case("p", (Path(image),), label), report=report, partial=partial)
    (training_case,) = preprocess_training_cases([case], PreprocessingPlan(SPACING), PHANTOM_STRUCTURES, report=report)
    assert training_case.ignored_share > 0.7
    messages = [warning["message"] for warning in report.warnings if warning["code"] == "too_little_to_learn"]
    assert any("'liver' has only 0 voxels" in message.lower() for message in messages)
    assert "labels_outside_body" not in [warning["code"] for warning in report.warnings]
