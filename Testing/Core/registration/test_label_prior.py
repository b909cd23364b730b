"""The prior from propagated labels: shares against one-hot masks that are warped, and the mean with the network's opinion."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch.nn import functional

from HiEndMAECore.registration import label_prior
from HiEndMAECore.registration.grids import Grid
from HiEndMAECore.registration.label_prior import LabelPrior, PropagatedLabels
from HiEndMAECore.registration.transform import Transform

CPU = torch.device("cpu")
SHAPE = (11, 12, 13)
WHOLE = tuple(slice(0, size) for size in (9, 10, 8))
CLASSES = 5


def oblique_grid(shape: tuple[int, int, int]) -> Grid:
    """Return a grid of anisotropic voxels that is turned by 10 degrees around S."""
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.17), -np.sin(0.17)], [np.sin(0.17), np.cos(0.17)]]
    affine[:3, 3] = [3.0, -2.0, 5.0]
    return Grid(shape, turn @ affine)


@functools.cache
def propagated(seed: int = 0, *, shift: float = 0.0) -> PropagatedLabels:
    """Return labels drawn by chance in every voxel, and a smooth transform with a rotation that ends beyond their edge."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, SHAPE, generator=generator).to(torch.uint8)
    affine = np.eye(4)
    affine[:3, :3] = [[1.05, 0.1, 0.0], [-0.1, 0.95, 0.0], [0.0, 0.05, 1.1]]
    affine[0, 3] = shift
    displacement = 2 * torch.randn((3, 4, 4, 4), generator=generator)
    transform = Transform(affine, displacement, Grid((4, 4, 4), np.diag([8.0, 10.0, 12.0, 1.0])))
    return PropagatedLabels(labels, Grid(SHAPE, np.diag([2.0, 2.5, 3.0, 1.0])), transform)


def brute_force(labels: PropagatedLabels, grid: Grid, classes: int = CLASSES) -> torch.Tensor:
    """Return the shares (classes, ...) from the mask of each class, warped as an image; 0 where the atlas does not reach."""
    masks = functional.one_hot(labels.labels.long(), classes).movedim(-1, 0).float()
    return labels.transform.warp_image(masks, labels.grid, grid)


def prior_of(*labels: PropagatedLabels, weight: float = 0.6) -> LabelPrior:
    return LabelPrior(labels, oblique_grid((9, 10, 8)), weight)


def test_shares_are_those_of_warped_masks() -> None:
    prior = prior_of(propagated())
    expected = brute_force(propagated(), prior.grid)
    assert (expected[1:] > 0).any(
        dim=0
    ).float().mean() > 0.4  # the atlas reaches a large part of the scan, not all of it
    assert (expected.sum(0) == 0).any()
    torch.testing.assert_close(prior.shares(CLASSES, WHOLE), expected, atol=2e-6, rtol=0)


def test_shares_of_a_region_are_a_part_of_those_of_the_scan() -> None:
    prior, region = prior_of(propagated()), (slice(2, 7), slice(3, 10), slice(1, 5))
    expected = prior.shares(CLASSES, WHOLE)[(slice(None), *region)]
    torch.testing.assert_close(prior.shares(CLASSES, region), expected, atol=1e-5, rtol=0)


def test_shares_of_a_voxel_sum_to_the_share_of_atlases_that_reach_it() -> None:
    shares = prior_of(propagated(0), propagated(1, shift=9.0)).shares(CLASSES, WHOLE)
    sums = (shares.sum(0) * 2).round() / 2
    torch.testing.assert_close(shares.sum(0), sums, atol=1e-5, rtol=0)
    assert set(sums.unique().tolist()) == {0.0, 0.5, 1.0}
    assert shares.min() >= 0


def test_network_decides_alone_where_the_atlas_does_not_reach() -> None:
    """The labelled scan may end in a structure that goes on in the other scan."""
    prior = prior_of(propagated(0, shift=500.0))
    logits = torch.randn((CLASSES, 9, 10, 8), generator=torch.Generator().manual_seed(6))
    assert (prior.shares(CLASSES, WHOLE) == 0).all()
    torch.testing.assert_close(prior.combine(logits, WHOLE).exp(), logits.softmax(0), atol=2e-6, rtol=0)
    (_, alone), *_ = prior.blocks(CLASSES)
    assert (alone.argmax(0) == 0).all()


