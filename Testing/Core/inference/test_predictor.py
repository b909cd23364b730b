"""Predictor: results on the original grid, in the model's values, whatever the stored orientation; wrong channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from inference_helpers import CPU, make_noise_volume, make_predictor, write_untrained_model

from HiEndMAECore.errors import InputError
from HiEndMAECore.inference.predictor import Predictor
from HiEndMAECore.io.readers import read_volume
from HiEndMAECore.io.volume import Geometry, Volume
from HiEndMAECore.preprocessing.pipeline import PreprocessingPlan

PERMUTATIONS = [(0, 1, 2), (0, 2, 1), (2, 1, 0), (1, 2, 0)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_untrained_model(tmp_path_factory.mktemp("models") / "model")


@pytest.mark.parametrize("shape", [(20, 30, 17), (40, 12, 1), (3, 3, 3)])
def test_predictor_result_has_the_scans_grid_and_the_models_values(shape: tuple[int, int, int]) -> None:
    result = make_predictor().segment(make_noise_volume(shape, spacing=1.7), uncertainty=True)
    assert result.labels.shape == shape
    assert result.labels.dtype == np.uint16
    assert set(np.unique(result.labels)) <= {0, 3, 300}
    assert result.entropy is not None
    assert result.entropy.shape == shape
    assert 0 <= result.entropy.min() <= result.entropy.max() <= 1.0001


def test_predictor_with_wrong_channels_names_them() -> None:
    with pytest.raises(InputError, match=r"noise has 2 channel\(s\), the model needs 1"):
        make_predictor().segment(make_noise_volume((8, 8, 8), channels=2))


def stored_differently(volume: Volume, permutation: tuple[int, int, int]) -> Volume:
    """Return the scan with permuted axes, the first one flipped, and the same positions in the patient."""
    array = np.ascontiguousarray(volume.array.transpose(0, *[axis + 1 for axis in permutation])[:, ::-1])
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for stored, axis in enumerate(permutation):
        matrix[axis, stored] = 1
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    flip[0, 3] = array.shape[1] - 1
    return Volume(array, Geometry(array.shape[1:], volume.affine @ matrix @ flip))


def assert_same_in_space(predictor: Predictor, volume: Volume, permutation: tuple[int, int, int]) -> None:
    reference = predictor.segment(volume).labels
    labels = predictor.segment(stored_differently(volume, permutation)).labels[::-1]
    labels = labels.transpose(np.argsort(permutation))
    for value in (3, 9):
        first, second = reference == value, labels == value
        assert first.any()
        assert 2 * int((first & second).sum()) >= 0.99 * (int(first.sum()) + int(second.sum()))


@pytest.mark.parametrize("permutation", PERMUTATIONS)
def test_predictor_result_is_independent_of_the_stored_axes(model: Path, permutation: tuple[int, int, int]) -> None:
    array = np.random.default_rng(0).normal(40, 60, (1, 30, 26, 22)).astype(np.float32)
    noise = Volume(array, Geometry((30, 26, 22), np.diag([3.0, 4.0, 5.0, 1.0])))
    assert_same_in_space(Predictor.load(model, device=CPU), noise, permutation)


@pytest.fixture(scope="module")
def trained(model: Path, real_data: Path) -> tuple[Predictor, Volume]:
    """A network trained for seconds to separate soft tissue (3) from brighter voxels (9), and the real scan it knows."""
    volume = read_volume(real_data / "abdomen/ct_abdomen_A/ct.nii.gz")
    predictor = Predictor.load(model, device=CPU, exact=True)
    predictor.plan = PreprocessingPlan((9.0, 9.0, 9.0), predictor.plan.normalization)
    array = predictor.preprocess(volume).array
    scan, reference = torch.from_numpy(array), torch.from_numpy(np.digitize(array[0], [0.3, 0.65]))
    rng, optimizer = np.random.default_rng(0), torch.optim.AdamW(predictor.network.parameters(), 2e-3)
    for _ in range(60):
        starts = [rng.integers(0, np.array(reference.shape) - 15) for _ in range(4)]
        crops = [tuple(slice(first, first + 16) for first in start) for start in starts]
        logits = predictor.network(torch.stack([scan[(slice(None), *crop)] for crop in crops]))
        loss = torch.nn.functional.cross_entropy(logits, torch.stack([reference[crop] for crop in crops]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    labels = predictor.infer(predictor.preprocess(volume)).labels
    assert (labels == np.array([0, 3, 9])[reference]).mean() > 0.8  # the training worked
    return predictor, volume


@pytest.mark.parametrize("permutation", PERMUTATIONS)
def test_predictor_result_of_a_real_scan_is_independent_of_the_stored_axes(
    trained: tuple[Predictor, Volume], permutation: tuple[int, int, int]
) -> None:
    assert_same_in_space(*trained, permutation)
