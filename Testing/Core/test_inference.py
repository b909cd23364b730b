"""Tiles, the sliding window against a plain reference, and the way home."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from HiEndMAECore.data.phantom import make_patient
from HiEndMAECore.errors import InputError, OutOfMemoryError
from HiEndMAECore.inference import predictor as predictor_module
from HiEndMAECore.inference.cpu_kernels import CpuInferenceKernels
from HiEndMAECore.inference.memory_plan import MemoryPlan, plan_memory
from HiEndMAECore.inference.postprocessing import fill_holes, keep_largest_component, remove_small_components
from HiEndMAECore.inference.predictor import Predictor
from HiEndMAECore.inference.sliding_window import (
    BACKGROUND_LOGIT,
    SlidingWindow,
    forward,
    gaussian_importance_map,
    tile_positions,
)
from HiEndMAECore.inference.uncertainty import summarize_logits
from HiEndMAECore.io.volume import Geometry, Volume
from HiEndMAECore.models.description import ModelDescription
from HiEndMAECore.networks import UNETR
from HiEndMAECore.preprocessing.pipeline import PreprocessedScan, PreprocessingPlan, preprocess
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.runtime.devices import autocast
from HiEndMAECore.runtime.memory import Cost, _group_memory, free_memory, measure_peak

CPU = torch.device("cpu")
ARGUMENTS = {
    "image_size": (16, 16, 16), "patch_size": 8, "in_channels": 1, "classes": 3, "encoder_dim": 24, "encoder_depth": 4,
    "encoder_heads": 2, "feature_size": 4,
}  # fmt: skip


def make_predictor(**changes: object) -> Predictor:
    torch.manual_seed(0)
    arguments = {**ARGUMENTS, **changes}
    classes = int(arguments["classes"])  # type: ignore[call-overload]
    description = ModelDescription(
        kind="segmentation",
        name="test",
        architecture={"network": "UNETR", "variant": "", "arguments": arguments},
        channels=[f"c{index}" for index in range(int(arguments["in_channels"]))],  # type: ignore[call-overload]
        preparation={"spacing": [2.0, 2.0, 2.0], "normalisation": {"kind": "window", "low": -175.0, "high": 250.0}},
        labels=[{"value": value, "name": f"structure {value}"} for value in [3, 300, *range(301, 400)][: classes - 1]],
    )
    return Predictor(UNETR(**arguments), description, CPU, exact=True)  # type: ignore[arg-type]


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
    starts = tile_positions(shape, tile, overlap=overlap)
    for axis in range(3):
        places = sorted({start[axis] for start in starts})
        assert places[0] == 0
        assert places[-1] + tile[axis] == shape[axis]
        assert max(np.diff(places), default=0) <= max(1, int(tile[axis] * (1 - overlap)))


def test_weights_are_highest_in_the_middle_and_nowhere_zero() -> None:
    weights = gaussian_importance_map((9, 9, 9), CPU)
    assert float(weights[4, 4, 4]) == 1
    assert float(weights.min()) > 0
    assert torch.equal(weights, weights.flip(0))


def plain_window(predictor: Predictor, array: np.ndarray) -> np.ndarray:
    """(K, H, W, D): every tile through the network, float64 sums over the whole scan, as in a textbook; but a tile of air is
    background."""
    lacks = [max(0, edge - n) for edge, n in zip(predictor.tile, array.shape[1:])]
    padded = np.pad(array, [(0, 0), *[(lack // 2, lack - lack // 2) for lack in lacks]])
    total, weight = np.zeros((len(predictor.structures) + 1, *padded.shape[1:])), np.zeros(padded.shape[1:])
    window = gaussian_importance_map(predictor.tile, CPU).numpy()
    for start in tile_positions(padded.shape[1:], predictor.tile):
        place = tuple(slice(first, first + edge) for first, edge in zip(start, predictor.tile))
        tile = padded[(slice(None), *place)]
        with torch.no_grad():
            scores = predictor.network(torch.from_numpy(tile)[None])[0].numpy()
        if not tile.any():
            scores = np.zeros_like(scores)
            scores[0] = BACKGROUND_LOGIT
        total[(slice(None), *place)] += scores * window
        weight[place] += window
    inside = tuple(slice(lack // 2, lack // 2 + n) for lack, n in zip(lacks, array.shape[1:]))
    return (total / weight)[(slice(None), *inside)]


def assert_same_labels(classes: np.ndarray, reference: np.ndarray) -> None:
    """Equal to the likeliest class of `reference` (K, H, W, D) but where its two likeliest are within 1e-4."""
    second, first = np.sort(reference, axis=0)[-2:]
    differ = classes != reference.argmax(0)
    assert not (differ & (first - second > 1e-4)).any()


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 23, 30), (5, 16, 40), (1, 1, 1), (33, 21, 1), (50, 9, 17)])
@pytest.mark.parametrize("classes", [3, 61])
def test_logits_and_labels_are_those_of_a_plain_sliding_window(shape: tuple[int, int, int], classes: int) -> None:
    predictor = make_predictor(classes=classes)
    array = np.random.default_rng(1).random((1, *shape), dtype=np.float32)
    array[:, shape[0] // 2 :] = 0  # half of it air
    reference = plain_window(predictor, array)
    np.testing.assert_allclose(predictor.logits(array).numpy(), reference, atol=1e-4)
    result = predictor.infer(PreprocessedScan(np.eye(4), Geometry(shape, np.eye(4)), array))
    values = np.array([0, *(structure.value for structure in predictor.structures)])
    assert_same_labels(np.searchsorted(values, result.labels), reference)
    shares = np.exp(reference) / np.exp(reference).sum(0)
    entropy = -(shares * np.log(shares)).sum(0) / np.log(classes)
    np.testing.assert_allclose(result.entropy, entropy, atol=2e-3)
    for value, sure in result.confidence.items():
        found = result.labels == value
        assert sure == pytest.approx(float(shares.max(0)[found].mean()), abs=1e-3)


class Counting(torch.nn.Module):
    """A network that counts the tiles it is shown."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.tiles = network, 0

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        self.tiles += len(tiles)
        return self.network(tiles)


