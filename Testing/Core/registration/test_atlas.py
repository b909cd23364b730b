"""Atlases: built from a labelled scan without its intensities, stored, checked, and registered to other scans."""

from __future__ import annotations

import copy
import functools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from HiEndMAECore.data.phantom import make_patient
from HiEndMAECore.errors import InputError
from HiEndMAECore.evaluation.metrics import dice
from HiEndMAECore.models import atlas_schema
from HiEndMAECore.registration import atlas as atlas_module
from HiEndMAECore.registration.atlas import Atlas, build_atlas, register_atlas
from HiEndMAECore.registration.features import RegistrationImage, extract_features, tissue_class
from HiEndMAECore.registration.grids import Grid
from HiEndMAECore.registration.registration import Registration, RegistrationSettings, register
from HiEndMAECore.reporting.reporter import Reporter

SHAPE, SPACING = (56, 48, 48), (6.0, 6.0, 6.0)
COARSE = RegistrationSettings(spacing=6.0, steps=10)
STRUCTURES = 7


@functools.cache
def patient(seed: int) -> tuple[RegistrationImage, torch.Tensor]:
    """Return the CT of a digital patient in [0, 1], and its label map."""
    scan, labels = make_patient(seed, shape=SHAPE, spacing=SPACING)
    image = np.clip((scan.array[0] + 175) / 425, 0, 1).astype(np.float32)
    return RegistrationImage(torch.from_numpy(image), scan.geometry.affine), torch.from_numpy(labels.array[0])


@functools.cache
def built(seed: int = 1) -> Atlas:
    image, labels = patient(seed)
    return build_atlas(image, labels, image.grid, name="case", modality="ct", settings=COARSE)


def mean_dice(result: Registration, atlas: Atlas, fixed: RegistrationImage, reference: torch.Tensor) -> float:
    found = result.transform.warp_labels(atlas.labels, atlas.label_grid, fixed.grid).numpy()
    values = [v for v in np.unique(reference.numpy()) if v]
    return float(np.mean([dice(found == v, reference.numpy() == v) or 0.0 for v in values]))


def run_from_atlas(atlas: Atlas, fixed: RegistrationImage, settings: RegistrationSettings) -> Registration:
    with Reporter(quiet=True) as report:
        return register_atlas(atlas, fixed, report=report, settings=settings)


def run_from_scan(moving: RegistrationImage, fixed: RegistrationImage, settings: RegistrationSettings) -> Registration:
    with Reporter(quiet=True) as report:
        return register(moving, fixed, modality="ct", report=report, settings=settings)


def test_atlas_has_no_intensities() -> None:
    """It has the tissue class, which contrast medium does not change, in the place of the intensity."""
    (image, labels), atlas = patient(1), built()
    assert atlas.features.channels.shape[0] == 14
    assert atlas.features.channels.dtype == torch.uint8
    assert torch.equal(
        atlas.features.channels, extract_features(image, modality="ct", spacing=6.0).to_8_bits().channels
    )
    brighter = torch.where((image.image > 0.45) & (image.image < 0.6), image.image + 0.2, image.image)
    assert torch.equal(tissue_class(brighter), tissue_class(image.image))
    assert set(atlas.to_tensors()) == {"features", "labels"}
    assert torch.equal(atlas.labels.long(), labels.long())


def test_name_of_the_case_is_not_stored() -> None:
    assert "case" not in str(built().to_json())


def test_atlas_has_the_spacing_of_the_registration() -> None:
    image, labels = patient(1)
    atlas = build_atlas(image, labels, image.grid, name="case", modality="mri")
    np.testing.assert_allclose(atlas.features.grid.spacing, 4.0)
    small = RegistrationImage(image.image, np.diag([1.0, 1.0, 1.0, 1.0]))
    atlas = build_atlas(small, labels, small.grid, name="case", modality="mri")
    np.testing.assert_allclose(atlas.features.grid.spacing, 4.0 * 48 / 120)


@pytest.mark.parametrize(("largest", "dtype"), [(254, torch.uint8), (255, torch.int16), (32767, torch.int16)])
def test_labels_are_small_integers(largest: int, dtype: torch.dtype) -> None:
    image = patient(1)[0]
    labels = torch.zeros(SHAPE, dtype=torch.int64)
    labels[0, 0, 0] = largest
    atlas = build_atlas(image, labels, image.grid, name="case", modality="ct", settings=COARSE)
    assert atlas.labels.dtype == dtype
    assert torch.equal(atlas.labels.long(), labels)