def test_shares_of_two_atlases_are_averaged_also_where_only_one_reaches() -> None:
    first, second = propagated(0), propagated(1, shift=9.0)
    prior = prior_of(first, second)
    expected = (brute_force(first, prior.grid) + brute_force(second, prior.grid)) / 2
    sums = expected.sum(0)
    assert ((sums > 0.4) & (sums < 0.6)).any()
    torch.testing.assert_close(prior.shares(CLASSES, WHOLE), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
def test_structure_at_the_edge_of_the_atlas_has_its_full_share_up_to_the_edge(dtype: torch.dtype) -> None:
    """The outer half of a voxel at the edge belongs to it; half a voxel further there is nothing."""
    labels = torch.full((4, 4, 4), 2, dtype=dtype)
    identity = Transform.of_affine(np.eye(4), Grid((2, 2, 2), np.diag([4.0, 4.0, 4.0, 1.0])), CPU)
    atlas = PropagatedLabels(labels, Grid((4, 4, 4), np.eye(4)), identity)
    affine = np.diag([0.25, 1.0, 1.0, 1.0])
    affine[0, 3] = -1.0
    shares = LabelPrior((atlas,), Grid((24, 4, 4), affine), 0.6).shares(3, (slice(0, 24), slice(0, 4), slice(0, 4)))
    positions = np.arange(24) * 0.25 - 1
    inside = (positions >= -0.5) & (positions <= 3.5)
    for voxel, is_inside in enumerate(inside):
        assert (shares[2, voxel] == float(is_inside)).all()
        assert (shares[0, voxel] == 0).all()


def test_structure_that_the_atlas_lacks_has_no_share() -> None:
    assert (prior_of(propagated()).shares(CLASSES + 3, WHOLE)[CLASSES:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_combined_softmax_is_the_weighted_mean_of_probabilities_and_shares(dtype: torch.dtype) -> None:
    prior = prior_of(propagated(), weight=0.3)
    logits = (3 * torch.randn((CLASSES, 9, 10, 8), generator=torch.Generator().manual_seed(3))).to(dtype)
    shares = brute_force(propagated(), prior.grid).double()
    expected = (1 - 0.3 * shares.sum(0)) * logits.double().softmax(0) + 0.3 * shares
    found = prior.combine(logits, WHOLE)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double().softmax(0), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.double().exp(), expected, atol=1e-5, rtol=0)


def test_network_that_is_certain_of_background_does_not_erase_a_certain_prior() -> None:
    prior = prior_of(propagated())
    logits = torch.full((CLASSES, 9, 10, 8), -50.0)
    logits[0] = 50.0
    shares = prior.shares(CLASSES, WHOLE)
    certain = shares[1:].amax(0) > 0.9
    assert certain.any()
    assert (prior.combine(logits, WHOLE).argmax(0)[certain] == shares.argmax(0)[certain]).all()
    doubtful = (shares[1:].amax(0) < 0.5) & (shares[0] > 0.2)
    assert (prior.combine(logits, WHOLE).argmax(0)[doubtful] == 0).all()


def test_network_that_is_certain_of_a_structure_decides() -> None:
    labels = propagated()
    prior = LabelPrior((labels,), oblique_grid((9, 10, 8)), 0.6, 0.45)
    logits = torch.zeros((CLASSES, 9, 10, 8))
    logits[2] = 20.0
    assert (prior.combine(logits, WHOLE).argmax(0) == 2).all()
    logits[2], logits[0] = 0.0, 20.0  # of the background it does not
    shares = prior.shares(CLASSES, WHOLE)
    certain = shares[1:].amax(0) > 0.9
    assert certain.any()
    assert (prior.combine(logits, WHOLE).argmax(0)[certain] == shares.argmax(0)[certain]).all()
    unsure = torch.zeros_like(logits)
    expected = prior_of(labels).combine(unsure, WHOLE)
    torch.testing.assert_close(prior.combine(unsure, WHOLE), expected)


def test_weight_of_zero_is_the_network_alone_and_of_one_the_prior() -> None:
    logits = torch.randn((CLASSES, 9, 10, 8), generator=torch.Generator().manual_seed(4))
    alone = prior_of(propagated(), weight=0.0).combine(logits, WHOLE)
    torch.testing.assert_close(alone.exp(), logits.softmax(0), atol=2e-6, rtol=0)
    prior = prior_of(propagated(), weight=1.0)
    shares = prior.shares(CLASSES, WHOLE)
    reached = shares.sum(0) > 0.999
    found = prior.combine(logits, WHOLE).exp()
    torch.testing.assert_close(found[:, reached], shares[:, reached], atol=2e-6, rtol=0)


def test_blocks_are_the_whole_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of the inference mode as well, as a command runs them."""
    prior = prior_of(propagated())
    logits = torch.randn((CLASSES, 9, 10, 8), generator=torch.Generator().manual_seed(5))
    combined, shares = prior.combine(logits, WHOLE), prior.shares(CLASSES, WHOLE).clone()
    shares[0] += 1 - shares.sum(0)  # without a network the rest is background
    monkeypatch.setattr(label_prior, "_BLOCK_VOXELS", 170)  # two planes
    halves = [(slice(0, 9), slice(0, 10), slice(0, 3)), (slice(0, 9), slice(0, 10), slice(3, 8))]
    parts = list(prior.combine_blocks((half, logits[(slice(None), *half)]) for half in halves))
    assert max(part.shape[1] for _, part in parts) < 9
    for expected, blocks in ((combined, parts), (shares.clamp(min=1e-6).log(), list(prior.blocks(CLASSES)))):
        count = torch.zeros(expected.shape[1:], dtype=torch.int)
        for region, part in blocks:
            count[region] += 1
            torch.testing.assert_close(part.exp(), expected[(slice(None), *region)].exp(), atol=1e-5, rtol=0)
        assert (count == 1).all()