def test_air_is_background_and_not_shown_to_the_network() -> None:
    """Not even to one that finds a structure in everything."""
    predictor = make_predictor()
    scan, _ = make_patient(1, shape=(60, 56, 20), spacing=(8.0, 8.0, 8.0))
    prepared = preprocess(scan, PreprocessingPlan((6.0, 6.0, 6.0), predictor.plan.normalization), crop=False)
    reference = plain_window(predictor, prepared.array)
    predictor.network = counting = Counting(predictor.network)  # type: ignore[assignment]
    result = predictor.infer(prepared)
    starts = tile_positions(prepared.shape, predictor.tile)
    holds = [prepared.array[(0, *(slice(n, n + edge) for n, edge in zip(s, predictor.tile)))].any() for s in starts]
    assert sum(holds) <= counting.tiles <= sum(holds) + 2 < 0.8 * len(starts)  # two to measure what a tile costs
    assert_same_labels(np.searchsorted([0, 3, 300], result.labels), reference)

    class Eager(torch.nn.Module):
        def forward(self, tiles: torch.Tensor) -> torch.Tensor:
            return torch.tensor([0.0, 5.0, 0.0]).view(1, 3, 1, 1, 1).expand(len(tiles), 3, *tiles.shape[2:]).clone()

    predictor.network = Eager()  # type: ignore[assignment]
    everywhere = predictor.infer(prepared).labels == 3
    assert everywhere[prepared.array[0] > 0].all()
    assert not everywhere[0, 0].any()


