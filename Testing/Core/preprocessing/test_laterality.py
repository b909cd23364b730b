"""Left and right structures are paired, and crops are mirrored only where a mirrored patient is possible."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_examples import cube_case

from HiEndMAECore.data.labelled_cases import cases_from_dataset, collect_structures, read_labelled_case
from HiEndMAECore.preprocessing.laterality import (
    decide_mirroring,
    lateral_pairs,
    may_be_pair,
    midsagittal_plane,
    split_side,
)
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.training import augmentation, finetuning, presets
from HiEndMAECore.training.mirroring import decide_case_mirroring, mirroring_to_json
from HiEndMAECore.training.plans import FinetuningPlan
from HiEndMAECore.training.training_cases import TrainingCase, preprocess_training_cases

NAMES = ["Brainstem", "RightParotid", "LeftParotid", "Larynx"]


@pytest.mark.parametrize(
    ("name", "side", "rest"),
    [
        ("kidney_left", "left", "kidney"),
        ("LeftParotid", "left", "parotid"),
        ("right kidney", "right", "kidney"),
        ("Parotid_L", "left", "parotid"),
        ("R-Eye", "right", "eye"),
        ("rib_left_7", "left", "rib 7"),
        ("leftlung", "left", "lung"),
        ("Niere links", "left", "niere"),
        ("rein droit", "right", "rein"),
        ("Optic_Nerve_R", "right", "optic nerve"),
        ("vertebrae_L5", "", "vertebrae l5"),
        ("L1", "", "l1"),
        ("cleft_lip", "", "cleft lip"),
        ("bright_spot", "", "bright spot"),
        ("structure 4", "", "structure 4"),
        ("liver", "", "liver"),
        ("Left", "left", ""),
    ],
)
def test_split_side_of_names(name: str, side: str, rest: str) -> None:
    assert split_side(name) == (side, rest)


def test_lateral_pairs_of_names() -> None:
    assert lateral_pairs(NAMES) == [(2, 1)]
    assert lateral_pairs(["rib_left_1", "rib_right_2", "rib_right_1", "rib_left_2", "sternum"]) == [(0, 2), (3, 1)]
    assert lateral_pairs(["kidney_left", "parotid_right"]) == []


def body(shift: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return an oval body with a spine, two kidneys, and a bright liver on the right (the high end of the first axis)."""
    x, y, z = np.meshgrid(*(np.arange(n, dtype=float) for n in (80, 50, 40)), indexing="ij")
    x -= 39.5 + shift
    image = ((x / 32) ** 2 + ((y - 25) / 20) ** 2 < 1) * 0.5
    classes = np.zeros(image.shape, np.int16)
    classes[(np.abs(x) < 4) & (np.abs(y - 12) < 4)] = 1
    for value, side in ((2, 1), (3, -1)):
        classes[((x - side * 16) / 5) ** 2 + ((y - 14) / 5) ** 2 + ((z - 15 - 2 * side) / 9) ** 2 < 1] = value
    classes[((x - 15) / 12) ** 2 + ((y - 30) / 10) ** 2 + ((z - 28) / 10) ** 2 < 1] = 4
    image = image + np.array([0, 0.4, 0.2, 0.2, 0.1])[classes]
    return image.astype(np.float32), classes


