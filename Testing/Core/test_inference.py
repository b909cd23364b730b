"""Tiles, the sliding window against a plain reference, and the way home."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from HiEndMAECore.checkpoints.model_folder import ModelDescription
from HiEndMAECore.errors import InputError
from HiEndMAECore.inference.cleaning import keep_largest
from HiEndMAECore.inference.predictor import Predictor
from HiEndMAECore.inference.tiling import plan_tiles, tile_weights
from HiEndMAECore.networks import UNETR
from HiEndMAECore.volumes.volume import Geometry, Volume

CPU = torch.device("cpu")
ARGUMENTS = {
    "image_size": (16, 16, 16), "patch_size": 8, "in_channels": 1, "classes": 3, "encoder_dim": 24, "encoder_depth": 4,
    "encoder_heads": 2, "feature_size": 4,
}  # fmt: skip


def make_predictor(**changes: object) -> Predictor:
    torch.manual_seed(0)
    arguments = {**ARGUMENTS, **changes}
    description = ModelDescription(
        kind="segmentation",
        name="test",
        architecture={"network": "UNETR", "variant": "", "arguments": arguments},
        channels=[f"c{index}" for index in range(int(arguments["in_channels"]))],  # type: ignore[call-overload]
        preparation={"spacing": [2.0, 2.0, 2.0], "normalisation": {"kind": "window", "low": -175.0, "high": 250.0}},
        labels=[{"value": 3, "name": "liver"}, {"value": 300, "name": "spleen"}],
    )
    return Predictor(UNETR(**arguments), description, CPU)  # type: ignore[arg-type]


def make_volume(shape: tuple[int, int, int], spacing: float = 2.0, channels: int = 1) -> Volume:
    rng = np.random.default_rng(0)
    array = rng.normal(40, 60, (channels, *shape)).astype(np.float32)
    return Volume(array, Geometry(shape, np.diag([spacing, spacing, spacing, 1.0])), name="noise")


@settings(max_examples=50, deadline=None)
@given(
    shape=st.tuples(*[st.integers(8, 40)] * 3),
    tile=st.tuples(*[st.integers(3, 8)] * 3),
    overlap=st.sampled_from([0, 0.25, 0.5]),
)
def test_tiles_cover_all_and_overlap_enough(shape: tuple, tile: tuple, overlap: float) -> None:
    starts = plan_tiles(shape, tile, overlap=overlap)
    for axis in range(3):
        places = sorted({start[axis] for start in starts})
        assert places[0] == 0
        assert places[-1] + tile[axis] == shape[axis]
        assert max(np.diff(places), default=0) <= max(1, int(tile[axis] * (1 - overlap)))


def test_weights_are_highest_in_the_middle_and_nowhere_zero() -> None:
    weights = tile_weights((9, 9, 9), CPU)
    assert float(weights[4, 4, 4]) == 1
    assert float(weights.min()) > 0
    assert torch.equal(weights, weights.flip(0))


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 23, 30), (5, 16, 40), (1, 1, 1)])
def test_logits_are_those_of_a_plain_sliding_window(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "HiEndMAECore.inference.predictor.autocast", lambda device: torch.autocast("cpu", enabled=False)
    )
    predictor = make_predictor()
    array = np.random.default_rng(1).random((1, *shape), dtype=np.float32)
    ours = predictor.logits(array)
    lacks = [max(0, 16 - n) for n in shape]
    padded = np.pad(array, [(0, 0), *[(lack // 2, lack - lack // 2) for lack in lacks]])
    total, weight = np.zeros((3, *padded.shape[1:])), np.zeros(padded.shape[1:])
    window = tile_weights((16, 16, 16), CPU).numpy()
    for h, w, d in plan_tiles(padded.shape[1:], (16, 16, 16)):
        place = np.s_[h : h + 16, w : w + 16, d : d + 16]
        with torch.no_grad():
            scores = predictor.network(torch.from_numpy(padded[(slice(None), *place)])[None])[0].numpy()
        total[(slice(None), *place)] += scores * window
        weight[place] += window
    inside = tuple(slice(lack // 2, lack // 2 + n) for lack, n in zip(lacks, shape))
    np.testing.assert_allclose(ours.numpy(), (total / weight)[(slice(None), *inside)], atol=1e-4)


@pytest.mark.parametrize("shape", [(20, 30, 17), (40, 12, 1), (3, 3, 3)])
def test_labels_lie_on_the_scans_own_grid_in_the_models_values(shape: tuple[int, int, int]) -> None:
    result = make_predictor().segment(make_volume(shape, spacing=1.7), uncertainty=True)
    assert result.labels.shape == shape
    assert result.labels.dtype == np.uint16
    assert set(np.unique(result.labels)) <= {0, 3, 300}
    assert result.entropy is not None
    assert result.entropy.shape == shape
    assert 0 <= result.entropy.min() <= result.entropy.max() <= 1.0001


def test_mirroring_averages_over_mirrored_scans() -> None:
    predictor = make_predictor()
    array = np.random.default_rng(1).random((1, 16, 16, 16), dtype=np.float32)
    once = predictor.logits(array, mirror=True)
    mirrored = predictor.logits(np.ascontiguousarray(array[:, ::-1]), mirror=True).flip(1)
    torch.testing.assert_close(once, mirrored, atol=2e-2, rtol=1e-2)
    assert (predictor.logits(array) - once).abs().max() > 1e-3


def test_wrong_channels_are_named() -> None:
    with pytest.raises(InputError, match=r"noise has 2 channel\(s\), the model needs 1"):
        make_predictor().segment(make_volume((8, 8, 8), channels=2))


def test_cleaning_keeps_the_largest_piece_and_tells() -> None:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[2:8, 2:8, 2:8] = 1
    labels[8, 8, 8] = 1  # touches by a corner: one piece
    labels[15:17, 15, 15] = 1
    labels[12:14, 2:4, 2:4] = 2
    cleaned, removed = keep_largest(labels, [1, 2, 7])
    assert removed == {1: 2}
    assert int((cleaned == 1).sum()) == 6**3 + 1
    assert np.array_equal(cleaned == 2, labels == 2)
    assert int((labels == 1).sum()) == 6**3 + 3  # the given map is left alone