@pytest.mark.parametrize("wrong", [torch.zeros(3, 4, 5, dtype=torch.int16), torch.zeros(SHAPE), torch.full(SHAPE, -1)])
def test_labels_that_are_no_classes_on_their_grid_are_refused(wrong: torch.Tensor) -> None:
    image = patient(1)[0]
    with pytest.raises(ValueError, match="labels"):
        build_atlas(image, wrong, image.grid, name="case", modality="ct", settings=COARSE)


def test_registration_from_the_atlas_is_that_from_the_scan() -> None:
    (moving, _), (fixed, reference) = patient(1), patient(2)
    found, exact = run_from_atlas(built(), fixed, COARSE), run_from_scan(moving, fixed, COARSE)
    assert not found.failed
    scores = [mean_dice(result, built(), fixed, reference) for result in (found, exact)]
    assert scores[0] == pytest.approx(scores[1], abs=0.02)
    assert scores[0] > 0.55
    points = fixed.grid.positions(torch.device("cpu"))[:, fixed.image > 0.3]
    distance = (found.transform.map_points(points) - exact.transform.map_points(points)).norm(dim=0)
    assert float(distance.median()) < 1.0  # mm, of voxels of 6 mm
    assert found.cost == pytest.approx(exact.cost, abs=0.01)


def read(tensors: dict[str, Any], metadata: dict[str, Any], structures: int = STRUCTURES) -> Atlas:
    return Atlas.from_tensors(tensors, metadata, structures=structures, name="1", source="some/model")


def test_atlas_is_the_same_after_a_round_trip() -> None:
    atlas, again = built(), read(built().to_tensors(), built().to_json())
    assert torch.equal(again.features.channels, atlas.features.channels)
    assert torch.equal(again.labels, atlas.labels)
    assert (again.name, again.modality) == ("1", "ct")
    for grid, other in ((again.features.grid, atlas.features.grid), (again.label_grid, atlas.label_grid)):
        assert grid.shape == other.shape
        np.testing.assert_array_equal(grid.affine, other.affine)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t, m: t.pop("labels"), "labels are missing"),
        (lambda t, m: t.update(features=t["features"].float()), "torch.float32"),
        (lambda t, m: t.update(features=t["features"][:12]), "must be torch.uint8"),
        (lambda t, m: t.update(labels=t["labels"].int()), "torch.int32"),
        (lambda t, m: t.update(labels=t["labels"][1:]), "labels are"),
        (lambda t, m: t.update(labels=t["labels"] + 1), "labels are 1 to 8, must be 0 to 7"),
        (lambda t, m: t.update(labels=t["labels"].short() - 1), "labels are -1 to 6"),
        (lambda t, m: m.update(modality="pet"), "modality is 'pet'"),
        (lambda t, m: m.pop("modality"), "modality is None"),
        (lambda t, m: m.pop("features"), "grid of the features"),
        (lambda t, m: m["features"].pop("affine"), "grid of the features"),
        (lambda t, m: m["features"].update(shape=[1, 2]), "grid of the features"),
        (lambda t, m: m["features"].update(shape=[float("inf"), 1, 1]), "grid of the features"),
        (lambda t, m: m["features"]["shape"].reverse(), "features are"),
        (lambda t, m: m["labels"]["affine"][0].__setitem__(3, float("nan")), "affine map of the labels is not"),
        (lambda t, m: m["labels"]["affine"][0].__setitem__(3, 1e9), "affine map of the labels is not"),
        (lambda t, m: m["labels"]["affine"].__setitem__(3, [0, 0, 1, 1]), "affine map of the labels is not"),
        (lambda t, m: m["labels"]["affine"].pop(), "affine map of the labels is not"),
        (lambda t, m: m["labels"]["affine"][0].__setitem__(0, 0.0), "spacing of the labels"),
        (lambda t, m: m["labels"]["affine"][0].__setitem__(0, 500.0), "spacing of the labels"),
        (lambda t, m: [row.__setitem__(1, row[0]) for row in m["labels"]["affine"][:3]], "cannot be inverted"),
    ],
)
def test_unusable_atlas_is_refused_in_words(change: Any, reason: str) -> None:
    tensors, metadata = built().to_tensors(), copy.deepcopy(built().to_json())
    change(tensors, metadata)
    with pytest.raises(InputError, match=reason) as caught:
        read(tensors, metadata)
    assert caught.value.code == "model_unusable"
    assert "some/model" in caught.value.message
    assert caught.value.advice


