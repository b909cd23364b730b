"""Sliding window: tile positions, importance map, logits against a textbook implementation, empty tiles, memory."""

from __future__ import annotations

import io
import json
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inference_helpers import CPU, assert_same_labels, make_predictor, reference_logits

from HiEndMAECore.data.phantom import make_patient
from HiEndMAECore.inference.sliding_window import SlidingWindow, gaussian_importance_map, tile_positions
from HiEndMAECore.io.volume import Geometry
from HiEndMAECore.preprocessing.pipeline import PreprocessedScan, PreprocessingPlan, preprocess
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.runtime.memory import Cost


@settings(max_examples=50, deadline=None)
@given(
    shape=st.tuples(*[st.integers(8, 40)] * 3),
    tile=st.tuples(*[st.integers(3, 8)] * 3),
    overlap=st.sampled_from([0, 0.25, 0.5]),
)
def test_tile_positions_cover_the_grid_with_the_overlap(shape: tuple, tile: tuple, overlap: float) -> None:
    positions = tile_positions(shape, tile, overlap=overlap)
    for axis in range(3):
        starts = sorted({position[axis] for position in positions})
        assert starts[0] == 0
        assert starts[-1] + tile[axis] == shape[axis]
        assert max(np.diff(starts), default=0) <= max(1, int(tile[axis] * (1 - overlap)))


def test_tile_positions_of_impossible_arguments_raise_value_error() -> None:
    with pytest.raises(ValueError, match=r"grid of \(8, 8, 4\) is smaller"):
        tile_positions((8, 8, 4), (8, 8, 8))
    with pytest.raises(ValueError, match="overlap is 1"):
        tile_positions((8, 8, 8), (8, 8, 8), overlap=1)


def test_importance_map_is_largest_in_the_middle_and_positive() -> None:
    weights = gaussian_importance_map((9, 9, 9), CPU)
    assert float(weights[4, 4, 4]) == 1
    assert float(weights.min()) > 0
    assert torch.equal(weights, weights.flip(0))


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 23, 30), (5, 16, 40), (1, 1, 1), (33, 21, 1), (50, 9, 17)])
@pytest.mark.parametrize("classes", [3, 61])
def test_sliding_window_of_any_shape_equals_the_reference(shape: tuple[int, int, int], classes: int) -> None:
    predictor = make_predictor(classes=classes)
    array = np.random.default_rng(1).random((1, *shape), dtype=np.float32)
    array[:, shape[0] // 2 :] = 0  # so that there are empty tiles
    reference = reference_logits(predictor, array)
    np.testing.assert_allclose(predictor.logits(array).numpy(), reference, atol=1e-4)
    result = predictor.infer(PreprocessedScan(np.eye(4), Geometry(shape, np.eye(4)), array))
    values = np.array([0, *(structure.value for structure in predictor.structures)])
    assert_same_labels(np.searchsorted(values, result.labels), reference)
    shares = np.exp(reference) / np.exp(reference).sum(0)
    entropy = -(shares * np.log(shares)).sum(0) / np.log(classes)
    np.testing.assert_allclose(result.entropy, entropy, atol=2e-3)
    for value, confidence in result.confidence.items():
        mask = result.labels == value
        assert confidence == pytest.approx(float(shares.max(0)[mask].mean()), abs=1e-3)


class CountingNetwork(torch.nn.Module):
    """A network that counts its tiles."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.tiles = network, 0

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        self.tiles += len(tiles)
        return self.network(tiles)


class OneStructureNetwork(torch.nn.Module):
    """A network that finds its first structure in every voxel."""

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return torch.tensor([0.0, 5.0, 0.0]).view(1, 3, 1, 1, 1).expand(len(tiles), 3, *tiles.shape[2:]).clone()


def test_sliding_window_empty_tiles_are_background_without_the_network() -> None:
    predictor = make_predictor()
    scan, _ = make_patient(1, shape=(60, 56, 20), spacing=(8.0, 8.0, 8.0))
    prepared = preprocess(scan, PreprocessingPlan((6.0, 6.0, 6.0), predictor.plan.normalization), crop=False)
    reference = reference_logits(predictor, prepared.array)
    predictor.network = counting = CountingNetwork(predictor.network)  # type: ignore[assignment]
    result = predictor.infer(prepared)
    starts = tile_positions(prepared.shape, predictor.tile)
    nonempty = [prepared.array[(0, *(slice(n, n + edge) for n, edge in zip(s, predictor.tile)))].any() for s in starts]
    assert sum(nonempty) <= counting.tiles <= sum(nonempty) + 2 < 0.8 * len(starts)  # two measure the cost of a tile
    assert_same_labels(np.searchsorted([0, 3, 300], result.labels), reference)

    predictor.network = OneStructureNetwork()  # type: ignore[assignment]
    found = predictor.infer(prepared).labels == 3
    assert found[prepared.array[0] > 0].all()
    assert not found[0, 0].any()


def test_sliding_window_time_left_is_corrected_as_tiles_finish() -> None:
    """The probe is 200 times too slow, so the plan is wrong; empty tiles take no time and are not counted."""
    predictor, stream = make_predictor(), io.StringIO()
    image = torch.rand(1, 16, 16, 80, generator=torch.Generator().manual_seed(0))
    image[..., 40:] = 0

    class SlowNetwork(torch.nn.Module):
        def forward(self, tiles: torch.Tensor) -> torch.Tensor:
            time.sleep(0.3)
            return predictor.network(tiles)

    window = SlidingWindow(
        image, SlowNetwork(), tile=predictor.tile, classes=3, device=CPU, exact=True, probe=Cost(1, 60.0),
        report=Reporter(as_events=True, stream=stream),
    )  # fmt: skip
    for _ in window.blocks():
        pass
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    count = len(window.positions) - len(window.empty) + 1
    assert len(window.empty) > 2
    plan = next(event for event in events if event["event"] == "metric")
    assert (plan["name"], plan["value"], plan["tiles"]) == ("expected_seconds", 60.0 * count, count)
    assert plan.keys() >= {"tiles", "batch", "sums_bytes", "sums_on", "sums_in"}
    progress = [event for event in events if event["event"] == "progress"]
    assert {(event["stage"], event["total"]) for event in progress} == {("segmenting", count)}
    assert progress[-1]["step"] == count
    for event in progress[1:-1]:
        remaining = count - event["step"]
        assert 0.2 * remaining <= event["seconds_left"] <= 5 * remaining


def test_sliding_window_memory_is_independent_of_the_length_of_the_scan() -> None:
    """Only the overlap of two tile rows is in memory, because finished blocks leave it."""
    peaks = []
    for length in (80, 160):
        image = torch.ones(1, 80, 64, length)
        window = SlidingWindow(
            image, torch.nn.Conv3d(1, 3, 1), tile=(16, 16, 16), classes=3, device=CPU, report=Reporter(quiet=True)
        )  # fmt: skip
        peaks.append(window.peak_voxels)
        visits, present, most = np.zeros(image.shape[1:], int), 0, 0
        for region, logits in window.blocks():
            visits[region] += 1
            blocks = {id(block): block for row in window._blocks.values() for block in row}
            present = sum(block.sums is not None for block in blocks.values())
            most = max(most, present)
            assert logits.shape[1:] == visits[region].shape
        assert (visits == 1).all()
        assert present == 0
        assert most > 0
    assert peaks[0] == peaks[1]
    assert peaks[0] <= 80 * 64 * 8 + 80 * 16 * 16