def test_the_time_left_is_corrected_as_tiles_finish() -> None:
    """A probe that was far too slow: the plan says minutes, the tiles soon say better. Air takes no time, and none is told."""
    predictor, said = make_predictor(), io.StringIO()
    image = torch.rand(1, 16, 16, 80, generator=torch.Generator().manual_seed(0))
    image[..., 40:] = 0

    class Slow(torch.nn.Module):
        def forward(self, tiles: torch.Tensor) -> torch.Tensor:
            time.sleep(0.3)
            return predictor.network(tiles)

    sweep = SlidingWindow(
        image, Slow(), tile=predictor.tile, classes=3, device=CPU, exact=True, probe=Cost(1, 60.0),
        report=Reporter(as_events=True, stream=said),
    )  # fmt: skip
    for _ in sweep.blocks():
        pass
    events = [json.loads(line) for line in said.getvalue().splitlines()]
    shown = len(sweep.starts) - len(sweep.air) + 1
    assert len(sweep.air) > 2
    plan = next(event for event in events if event["event"] == "metric")
    assert (plan["name"], plan["value"], plan["tiles"]) == ("expected_seconds", 60.0 * shown, shown)
    told = [event for event in events if event["event"] == "progress"]
    assert {event["total"] for event in told} == {shown}
    assert told[-1]["step"] == shown
    for event in told[1:-1]:
        remaining = shown - event["step"]
        assert 0.2 * remaining <= event["seconds_left"] <= 5 * remaining


def test_what_a_full_device_cannot_sum_up_is_summed_up_in_system_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(3, 4, 5, 6)

    class OnDevice:
        device = torch.device("cuda")

        def cpu(self) -> torch.Tensor:
            return logits

    def full(given: object) -> object:
        if isinstance(given, OnDevice):
            raise error
        return summarize_logits(given)  # type: ignore[arg-type]

    monkeypatch.setattr(predictor_module, "summarize_logits", full)
    error: Exception = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")
    for got, wanted in zip(predictor_module._read(OnDevice()), summarize_logits(logits)):  # type: ignore[arg-type]
        torch.testing.assert_close(got, wanted)
    error = RuntimeError("no such kernel")
    with pytest.raises(RuntimeError, match="kernel"):
        predictor_module._read(OnDevice())  # type: ignore[arg-type]


class Device(torch.nn.Module):
    """A network on a device with little memory: it refuses batches above `most` tiles, and all until the run has
    stepped down `refusals` times. Counts the tiles it computed."""

    def __init__(self, network: torch.nn.Module, report: Reporter, *, most: int = 99, refusals: int = 0) -> None:
        super().__init__()
        self.network, self.report, self.most, self.refusals, self.tiles = network, report, most, refusals, 0

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        if self.tiles > 5 and (len(tiles) > self.most or len(self.report.warnings) < self.refusals):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.tiles += len(tiles)
        return self.network(tiles)


@pytest.mark.parametrize(
    ("most", "refusals", "told"),
    [
        (99, 0, []),
        (2, 0, ["2 tile(s) at a time"]),
        (99, 3, ["2 tile(s)", "1 tile(s)", "sums are kept in system memory"]),
        (99, 4, ["2 tile(s)", "1 tile(s)", "system memory", "the CPU computes instead of cpu:0"]),
    ],
)
def test_running_out_of_memory_is_a_step_down(most: int, refusals: int, told: list[str]) -> None:
    """The device is 'cpu:0': to the sweep another one than 'cpu', with the whole ladder below it."""
    predictor, report = make_predictor(), Reporter(quiet=True)
    image = torch.rand(1, 20, 30, 50, generator=torch.Generator().manual_seed(0))
    reference = plain_window(predictor, image.numpy())
    network = Device(predictor.network, report, most=most, refusals=refusals)
    device = torch.device("cpu", 0)
    sweep = SlidingWindow(
        image, network, tile=predictor.tile, classes=3, device=device, report=report, exact=True,
        plan=MemoryPlan(4, device, torch.float32, 0, 0),
    )  # fmt: skip
    logits = torch.full((3, *image.shape[1:]), torch.nan)
    for place, part in sweep.blocks():
        logits[(slice(None), *place)] = part
    np.testing.assert_allclose(logits.numpy(), reference, atol=1e-4)
    assert_same_labels(logits.argmax(0).numpy(), reference)
    assert network.tiles == len(sweep.starts)  # none is done twice
    steps = [warning["message"] for warning in report.warnings]
    assert len(steps) == len(told)
    assert all(part in step for part, step in zip(told, steps))


