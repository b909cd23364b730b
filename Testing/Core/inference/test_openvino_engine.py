"""OpenVINO as an engine: which engine computes, equal labels, the cache, and torch after a failure."""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from inference_helpers import ARGUMENTS, CPU, segment_config, write_scan, write_untrained_model
from scipy.ndimage import gaussian_filter
from torch import nn

from HiEndMAECore.errors import Cancelled, MissingDependencyError, UsageError
from HiEndMAECore.inference import engine_cache, openvino_engine
from HiEndMAECore.inference.forward import forward, store_weights_in_bf16
from HiEndMAECore.inference.openvino_engine import OpenVINONetwork, choose_engine
from HiEndMAECore.inference.predictor import Predictor
from HiEndMAECore.io.readers import read_label_map, read_volume
from HiEndMAECore.networks import UNETR
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.runtime.devices import cpu_has_bf16
from HiEndMAECore.segment import run

needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="the extra openvino is not installed")
MedNeXt = type("MedNeXt", (nn.Identity,), {})


class StandIn(ModuleType):
    """A module in place of openvino: the network itself computes the first call, then every logit is 0, then it fails."""

    def __init__(self, calls: int) -> None:
        super().__init__("openvino")
        self.__spec__, self.__version__ = ModuleSpec("openvino", None), "0"
        self.calls, self.network, self.factor = calls, nn.Identity(), 1

    def Core(self) -> StandIn:
        return self

    def convert_model(self, network: nn.Module, **_: Any) -> nn.Module:
        self.network = network
        return network

    def compile_model(self, *_: Any) -> StandIn:
        return self

    def create_infer_request(self) -> StandIn:
        return self

    def save_model(self, _model: Any, file: Path, **_: Any) -> None:
        file.write_text("network")

    def infer(self, tiles: list[np.ndarray]) -> list[np.ndarray]:
        self.calls -= 1
        if self.calls < 0:
            raise RuntimeError("no more calls")
        logits = self.network(torch.from_numpy(tiles[0])).float()
        factor, self.factor = self.factor, 0
        return [factor * logits.numpy()]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_untrained_model(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache folder that the test uses."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(engine_cache, "cache_folder", lambda: folder)
    return folder


def segment(model: Path, folder: Path, engine: str) -> tuple[np.ndarray, dict[str, Any], Reporter]:
    """Segment a scan of noise and return its labels, its report and the reporter."""
    report, output = Reporter(quiet=True), folder / f"{engine}.nii.gz"
    run(segment_config(model, write_scan(folder / "scan.nii.gz"), output, engine=engine), report)
    return read_label_map(output).array, json.loads((folder / f"{engine}.json").read_text()), report


@pytest.mark.parametrize(
    ("name", "network", "device", "exact", "bf16", "expected"),
    [
        ("auto", nn.Identity(), "cpu", False, True, "openvino"),
        ("auto", nn.Identity(), "cpu", False, False, "torch"),
        ("auto", nn.Identity(), "cpu", True, True, "torch"),
        ("auto", nn.Identity(), "cuda", False, True, "torch"),
        ("auto", MedNeXt(), "cpu", False, True, "openvino"),
        ("torch", nn.Identity(), "cpu", False, True, "torch"),
        ("openvino", nn.Identity(), "cpu", True, False, "openvino"),
        ("openvino", MedNeXt(), "cpu", False, False, "torch"),
    ],
)
def test_engine_depends_on_the_device_and_its_arithmetic(
    name: str, network: nn.Module, device: str, exact: bool, bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", StandIn(0))
    monkeypatch.setattr(openvino_engine, "cpu_has_bf16", lambda: bf16)
    assert choose_engine(name, network, torch.device(device), exact=exact) == expected


def test_absent_openvino_is_an_error_only_if_it_is_asked_for(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # what an import finds where the package is missing
    monkeypatch.setattr(openvino_engine, "cpu_has_bf16", lambda: True)
    assert choose_engine("auto", nn.Identity(), CPU, exact=False) == "torch"
    with pytest.raises(MissingDependencyError, match="pip install openvino"):
        segment(model, tmp_path, "openvino")


def test_openvino_on_a_graphics_card_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", StandIn(0))
    with pytest.raises(UsageError, match="--device cpu"):
        choose_engine("openvino", nn.Identity(), torch.device("cuda", 0), exact=False)


@pytest.mark.parametrize("calls", [0, 1, 5])  # it fails in the conversion, in the probe, and between the scan's tiles
def test_torch_computes_the_whole_scan_after_a_failure(
    calls: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, record, _ = segment(model, tmp_path, "torch")
    assert record["engine"] == "torch"
    monkeypatch.setitem(sys.modules, "openvino", StandIn(calls))
    labels, record, report = segment(model, tmp_path, "openvino")
    assert record["engine"] == "torch"
    assert [warning["code"] for warning in report.warnings].count("engine_failed") == 1
    assert "no more calls" in next(w["message"] for w in report.warnings if w["code"] == "engine_failed")
    assert np.array_equal(labels, expected)


def test_converted_network_with_other_logits_is_a_failure(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = StandIn(99)
    wrong.factor = 0
    monkeypatch.setitem(sys.modules, "openvino", wrong)
    assert segment(model, tmp_path, "openvino")[1]["engine"] == "torch"


def test_cancelled_run_is_not_taken_for_a_failure(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class CancellingReporter(Reporter):
        def progress(self, phase: str, done: int, total: int, **fields: Any) -> None:
            if done > 1:
                raise Cancelled

    monkeypatch.setitem(sys.modules, "openvino", StandIn(99))
    report = CancellingReporter(quiet=True)
    scan = write_scan(tmp_path / "scan.nii.gz")
    with pytest.raises(Cancelled):
        run(segment_config(model, scan, tmp_path / "result.nii.gz", engine="openvino"), report)
    assert "engine_failed" not in [warning["code"] for warning in report.warnings]


def test_cache_keeps_the_newest_networks(cache: Path) -> None:
    for index in range(engine_cache.MAX_NETWORKS):
        engine_cache.store_network(f"key{index}", lambda file: file.write_text("network") and None)
    assert engine_cache.find_network("key0") == cache / "key0" / "network.xml"
    engine_cache.store_network("one more", lambda file: file.write_text("network") and None)
    assert len(list(cache.iterdir())) == engine_cache.MAX_NETWORKS
    assert engine_cache.find_network("key0")  # it was used later than the others were written
    assert not engine_cache.find_network("key1")


def test_cache_on_an_unwritable_disk_is_no_error(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    engine_cache.store_network("key", lambda file: file.write_text("network") and None)
    assert engine_cache.find_network("key") is None


@pytest.fixture(scope="module")
def trained() -> tuple[UNETR, torch.Tensor, torch.Tensor]:
    """A network trained for seconds to separate three intensities, a smooth tile, and its reference labels."""
    torch.manual_seed(0)
    field = gaussian_filter(np.random.default_rng(0).normal(size=(64, 64, 64)), 6)
    reference = torch.from_numpy(np.digitize(field, np.quantile(field, [0.5, 0.8])))
    scan = torch.from_numpy(np.array([0.0, 0.5, 1.0], np.float32))[reference]
    network, rng = UNETR(**ARGUMENTS), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    for _ in range(100):
        crops = [tuple(slice(first, first + 16) for first in rng.integers(0, 49, 3)) for _ in range(4)]
        logits = network(torch.stack([scan[crop][None] for crop in crops]))
        loss = nn.functional.cross_entropy(logits, torch.stack([reference[crop] for crop in crops]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    blocks = scan.unfold(0, 16, 16).unfold(1, 16, 16).unfold(2, 16, 16).reshape(-1, 1, 16, 16, 16)
    targets = reference.unfold(0, 16, 16).unfold(1, 16, 16).unfold(2, 16, 16).reshape(-1, 16, 16, 16)
    return network.eval(), blocks, targets


@needs_openvino
@pytest.mark.parametrize("exact", [True, False])
@torch.inference_mode()
def test_labels_equal_those_of_torch(exact: bool, trained: tuple[UNETR, torch.Tensor, torch.Tensor]) -> None:
    network, tiles, targets = trained
    precision = "f32" if exact or not cpu_has_bf16() else "bf16"
    found = forward(make_network(network, precision), tiles, exact=exact)
    expected = forward(network, tiles, exact=exact)
    assert (expected.argmax(1) == targets).float().mean() > 0.6  # half is background
    second, first = expected.sort(dim=1).values[:, -2:].unbind(1)
    is_clear = first - second > 0.05  # so short a training leaves voxels undecided, which bf16 rounds either way
    assert is_clear.float().mean() > 0.9
    assert (found.argmax(1) == expected.argmax(1))[is_clear].float().mean() >= 0.999
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)


@needs_openvino
def test_cache_is_written_once_and_reused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino

    conversions = []
    convert = openvino.convert_model
    monkeypatch.setattr(
        openvino, "convert_model", lambda *args, **named: conversions.append(1) or convert(*args, **named)
    )
    network = UNETR(**ARGUMENTS).eval()
    tile = torch.rand(1, 1, 16, 16, 16)
    logits = [make_network(network)(tile) for _ in range(2)]
    assert torch.equal(*logits)
    assert (len(conversions), len(list(cache.iterdir()))) == (1, 1)
    with torch.no_grad():
        next(network.parameters()).add_(0.1)
    assert not torch.equal(make_network(network)(tile), logits[0])  # other weights are another network
    assert len(conversions) == 2


@needs_openvino
@pytest.mark.parametrize("damage", ["truncate", "delete", "digests"])
def test_damaged_cache_is_rebuilt(damage: str, cache: Path) -> None:
    network, tile = UNETR(**ARGUMENTS).eval(), torch.rand(1, 1, 16, 16, 16)
    expected = make_network(network)(tile)
    (folder,) = cache.iterdir()
    file = folder / ("sha256.txt" if damage == "digests" else "network.bin")
    if damage == "delete":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-100])
    assert engine_cache.find_network(folder.name) is None
    assert torch.equal(make_network(network)(tile), expected)
    assert engine_cache.find_network(folder.name) is not None


@needs_openvino
def test_report_names_the_engine(model: Path, tmp_path: Path) -> None:
    labels, record, report = segment(model, tmp_path, "openvino")
    assert record["engine"] == "openvino"
    assert record["versions"]["openvino"]
    assert "engine_failed" not in [warning["code"] for warning in report.warnings]
    expected, record, _ = segment(model, tmp_path, "torch")
    assert record["engine"] == "torch"
    assert (labels == expected).mean() > 0.9  # of noise by an untrained network


@needs_openvino
def test_weights_stored_in_bf16_are_converted(tmp_path: Path) -> None:
    network, tile = UNETR(**ARGUMENTS).eval(), torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        expected = network(tile)
    store_weights_in_bf16(network)
    assert (make_network(network)(tile) - expected).abs().max() < 0.05 * expected.abs().max()


@needs_openvino
def test_mirrored_scan_uses_the_engine(model: Path, tmp_path: Path) -> None:
    predictor = Predictor.load(model, device=CPU, engine="openvino")
    prepared = predictor.preprocess(read_volume(write_scan(tmp_path / "scan.nii.gz")))
    assert predictor.infer(prepared).engine == "openvino"
    predictor.network.network = nn.Identity()  # type: ignore[assignment]  # torch's network is not needed
    assert predictor.probe().seconds > 0
    assert predictor.infer(prepared).engine == "openvino"


@needs_openvino
def test_openvino_is_imported_without_its_telemetry() -> None:
    make_network(UNETR(**ARGUMENTS).eval())
    from openvino.tools.ovc import telemetry_utils

    assert telemetry_utils.tm.__name__.endswith("telemetry_stub")


def make_network(network: nn.Module, precision: str = "f32") -> OpenVINONetwork:
    engine = OpenVINONetwork(network, ARGUMENTS, tile=(1, 16, 16, 16), precision=precision)
    engine.start()
    return engine
