"""Registration of digital patients and of synthetic scans."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch

from HiEndMAECore.data.phantom import LIVER, make_patient
from HiEndMAECore.errors import Cancelled
from HiEndMAECore.evaluation.metrics import dice
from HiEndMAECore.registration.features import Features, Modality, RegistrationImage, extract_features
from HiEndMAECore.registration.grids import Grid
from HiEndMAECore.registration.registration import Registration, RegistrationSettings, register, working_spacing
from HiEndMAECore.registration.transform import Transform
from HiEndMAECore.reporting.reporter import Reporter

SHAPE, SPACING = (56, 48, 48), (6.0, 6.0, 6.0)
COARSE = RegistrationSettings(spacing=6.0, steps=10)


@functools.cache
def patient(seed: int) -> tuple[RegistrationImage, torch.Tensor]:
    """Return the CT of a digital patient in [0, 1], and its label map."""
    scan, labels = make_patient(seed, shape=SHAPE, spacing=SPACING)
    image = np.clip((scan.array[0] + 175) / 425, 0, 1).astype(np.float32)
    return RegistrationImage(torch.from_numpy(image), scan.geometry.affine), torch.from_numpy(labels.array[0])


def warped(scan: RegistrationImage, transform: Transform) -> RegistrationImage:
    """Return a scan seen through a transform, on its own grid."""
    return RegistrationImage(transform.warp_image(scan.image[None], scan.grid, scan.grid)[0], scan.affine)


def run(moving: RegistrationImage | Features, fixed: RegistrationImage, *, modality: Modality = "ct") -> Registration:
    with Reporter(quiet=True) as report:
        return register(moving, fixed, modality=modality, report=report, settings=COARSE)


def error_in_body(result: Registration, truth: Transform, fixed: RegistrationImage) -> float:
    """Return the median distance in mm between the found and the true transform over the fixed body."""
    points = fixed.grid.positions(torch.device("cpu"))[:, fixed.image > 0.3]
    return float((result.transform.map_points(points) - truth.map_points(points)).norm(dim=0).median())


def mean_dice(result: Registration, moving: int, fixed: int) -> float:
    (source, labels), (target, reference) = patient(moving), patient(fixed)
    found = result.transform.warp_labels(labels, source.grid, target.grid).numpy()
    values = [v for v in np.unique(reference.numpy()) if v]
    return float(np.mean([dice(found == v, reference.numpy() == v) for v in values]))


def test_scan_is_registered_to_itself() -> None:
    scan, labels = patient(1)
    result = run(scan, scan)
    identity = Transform.of_affine(np.eye(4), scan.grid, labels.device)
    assert error_in_body(result, identity, scan) < 1.5  # a quarter of a voxel
    assert not result.failed
    assert result.cost < 0.1
    assert result.body_overlap > 0.97
    assert mean_dice(result, 1, 1) > 0.95


@pytest.mark.parametrize("modality", ["ct", "mri"])
def test_known_affine_map_is_found(modality: Modality) -> None:
    scan, _ = patient(1)
    affine = np.eye(4)
    affine[:3, :3] = [[1.05, 0.04, 0.0], [-0.04, 0.95, 0.0], [0.0, 0.0, 1.05]]
    affine[:3, 3] = [6.0, -9.0, 20.0]
    truth = Transform.of_affine(affine, scan.grid, scan.image.device)
    fixed = warped(scan, truth)
    assert error_in_body(run(scan, fixed, modality=modality), truth, fixed) < 2.5


def test_known_displacement_is_found() -> None:
    scan, _ = patient(1)
    points = scan.grid.positions(torch.device("cpu"))
    truth = Transform(np.eye(4), 8 * torch.sin(points.flip(0) / 50), scan.grid)
    fixed = warped(scan, truth)
    result = run(scan, fixed)
    before = Transform.of_affine(np.eye(4), scan.grid, scan.image.device)
    assert error_in_body(result, truth, fixed) < 2.5
    assert error_in_body(dataclasses.replace(result, transform=before), truth, fixed) > 6
    assert result.folded_share < 0.01


def test_labels_reach_another_patient() -> None:
    (moving, labels), (fixed, reference) = patient(1), patient(2)
    result = run(moving, fixed)
    assert not result.failed
    assert result.folded_share < 0.02
    unmoved = float(np.mean([dice(labels.numpy() == v, reference.numpy() == v) for v in range(1, 8)]))
    assert mean_dice(result, 1, 2) > max(0.6, unmoved + 0.1)


def test_slab_is_found_in_a_whole_scan() -> None:
    moving, labels = patient(1)
    fixed, reference = patient(2)
    planes = slice(22, 29)
    corner = fixed.affine.copy()
    corner[:3, 3] += corner[:3, 2] * planes.start
    slab = RegistrationImage(fixed.image[:, :, planes].contiguous(), corner)
    result = run(moving, slab)
    assert not result.failed
    found = result.transform.warp_labels(labels, moving.grid, slab.grid).numpy()
    assert dice(found == LIVER, reference[:, :, planes].numpy() == LIVER) > 0.6


def test_same_inputs_give_the_same_result() -> None:
    first, second = (run(patient(1)[0], patient(2)[0]) for _ in range(2))
    assert torch.equal(first.transform.displacement, second.transform.displacement)
    assert np.array_equal(first.transform.affine, second.transform.affine)
    assert first.start_costs == second.start_costs


def test_features_in_8_bits_give_nearly_the_same_result() -> None:
    moving, fixed = patient(1)[0], patient(2)[0]
    features = extract_features(moving, modality="ct", spacing=working_spacing(moving.grid, fixed.grid, COARSE))
    exact, rounded = run(moving, fixed), run(features.to_8_bits(), fixed)
    assert mean_dice(rounded, 1, 2) == pytest.approx(mean_dice(exact, 1, 2), abs=0.02)


@pytest.mark.parametrize("other", ["noise", "head"])
def test_other_region_is_flagged(other: str) -> None:
    moving = patient(1)[0]
    if other == "noise":
        image = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
    else:
        x, y, z = Grid(SHAPE, moving.affine).positions(torch.device("cpu"))
        radius = ((x / 75) ** 2 + (y / 95) ** 2 + (z / 90) ** 2).sqrt()
        image = torch.where(radius < 1, 0.5, 0.0)
        image[(radius < 1) & (radius > 0.93)] = 1.0
        image[radius < 0.2] = 0.4
    result = run(moving, RegistrationImage(image, moving.affine))
    assert result.failed
    assert all(reason.endswith(".") for reason in result.reasons)


def test_small_crop_gets_a_finer_grid() -> None:
    crop, abdomen = Grid((35, 51, 35), np.eye(4)), Grid((100, 100, 100), np.diag([3.0, 3.0, 3.0, 1.0]))
    assert working_spacing(crop, crop) == pytest.approx(4 * 35 / 120)
    assert working_spacing(abdomen, abdomen) == 4.0
    assert working_spacing(abdomen, Grid((1000, 1000, 1000), np.eye(4))) > 8.0


def test_registration_can_be_cancelled() -> None:
    with Reporter(quiet=True) as report:
        report.cancel()
        with pytest.raises(Cancelled):
            register(patient(1)[0], patient(2)[0], modality="ct", report=report, settings=COARSE)