def only(*values: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the body with these labels alone, renumbered as 1, 2, …"""
    image, classes = body()
    chosen = np.zeros_like(classes)
    for index, value in enumerate(values, start=1):
        chosen[classes == value] = index
    return image, chosen


@pytest.mark.parametrize("shift", [0, -3, 6])
def test_midsagittal_plane_is_found(shift: int) -> None:
    assert midsagittal_plane(body(shift)[0]) == pytest.approx(39.5 + shift, abs=0.6)


def test_midsagittal_plane_of_an_asymmetric_scan_is_none() -> None:
    rng = np.random.default_rng(0)
    assert midsagittal_plane(np.linspace(0, 1, 40)[:, None, None] + 0.1 * rng.normal(size=(40, 30, 30))) is None
    assert midsagittal_plane(np.zeros((10, 10, 10))) is None
    assert not decide_mirroring(["thing"], [(np.zeros((10, 10, 10)), np.ones((10, 10, 10), int))]).allowed


def test_decide_mirroring_pairs_by_name_and_by_position() -> None:
    named = decide_mirroring(["spine", "kidney_right", "kidney_left"], [only(1, 2, 3)])
    assert (named.allowed, named.swaps) == (True, ((3, 2),))
    assert "'kidney_left' and 'kidney_right'" in named.reason
    unnamed = decide_mirroring(["structure 1", "structure 2", "structure 3"], [only(1, 2, 3)])
    assert (unnamed.allowed, unnamed.swaps) == (True, ((2, 3),))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("Segment_1", "Segment_2", True),
        ("structure 3", "structure 12", True),
        ("a", "b", True),
        ("Niere li", "Niere re", True),
        ("aorta", "IVC", False),
        ("tumour", "lymph_node", False),
        ("medial_meniscus", "lateral_meniscus", False),
        ("meniscus med", "meniscus lat", False),
        ("rib 3", "rib 4", False),
    ],
)
def test_may_be_pair_of_names(one: str, other: str, expected: bool) -> None:
    assert may_be_pair(one, other) is may_be_pair(other, one) is expected


def test_decide_mirroring_does_not_pair_different_organs() -> None:
    """Two kidneys are paired by position, but not if their names are those of different organs or their means differ."""
    image, classes = only(2, 3)
    assert not decide_mirroring(["aorta", "vena cava"], [(image, classes)]).allowed
    other = np.where(classes == 2, image - 0.2, image)
    assert decide_mirroring(["structure 1", "structure 2"], [(image, classes)]).swaps == ((1, 2),)
    assert not decide_mirroring(["structure 1", "structure 2"], [(other, classes)]).allowed


@pytest.mark.parametrize(
    ("names", "values", "reason"),
    [
        (["structure 1", "structure 2"], (1, 4), "'structure 2' lies on one side"),
        (["structure 1"], (2,), "'structure 1' lies on one side"),
        (["kidney_left"], (1,), "'kidney_left' is labelled on one side alone"),
        (["Liver"], (1,), "'Liver' lies on one side"),
        (["ventricle left", "ventricle right"], (2, 4), "not mirror images"),
    ],
)
def test_unpaired_lateral_structure_disables_mirroring(names: list[str], values: tuple[int, ...], reason: str) -> None:
    decision = decide_mirroring(names, [only(*values)])
    assert not decision.allowed
    assert reason in decision.reason


def test_midline_structures_allow_mirroring() -> None:
    decision = decide_mirroring(["structure 1"], [only(1)])
    assert (decision.allowed, decision.swaps) == (True, ())
    assert "middle" in decision.reason


def test_one_unsuitable_scan_disables_mirroring() -> None:
    assert decide_mirroring(["a", "b"], [only(2, 3), only(2, 3)]).allowed
    assert not decide_mirroring(["a", "b"], [only(2, 3), only(2, 4)]).allowed


def test_mirrored_crops_exchange_lateral_classes() -> None:
    """A mirrored right kidney is a left one: in every crop the structure at the low end is class 2."""
    image, classes = only(2, 3)
    scan = TrainingCase("body", torch.from_numpy(image)[None], torch.from_numpy(classes))
    mirroring = decide_mirroring(["kidney_right", "kidney_left"], [(image, classes)])
    plan = FinetuningPlan(crop=(80, 48, 40), steps=1, batch_size=8, mirror_probability=0.5)

    class CenteredRecipe(finetuning.DefaultRecipe):
        mirrored = 0

        def draw(self, index, crop):  # type: ignore[no-untyped-def]
            scan, _, change = super().draw(index, crop)
            self.mirrored += augmentation.is_mirrored(change)
            matrix = np.diag(np.sign(np.diag(change.matrix)))
            return scan, np.array([39.5, 24.5, 19.5]), replace(augmentation.IDENTITY, matrix=matrix)

    recipe = CenteredRecipe([scan], classes=3, plan=plan, mirroring=mirroring)
    images, targets, _ = finetuning.draw_batch([scan], recipe, step=0, plan=plan)
    assert 0 < recipe.mirrored < 8
    for target in targets[:, 0]:
        centers = [float(torch.nonzero(target == value)[:, 0].float().mean()) for value in (1, 2)]
        assert centers[0] > 39.5 > centers[1]
    assert len({float(image[0, :30].sum()) for image in images}) == 2  # the images differ


def test_crops_are_not_mirrored_unless_allowed() -> None:
    scan = cube_case()
    plan = FinetuningPlan(crop=(16, 16, 16), steps=1)
    off = decide_mirroring(["liver", "ball"], [(scan.image[0].numpy(), scan.classes.numpy())])
    for mirroring in (None, off):
        recipe = finetuning.DefaultRecipe([scan], classes=3, plan=plan, mirroring=mirroring)
        assert not any(augmentation.is_mirrored(recipe.draw(index, plan.crop)[2]) for index in range(50))


@pytest.mark.parametrize("named", [True, False])
def test_decide_mirroring_of_real_heads_pairs_the_parotids(named: bool) -> None:
    """In OpenKBP the parotids are a pair by name and by position; all other structures lie in the middle."""
    if not os.environ.get("HIENDMAE_DATA"):
        pytest.skip("HIENDMAE_DATA does not name the folder of real scans")
    folder = Path(os.environ["HIENDMAE_DATA"]) / "Dataset101_OpenKBP"
    dataset = cases_from_dataset(folder, ["OKBP_004", "OKBP_031"])
    report = Reporter(quiet=True)
    read = [read_labelled_case(case, report=report) for case in dataset.cases]
    plan = presets.choose_preprocessing(read, preset=presets.PRESETS["cpu"], spacing=(5.0, 5.0, 5.0))
    structures = collect_structures(read, dataset.structures if named else ())
    scans = preprocess_training_cases(read, plan, structures, report=report)
    mirroring = mirroring_to_json(decide_case_mirroring(scans, structures, report=report), structures)["mirroring"]
    assert mirroring["allowed"]
    assert [sorted(pair) for pair in mirroring["swaps"]] == [[3, 4]]