@pytest.mark.parametrize("limit", ["MAX_FEATURE_VOXELS", "MAX_LABEL_VOXELS"])
def test_atlas_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(atlas_module, limit, 1000)
    with pytest.raises(InputError, match="must be 1 to 1000"):
        read(built().to_tensors(), built().to_json())


def test_label_map_that_no_model_may_keep_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atlas_module, "MAX_LABEL_VOXELS", 1000)
    image, labels = patient(1)
    with pytest.raises(InputError, match="no-atlas") as caught:
        build_atlas(image, labels, image.grid, name="case", modality="ct", settings=COARSE)
    assert caught.value.code == "atlas_too_large"


def test_limits_are_those_of_model_json() -> None:
    """`models` and `registration` do not import each other."""
    assert atlas_module.MAX_FEATURE_VOXELS == atlas_schema.MAX_FEATURE_VOXELS
    assert atlas_module.MAX_LABEL_VOXELS == atlas_schema.MAX_LABEL_VOXELS


@pytest.mark.skipif("HIENDMAE_DATA" not in os.environ, reason="HIENDMAE_DATA names no real scans")
def test_real_scan_is_reached_from_the_atlas_as_from_the_scan() -> None:
    from HiEndMAECore.io.readers import read_label_map, read_volume
    from HiEndMAECore.preprocessing.intensity import IntensityNormalization
    from HiEndMAECore.preprocessing.pipeline import PreprocessingPlan, preprocess

    dataset = Path(os.environ["HIENDMAE_DATA"]) / "Dataset101_OpenKBP"
    settings = RegistrationSettings(spacing=6.0, steps=10)
    loaded = {}
    for case in ("OKBP_004", "OKBP_222"):
        plan = PreprocessingPlan((3.0,) * 3, IntensityNormalization())
        scan = preprocess(read_volume(dataset / "imagesTr" / f"{case}_0000.nii.gz"), plan)
        image = RegistrationImage(torch.from_numpy(scan.array[0]), scan.affine)
        labels = read_label_map(dataset / "labelsTr" / f"{case}.nii.gz")
        grid = Grid(labels.shape, labels.geometry.affine)
        loaded[case] = image, torch.from_numpy(labels.array[0].astype(np.int16)), grid
    (moving, labels, grid), (fixed, reference, target) = loaded.values()
    atlas = build_atlas(moving, labels, grid, name="case", modality="ct", settings=settings)
    scores = []
    for result in (run_from_atlas(atlas, fixed, settings), run_from_scan(moving, fixed, settings)):
        assert not result.failed
        found = result.transform.warp_labels(atlas.labels, grid, target).numpy()
        values = [v for v in np.unique(reference.numpy()) if v]
        scores.append(float(np.mean([dice(found == v, reference.numpy() == v) or 0.0 for v in values])))
    assert scores[0] == pytest.approx(scores[1], abs=0.02)
    assert scores[0] > 0.5


def test_scan_that_does_not_fit_at_the_spacing_of_the_atlas_is_refused() -> None:
    """The atlas of a small region has fine features, and the next scan may show the whole body."""
    image, _ = patient(1)
    atlas = built()
    affine = atlas.features.grid.affine.copy()
    affine[:3, :3] /= 100
    fine = replace(atlas, features=replace(atlas.features, grid=Grid(atlas.features.grid.shape, affine)))
    with pytest.raises(InputError, match="GB of memory") as caught:
        run_from_atlas(fine, image, COARSE)
    assert caught.value.code == "registration_too_large"


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_registration_works_where_the_caller_computes_without_gradients(mode: type) -> None:
    settings = replace(COARSE, spacing=12.0, steps=2, affine_rounds=1)
    scan, labels = patient(1)
    atlas = build_atlas(scan, labels, scan.grid, name="case", modality="ct", settings=settings)
    expected = run_from_atlas(atlas, patient(2)[0], settings)
    with mode():
        other = RegistrationImage(patient(2)[0].image.clone(), patient(2)[0].affine)
        found = run_from_atlas(atlas, other, settings)
    assert torch.equal(found.transform.displacement, expected.transform.displacement)
