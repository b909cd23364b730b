"""Registration of a model's atlases to a scan: the scan at the labelled patient's size, the prior, and what fails."""

from __future__ import annotations

from collections.abc import Sequence

import nibabel as nib
import numpy as np
import pytest
import torch
from inference_helpers import CPU, make_noise_volume, make_predictor
from small_patients import PLAN, atlas_of, prepared, small_head, small_patient, with_affine

from HiEndMAECore.data.phantom import LIVER
from HiEndMAECore.errors import Cancelled
from HiEndMAECore.evaluation.metrics import dice
from HiEndMAECore.inference import atlas_matching
from HiEndMAECore.inference.atlas_matching import PRIOR_WEIGHT, AtlasMatch, match_atlases, rescale_scan
from HiEndMAECore.io.volume import Geometry, Volume
from HiEndMAECore.preprocessing.pipeline import PreprocessedScan, preprocess_labels
from HiEndMAECore.registration.atlas import Atlas
from HiEndMAECore.registration.grids import Grid
from HiEndMAECore.registration.label_prior import LabelPrior, PropagatedLabels
from HiEndMAECore.registration.registration import Registration
from HiEndMAECore.registration.transform import Transform
from HiEndMAECore.reporting.reporter import Reporter

OBLIQUE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.3, -0.2, 0.25) @ np.diag([2.0, 3.0, 4.0]), [5, -70, 900])


def match(atlases: Sequence[Atlas], scan: PreprocessedScan) -> AtlasMatch:
    return match_atlases(atlases, scan, device=CPU, report=Reporter(quiet=True))


def scan_with_landmark(affine: np.ndarray, voxel: Sequence[float]) -> PreprocessedScan:
    """Return a scan with a Gaussian landmark around a voxel."""
    shape = (24, 20, 18)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    array = np.exp(-np.square(index - np.asarray(voxel)).sum(-1) / 8).astype(np.float32)
    return PreprocessedScan(affine, Geometry(shape, affine), array[None])


def center_of_mass(scan: PreprocessedScan) -> np.ndarray:
    """Return the position of the landmark in RAS mm."""
    index = np.stack(np.meshgrid(*map(np.arange, scan.shape), indexing="ij"), axis=-1)
    voxel = (index * scan.array[0][..., None]).sum((0, 1, 2)) / scan.array[0].sum()
    return np.asarray(scan.affine[:3, :3] @ voxel + scan.affine[:3, 3])


@pytest.mark.parametrize("affine", [np.diag([3.0, 3.0, 3.0, 1.0]), OBLIQUE])
@pytest.mark.parametrize("factors", [(1.3, 1.0, 0.8), (0.7, 0.7, 0.7), (1.9, 1.1, 1.5)])
def test_rescaled_scan_keeps_a_landmark_at_its_position(affine: np.ndarray, factors: tuple[float, ...]) -> None:
    scan = scan_with_landmark(affine, (9.0, 11.5, 7.3))
    rescaled = rescale_scan(scan, factors)
    assert rescaled.shape == tuple(np.ceil(np.array(scan.shape) * factors - 1e-6))
    spacing, before = (np.linalg.norm(grid.affine[:3, :3], axis=0) for grid in (rescaled, scan))
    np.testing.assert_allclose(spacing, before / factors)
    np.testing.assert_allclose(center_of_mass(rescaled), center_of_mass(scan), atol=0.1 * before.min())
    np.testing.assert_allclose(rescaled.affine[:3, :3] / spacing, scan.affine[:3, :3] / before, atol=1e-12)
    assert rescaled.original is scan.original
    assert (rescaled.array >= 0).all()
    assert (rescaled.array <= 1).all()


def test_rescaled_scan_covers_the_scan_around_the_same_middle() -> None:
    scan = scan_with_landmark(OBLIQUE, (9, 9, 9))
    rescaled = rescale_scan(scan, (1.23, 0.77, 1.01))
    before, after = Grid(scan.shape, scan.affine), Grid(rescaled.shape, rescaled.affine)
    np.testing.assert_allclose(after.center, before.center, atol=1e-9)
    assert (after.extent >= before.extent - 1e-6).all()
    assert (after.extent <= before.extent + after.spacing).all()


