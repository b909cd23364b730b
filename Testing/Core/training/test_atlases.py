"""The atlases that a model keeps: from which training cases, and with which labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from model_files import describe
from small_patients import PLAN, prepared, small_patient, write_pair

from HiEndMAECore.data.phantom import LIVER, SPINE
from HiEndMAECore.inference import atlas_matching
from HiEndMAECore.io.structure import Structure
from HiEndMAECore.models.folder import write_model
from HiEndMAECore.preprocessing.intensity import IntensityNormalization
from HiEndMAECore.preprocessing.pipeline import preprocess_labels
from HiEndMAECore.registration.atlas import Atlas
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.training.atlases import MAX_ATLASES, build_atlases
from HiEndMAECore.training.presets import PRESETS
from HiEndMAECore.training.training_cases import IGNORED, TrainingCase
from HiEndMAECore.training.training_data import load_training_data, select_cases


def case_of(seed: int = 1) -> TrainingCase:
    scan, labels = small_patient(seed)
    image = prepared(scan)
    classes = torch.from_numpy(preprocess_labels(labels, image).astype(np.int16))
    return TrainingCase(f"p{seed}", torch.from_numpy(image.array), classes, image)


def build(
    *cases: TrainingCase, normalization: IntensityNormalization = PLAN.normalization
) -> tuple[tuple[Atlas, ...], list]:
    report = Reporter(quiet=True)
    atlases = build_atlases(cases, normalization, report=report)
    return atlases, report.warnings


def test_atlas_has_the_classes_and_the_grid_of_its_case() -> None:
    case = case_of()
    (atlas,), warnings = build(case)
    assert warnings == []
    assert torch.equal(atlas.labels.to(torch.int16), case.classes)
    assert case.grid is not None
    np.testing.assert_array_equal(atlas.label_grid.affine, case.grid.affine)
    assert atlas.label_grid.shape == tuple(case.classes.shape)
    assert atlas.name == "p1"


@pytest.mark.parametrize(("kind", "modality"), [("window", "ct"), ("percentiles", "mri")])
def test_modality_follows_the_normalization(kind: str, modality: str) -> None:
    limits = (-175.0, 250.0) if kind == "window" else (0.5, 99.5)
    normalization = IntensityNormalization.from_json({"kind": kind, "low": limits[0], "high": limits[1]})
    assert build(case_of(), normalization=normalization)[0][0].modality == modality


def test_first_channel_is_registered() -> None:
    case = case_of()
    two = replace(case, image=torch.cat([case.image, torch.rand(case.image.shape)]))
    assert torch.equal(build(two)[0][0].features.channels, build(case)[0][0].features.channels)


def test_ignored_voxels_become_background() -> None:
    case = case_of()
    classes = case.classes.clone()
    classes[:1] = IGNORED
    found = torch.nonzero(classes > 0)[0]
    classes[tuple(found)] = IGNORED
    atlases, warnings = build(replace(case, classes=classes))
    assert warnings == []
    assert torch.equal(atlases[0].labels.to(torch.int16), classes.clamp(min=0))
    assert atlases[0].labels[tuple(found)] == 0


@pytest.mark.parametrize("partial", ["ignored slices", "unknown structure"])
def test_partly_labelled_case_has_no_atlas_and_a_warning(partial: str) -> None:
    """Its atlas would call background what nobody labelled, and the result would lack it."""
    case = case_of(1)
    if partial == "ignored slices":
        classes = case.classes.clone()
        classes[:, :, ::2] = IGNORED
        case = replace(case, classes=classes)
    else:
        case = replace(case, unknown=(3,))
    atlases, warnings = build(case, case_of(2))
    assert [atlas.name for atlas in atlases] == ["p2"]
    assert [warning["code"] for warning in warnings] == ["atlas_left_out"]
    assert warnings[0]["message"].startswith("p1: ")
    assert warnings[0]["advice"]


def test_model_keeps_the_atlases_of_the_first_three_cases_that_can_have_one() -> None:
    flat = replace(case_of(1), name="flat", image=torch.zeros_like(case_of(1).image))
    cases = [replace(case_of(1 + n % 2), name=f"case {n}") for n in range(5)]
    atlases, warnings = build(flat, *cases)
    assert MAX_ATLASES == atlas_matching.MAX_ATLASES == 3
    assert [atlas.name for atlas in atlases] == ["case 0", "case 1", "case 2"]
    assert [warning["message"].split(":")[0] for warning in warnings] == ["flat"]


def test_case_that_is_too_thin_is_left_out_with_a_warning() -> None:
    case = case_of()
    thin = replace(case, image=case.image[..., :2], classes=case.classes[..., :2])
    atlases, warnings = build(thin)
    assert atlases == ()
    assert [warning["code"] for warning in warnings] == ["atlas_left_out"]
    assert "thinnest axis" in warnings[0]["message"]


@pytest.mark.parametrize("has_atlas", [True, False])
def test_improved_model_keeps_its_atlas_where_no_case_labels_one_of_its_structures(
    has_atlas: bool, tmp_path: Path
) -> None:
    """The atlas of the new case would call the spleen background in every later result."""
    case, report = case_of(), Reporter(quiet=True)
    (older,), _ = build(case)
    older = replace(older, labels=older.labels.clamp(max=2))
    write_model(tmp_path / "model", describe(), {"weight": torch.zeros(2)}, (older,) if has_atlas else ())
    atlases = build_atlases(
        [case],
        PLAN.normalization,
        unlabelled=[Structure(5, "spleen", (1, 2, 3))],
        improved=tmp_path / "model",
        report=report,
    )
    assert [torch.equal(atlas.labels, older.labels) for atlas in atlases] == [True] * has_atlas
    assert ["no case labels spleen" in warning["message"] for warning in report.warnings] == [True]


def test_training_data_name_the_structures_of_an_improved_model_that_no_case_labels(tmp_path: Path) -> None:
    scan, labels = small_patient(1)
    kept = replace(labels, array=np.where(labels.array == LIVER, LIVER, 0).astype(np.uint8))
    image, label = write_pair(tmp_path, "p", scan, kept)
    selection = select_cases(
        images=[str(image)], labels=[label], dataset=None, names=(), share=None, structures=None, seed=0
    )
    names = [{"value": LIVER, "name": "liver"}, {"value": SPINE, "name": "spine"}]
    initial = SimpleNamespace(description=describe(labels=names), is_segmentation=True)
    data = load_training_data(
        selection,
        PRESETS["cpu"],
        initial,  # type: ignore[arg-type]
        spacing=None,
        retain_structures=True,
        report=Reporter(quiet=True),
    )
    assert [structure.name for structure in data.unlabelled] == ["spine"]