def test_at_the_foot_of_the_ladder_lack_of_memory_is_told() -> None:
    predictor, report = make_predictor(), Reporter(quiet=True)
    predictor.network = Device(predictor.network, report, refusals=99)  # type: ignore[assignment]
    with pytest.raises(OutOfMemoryError):
        predictor.logits(np.ones((1, 40, 40, 40), np.float32), report=report)


def test_other_errors_are_not_taken_for_lack_of_memory() -> None:
    predictor, report = make_predictor(), Reporter(quiet=True)

    def broken(tiles: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("the memory of this cat is short")

    predictor.network.forward = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="cat"):
        predictor.logits(np.ones((1, 16, 16, 16), np.float32), report=report)
    assert report.warnings == []


GB = 10**9


@pytest.mark.parametrize(
    ("device", "free_device", "free_system", "batch", "where", "dtype"),
    [
        ("cuda", 80 * GB, 32 * GB, 4, "cuda", torch.float32),
        ("cuda", 4 * GB, 32 * GB, 1, "cuda", torch.float32),
        ("cuda", 2 * GB, 32 * GB, 1, "cpu", torch.float32),
        ("cuda", 2 * GB, int(1.2 * GB), 1, "cpu", torch.float16),
        ("cpu", 32 * GB, 32 * GB, 1, "cpu", torch.float32),
        ("cpu", 4 * GB, 4 * GB, 1, "cpu", torch.float32),
        ("cpu", 3 * GB, 3 * GB, 1, "cpu", torch.float16),
    ],
)
def test_the_plan_fits_what_is_free(
    device: str, free_device: int, free_system: int, batch: int, where: str, dtype: torch.dtype
) -> None:
    plan = plan_memory(
        200 * 200 * 144, classes=61, tiles=100, device=torch.device(device),
        probe=Cost(int(1.5 * GB), 0.5), free_device=free_device, free_system=free_system,
    )  # fmt: skip
    assert (plan.batch, plan.accumulate.type, plan.dtype) == (batch, where, dtype)
    assert plan.expected == 50
    assert f"{plan.needed / 1e9:.2f} GB" in str(plan)


def test_memory_is_that_of_half_a_tiles_planes_whatever_the_length() -> None:
    """A finished column of tiles gives way to the next, so that little more than the overlap of two rows is held."""
    held = []
    for length in (80, 160):
        image = torch.ones(1, 80, 64, length)
        sweep = SlidingWindow(
            image, torch.nn.Conv3d(1, 3, 1), tile=(16, 16, 16), classes=3, device=CPU, report=Reporter(quiet=True)
        )  # fmt: skip
        held.append(sweep.voxels)
        seen, here, most = np.zeros(image.shape[1:], int), 0, 0
        for place, logits in sweep.blocks():
            seen[place] += 1
            here = sum(
                b.sums is not None for blocks in sweep._blocks.values() for b in {id(b): b for b in blocks}.values()
            )
            most = max(most, here)
            assert logits.shape[1:] == seen[place].shape
        assert (seen == 1).all()
        assert here == 0
        assert most > 0
    assert held[0] == held[1]
    assert held[0] <= 80 * 64 * 8 + 80 * 16 * 16