@pytest.mark.parametrize("factors", [(1.0, 1.0, 1.0), (1.01, 0.99, 1.0)])
def test_scan_of_the_labelled_patients_size_is_not_resampled(factors: tuple[float, ...]) -> None:
    scan = scan_with_landmark(OBLIQUE, (9, 9, 9))
    assert rescale_scan(scan, factors) is scan


def test_every_channel_of_a_scan_is_rescaled() -> None:
    scan = scan_with_landmark(np.eye(4), (9, 9, 9))
    two = PreprocessedScan(scan.affine, scan.original, np.concatenate([scan.array, 1 - scan.array]))
    rescaled = rescale_scan(two, (1.5, 1.5, 1.5))
    assert rescaled.array.dtype == np.float32
    np.testing.assert_allclose(rescaled.array[0], 1 - rescaled.array[1], atol=1e-6)


def test_match_of_a_smaller_patient_gives_labels_at_the_labelled_patients_size() -> None:
    scan, labels = small_patient(1)
    smaller = np.diag([0.85, 0.85, 0.85, 1.0]) @ scan.affine
    target = prepared(with_affine(scan, smaller))
    result = match([atlas_of(scan, labels)], target)
    assert result.reasons == ()
    assert result.prior is not None
    assert result.prior.weight == PRIOR_WEIGHT
    spacing = np.linalg.norm(result.scan.affine[:3, :3], axis=0)
    np.testing.assert_allclose(spacing, np.array(PLAN.spacing) * 0.85, rtol=0.1)
    assert result.prior.grid.shape == result.scan.shape
    np.testing.assert_array_equal(result.prior.grid.affine, result.scan.affine)
    found = np.concatenate([block.argmax(0).numpy() for _, block in result.prior.blocks(8)])
    reference = preprocess_labels(with_affine(labels, smaller), result.scan)
    assert (dice(found == LIVER, reference == LIVER) or 0) > 0.8
    entry = result.to_json()[0]
    assert sorted(entry) == ["body_overlap", "cost", "reasons"]
    assert entry["reasons"] == []
    assert 0 < entry["cost"] < 0.8


def test_sizes_are_measured_along_the_axes_of_an_oblique_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """The patient is longer along S alone; on a grid turned by 90 degrees around R that is the grid's second axis."""
    stub_registrations(monkeypatch, [registration_of((1.0, 1.0, 1.5), cost=0.3)])
    turned = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    scan = scan_with_landmark(turned, (9, 9, 9))
    result = match([atlas_of(*small_patient(1))], scan)
    assert result.scan.shape == (24, 30, 18)


@pytest.mark.parametrize("kind", ["another region", "single slice"])
def test_scan_that_cannot_be_registered_is_unchanged_and_has_no_prior(kind: str) -> None:
    head = small_head()
    slab = Volume(head.array[..., 18:19], Geometry((42, 36, 1), head.affine), name="slice")
    scan = prepared(head if kind == "another region" else slab)
    result = match([atlas_of(*small_patient(1))], scan)
    assert result.prior is None
    assert result.scan is scan
    assert result.reasons
    assert all(reason.endswith(".") for reason in result.reasons)
    assert len(result.registrations) == len(result.to_json()) == 1
    if kind == "single slice":
        assert result.registrations == (None,)
        assert result.to_json() == [{}]
    else:
        assert result.to_json()[0]["reasons"] == list(result.reasons)
    warning = atlas_matching.registration_warning(result)
    assert warning["code"] == "registration_failed"
    assert result.reasons[0] in warning["message"]
    assert warning["advice"]


def test_model_without_an_atlas_leaves_the_scan_as_it_is() -> None:
    scan = prepared(small_patient(2)[0])
    result = match([], scan)
    assert result.scan is scan
    assert (result.prior, result.registrations, result.reasons) == (None, (), ())


def test_atlas_that_fails_is_left_out_of_the_prior() -> None:
    good, other = atlas_of(*small_patient(1)), atlas_of(small_head())
    scan = prepared(small_patient(2)[0])
    result = match([other, good], scan)
    assert [registration.failed for registration in result.registrations if registration] == [True, False]
    assert result.reasons == ()
    assert result.prior is not None
    assert [item.labels.data_ptr() for item in result.prior.propagated] == [good.labels.data_ptr()]
    assert [bool(entry["reasons"]) for entry in result.to_json()] == [True, False]


