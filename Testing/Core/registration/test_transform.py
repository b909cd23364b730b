"""The transform: warping, composition, inversion, folds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from HiEndMAECore.registration.grids import Grid
from HiEndMAECore.registration.transform import Transform

GRID = Grid((20, 24, 28), np.diag([2.0, 2.0, 2.0, 1.0]))


def wave(amplitude: float = 3.0, affine: np.ndarray | None = None) -> Transform:
    """Return a smooth transform; `amplitude` in mm."""
    points = GRID.positions(torch.device("cpu"))
    displacement = amplitude * torch.sin(points.flip(0) / 12)
    return Transform(np.eye(4) if affine is None else affine, displacement, GRID)


def affine_map() -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = [[1.1, 0.05, 0.0], [-0.05, 0.9, 0.02], [0.0, 0.0, 1.2]]
    affine[:3, 3] = [3.0, -2.0, 5.0]
    return affine


def test_label_map_is_unchanged_by_the_identity() -> None:
    labels = torch.randint(0, 5, GRID.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    identity = Transform.of_affine(np.eye(4), GRID, labels.device)
    assert torch.equal(identity.warp_labels(labels, GRID, GRID), labels)


def test_labels_are_the_largest_share_of_linear_interpolation() -> None:
    labels = torch.randint(0, 4, GRID.shape, generator=torch.Generator().manual_seed(1), dtype=torch.int16)
    labels = labels.repeat_interleave(2, 0)[:20].repeat_interleave(2, 1)[:, :24]
    transform = wave(affine=affine_map())
    shares = transform.warp_image(torch.stack([labels == value for value in range(4)]), GRID, GRID)
    largest = shares.max(0)
    clear = (shares.topk(2, dim=0).values.diff(dim=0)[0].abs() > 1e-4) & (largest.values > 0)
    warped = transform.warp_labels(labels, GRID, GRID)
    assert torch.equal(warped[clear].long(), largest.indices[clear])
    assert (warped[largest.values == 0] == 0).all()
    assert warped.dtype == labels.dtype


def test_grid_of_the_result_may_differ() -> None:
    fine = Grid((40, 48, 56), np.diag([1.0, 1.0, 1.0, 1.0]))
    labels = torch.zeros(GRID.shape, dtype=torch.uint8)
    labels[5:15, 6:18, 7:21] = 200
    warped = Transform.of_affine(np.eye(4), GRID, labels.device).warp_labels(labels, GRID, fine)
    assert warped.shape == fine.shape
    assert float((warped == 200).sum()) == pytest.approx(8 * float((labels == 200).sum()), rel=0.1)


def test_memory_does_not_grow_with_the_number_of_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """No array is larger than the label map in 32 bits with three coordinates, whatever the number of labels."""
    largest = []
    original = torch.nn.functional.grid_sample

    def spy(volume: torch.Tensor, positions: torch.Tensor, **options: object) -> torch.Tensor:
        largest.append(volume.numel())
        return original(volume, positions, **options)

    monkeypatch.setattr("HiEndMAECore.registration.grids.functional.grid_sample", spy)
    labels = torch.arange(20 * 24 * 28, dtype=torch.int32).reshape(GRID.shape) // 200
    wave().warp_labels(labels, GRID, GRID)
    assert len(largest) > 60
    assert max(largest) <= 3 * labels.numel()


def test_inverse_undoes_the_transform() -> None:
    transform = wave(affine=affine_map())
    moving = Grid((40, 40, 44), np.array([[1.5, 0, 0, -4], [0, 1.5, 0, -8], [0, 0, 1.5, 0], [0, 0, 0, 1.0]]))
    inverse = transform.inverse(moving)
    points = GRID.positions(torch.device("cpu"))[:, 4:-4, 4:-4, 4:-4]
    error = (inverse.map_points(transform.map_points(points)) - points).norm(dim=0)
    assert float(error.max()) < 0.3
    assert float(error.mean()) < 0.05


def test_composition_applies_one_after_the_other() -> None:
    first, second = wave(2.0, affine_map()), wave(1.0)
    points = GRID.positions(torch.device("cpu"))
    expected = second.map_points(first.map_points(points))
    assert torch.allclose(first.compose(second).map_points(points), expected, atol=1e-3)


def test_folds_are_counted() -> None:
    assert wave(3.0).folded_share() == 0.0
    assert wave(3.0, np.diag([-1.0, 1.0, 1.0, 1.0])).folded_share() == 1.0
    assert 0.2 < wave(40.0).folded_share() < 0.8