@pytest.mark.parametrize("size", [(1, 24, 20, 28), (2, 16, 16, 16)])
def test_lean_steps_change_nothing(size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step of them, with slabs of a few planes and of one: as the plain network."""
    torch.manual_seed(0)
    network = UNETR(**{**ARGUMENTS, "image_size": size[1:], "patch_size": 4}).eval()  # type: ignore[arg-type]
    tiles = torch.rand(size[0], 1, *size[1:])
    with torch.inference_mode():
        reference = network(tiles)
        for slab in (2**24, 2**14, 2**9):
            monkeypatch.setattr("HiEndMAECore.inference.cpu_kernels._SLAB", slab)
            with CpuInferenceKernels(full=True):
                torch.testing.assert_close(network(tiles), reference, atol=2e-5, rtol=1e-5)
        half = forward(network, tiles, exact=False)
        monkeypatch.setattr("HiEndMAECore.inference.cpu_kernels._SLAB", 2**9)
        torch.testing.assert_close(forward(network, tiles, exact=False), half, atol=5e-2, rtol=5e-2)


def test_lean_steps_leave_gradients_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("HiEndMAECore.inference.cpu_kernels._SLAB", 1)
    network, tile = UNETR(**ARGUMENTS), torch.rand(1, 1, 16, 16, 16)  # type: ignore[arg-type]
    network(tile).sum().backward()
    wanted = network.out.conv.conv.weight.grad.clone()
    network.zero_grad()
    with CpuInferenceKernels(full=True):
        network(tile).sum().backward()
    torch.testing.assert_close(network.out.conv.conv.weight.grad, wanted)


def test_what_cannot_fit_is_refused_before_it_freezes_the_machine() -> None:
    with pytest.raises(OutOfMemoryError, match=r"needs 1\.23 GB"):
        plan_memory(
            200 * 200 * 144, classes=61, tiles=9, device=CPU, probe=Cost(GB // 2),
            free_device=GB, free_system=GB,
        )  # fmt: skip


def test_a_container_is_believed(tmp_path: Path) -> None:
    """Both generations of cgroups; a group above may be the tighter one, and the cache of files gives way."""
    for folder, most in (("a", "9000"), ("a/b", "max")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "memory.max").write_text(most)
        (tmp_path / folder / "memory.current").write_text("5000")
        (tmp_path / folder / "memory.stat").write_text("anon 1\ninactive_file 1500\n")
    (tmp_path / "cgroup").write_text("0::/a/b\n")
    assert list(_group_memory(tmp_path, tmp_path / "cgroup")) == [5500]
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("7000")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("8000")
    (tmp_path / "memory" / "memory.stat").write_text("cache 1\n")
    (tmp_path / "cgroup").write_text("5:cpu:/x\n4:memory:/\n")
    assert list(_group_memory(tmp_path, tmp_path / "cgroup")) == [0]
    assert free_memory(CPU) > 10**7


def test_a_tile_is_watched() -> None:
    with measure_peak(CPU) as seen:
        held = torch.ones(50_000_000)
    assert seen.seconds > 0
    if sys.platform == "linux":
        assert seen.bytes is not None
        assert seen.bytes > 150_000_000
    del held


@pytest.mark.parametrize("shape", [(20, 30, 17), (40, 12, 1), (3, 3, 3)])
def test_labels_lie_on_the_scans_own_grid_in_the_models_values(shape: tuple[int, int, int]) -> None:
    result = make_predictor().segment(make_volume(shape, spacing=1.7), uncertainty=True)
    assert result.labels.shape == shape
    assert result.labels.dtype == np.uint16
    assert set(np.unique(result.labels)) <= {0, 3, 300}
    assert result.entropy is not None
    assert result.entropy.shape == shape
    assert 0 <= result.entropy.min() <= result.entropy.max() <= 1.0001


@pytest.mark.parametrize("swaps", [[], [[3, 300]]])
def test_mirroring_averages_with_the_mirrored_scan(swaps: list[list[int]]) -> None:
    """A mirrored scan gives the mirrored result, in which the classes of a pair have changed places."""
    predictor = make_predictor()
    predictor.description.training["mirroring"] = {"allowed": True, "swaps": swaps}
    order = [0, 2, 1] if swaps else [0, 1, 2]
    array = np.random.default_rng(1).random((1, 16, 16, 16), dtype=np.float32)
    once = predictor.logits(array, mirror=True)
    mirrored = predictor.logits(np.ascontiguousarray(array[:, ::-1]), mirror=True).flip(1)[order]
    torch.testing.assert_close(once, mirrored, atol=2e-2, rtol=1e-2)
    assert (predictor.logits(array) - once).abs().max() > 1e-3
    upside_down = predictor.logits(np.ascontiguousarray(array[..., ::-1]), mirror=True).flip(-1)
    assert (upside_down - once).abs().max() > 1e-3  # of such a patient no model has learned


@pytest.fixture
def tf32() -> Iterator[tuple]:
    """Where TF32 is allowed: everywhere, until the test is over (monkeypatch cannot restore these attributes)."""
    places = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = True
    yield places
    for place, allowed in zip(places, before):
        place.allow_tf32 = allowed


@pytest.mark.parametrize("exact", [True, False])
def test_exact_means_full_32_bits(exact: bool, tf32: tuple) -> None:
    seen: list[bool] = []

    class Looking(torch.nn.Module):
        def forward(self, tiles: torch.Tensor) -> torch.Tensor:
            seen.extend(place.allow_tf32 for place in tf32)
            return tiles

    forward(Looking(), torch.ones(1, 1, 4, 4, 4), exact=exact)
    assert seen == [not exact] * 2
    assert all(place.allow_tf32 for place in tf32)  # as it was


def test_wrong_channels_are_named() -> None:
    with pytest.raises(InputError, match=r"noise has 2 channel\(s\), the model needs 1"):
        make_predictor().segment(make_volume((8, 8, 8), channels=2))


def test_cleaning_keeps_the_largest_piece_and_tells() -> None:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[2:8, 2:8, 2:8] = 1
    labels[8, 8, 8] = 1  # touches by a corner: one piece
    labels[15:17, 15, 15] = 1
    labels[12:14, 2:4, 2:4] = 2
    cleaned, removed = keep_largest_component(labels, [1, 2, 7])
    assert removed == {1: 2}
    assert int((cleaned == 1).sum()) == 6**3 + 1
    assert np.array_equal(cleaned == 2, labels == 2)
    assert int((labels == 1).sum()) == 6**3 + 3  # the given map is left alone


def test_islands_below_a_size_go_and_holes_are_filled() -> None:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[2:9, 2:9, 2:9] = 1
    labels[4:6, 4, 4] = 0  # a hole of two voxels
    labels[6, 6, 6] = 2  # another structure inside stays
    labels[15:17, 15, 15] = 1
    labels[18, 18, 18] = 1
    cleaned, removed = remove_small_components(labels, [1, 2], smaller_than=2)
    assert removed == {1: 1, 2: 1}
    assert int((cleaned == 1).sum()) == int((labels == 1).sum()) - 1
    filled, added = fill_holes(labels, [1, 2])
    assert added == {1: 2}
    assert filled[6, 6, 6] == 2
    assert int((filled == 1).sum()) == int((labels == 1).sum()) + 2


@pytest.mark.parametrize(
    ("capability", "inference", "kind"),
    [
        ((8, 0), True, torch.bfloat16),
        ((7, 5), True, torch.float16),
        ((7, 5), False, None),
        ((9, 0), False, torch.bfloat16),
    ],
)
def test_half_precision_suits_the_card(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], inference: bool, kind: torch.dtype | None
) -> None:
    """Which of the two: a stand-in for the card's capability, for no card is here; torch may warn that there is none."""
    asked: dict[str, object] = {}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch, "autocast", lambda kind, **options: asked.update(options))
    autocast(torch.device("cuda"), inference=inference)
    assert (asked["dtype"] if asked["enabled"] else None) == kind