def registration_of(scales: tuple[float, ...], *, cost: float, reasons: tuple[str, ...] = ()) -> Registration:
    """Return a registration that scales the scan, with this cost."""
    transform = Transform.of_affine(np.diag([*scales, 1.0]), Grid((2, 2, 2), np.eye(4)), CPU)
    return Registration(transform, transform, cost, (cost,), 0.9, 0.0, reasons)


def stub_registrations(monkeypatch: pytest.MonkeyPatch, registrations: list[Registration]) -> None:
    """Let the atlases have these registrations, in their order."""
    results = iter(registrations)
    monkeypatch.setattr(atlas_matching, "register_atlas", lambda *_, **__: next(results))


def test_size_is_that_of_the_atlas_with_the_lowest_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among those that can be used; all of these have the same part in the prior."""
    failed = registration_of((0.5, 0.5, 0.5), cost=0.1, reasons=("It folds.",))
    usable = [registration_of((1.2, 1.2, 1.2), cost=0.5), registration_of((1.5, 1.0, 1.0), cost=0.4)]
    stub_registrations(monkeypatch, [usable[0], failed, usable[1]])
    scan = scan_with_landmark(np.eye(4), (9, 9, 9))
    result = match([atlas_of(*small_patient(1))] * 3, scan)
    assert result.scan.shape == (36, 20, 18)
    assert result.prior is not None
    assert [item.transform for item in result.prior.propagated] == [item.transform for item in usable]
    assert result.reasons == ()


def test_equal_reasons_of_several_atlases_are_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = [registration_of((1, 1, 1), cost=0.9, reasons=("No match.", f"Reason {n}.")) for n in range(2)]
    stub_registrations(monkeypatch, failed)
    result = match([atlas_of(*small_patient(1))] * 2, scan_with_landmark(np.eye(4), (9, 9, 9)))
    assert result.reasons == ("No match.", "Reason 0.", "Reason 1.")


def test_at_most_three_atlases_are_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_registrations(monkeypatch, [registration_of((1, 1, 1), cost=0.3)] * 3)
    result = match([atlas_of(*small_patient(1))] * 5, scan_with_landmark(np.eye(4), (9, 9, 9)))
    assert len(result.registrations) == 3


def test_match_can_be_cancelled() -> None:
    report = Reporter(quiet=True)
    report.cancel()
    with pytest.raises(Cancelled):
        match_atlases([atlas_of(*small_patient(1))], prepared(small_patient(2)[0]), device=CPU, report=report)


def test_result_with_a_prior_is_the_most_probable_class_of_the_mean() -> None:
    """Also where the scan is padded to the network's tile, and cut into blocks of tiles."""
    predictor = make_predictor()
    scan = predictor.preprocess(make_noise_volume((40, 14, 19)))
    labels = torch.from_numpy(np.random.default_rng(1).integers(0, 3, scan.shape).astype(np.uint8))
    grid = Grid(scan.shape, scan.affine)
    affine = np.eye(4)
    affine[:3, 3] = [0.7, -1.1, 0.4]
    atlas = PropagatedLabels(labels, grid, Transform.of_affine(affine, Grid((2, 2, 2), grid.affine), CPU))
    prior = LabelPrior((atlas,), grid, 0.6)
    whole = tuple(slice(0, size) for size in scan.shape)
    shares = prior.shares(3, whole)
    reached = shares.sum(0)
    assert 0.5 < float((reached > 0.99).float().mean()) < 1  # elsewhere the network decides alone
    mean = (1 - 0.6 * reached) * predictor.logits(scan.array).softmax(0) + 0.6 * shares
    result = predictor.infer(scan, prior=prior)
    second, first = mean.sort(0).values[-2:]
    clear = (first - second > 1e-4).numpy()
    assert clear.mean() > 0.99
    expected = np.array([0, 3, 300])[mean.argmax(0).numpy()]
    assert (result.labels == expected)[clear].all()
    assert result.engine == "torch"
    entropy = -(mean * mean.log()).nansum(0) / np.log(3)
    np.testing.assert_allclose(result.entropy.astype(np.float32), entropy.numpy(), atol=2e-3)
    alone = predictor.infer_from_prior(prior)
    assert alone.engine == "registration"
    shares = torch.cat([shares[:1] + 1 - reached, shares[1:]])
    second, first = shares.sort(0).values[-2:]
    clear = (first - second > 1e-4).numpy()
    assert (alone.labels == np.array([0, 3, 300])[shares.argmax(0).numpy()])[clear].all()
