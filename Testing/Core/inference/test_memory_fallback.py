"""Out-of-memory fallback: its steps in the sliding window, its end, and errors that are not a lack of memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from inference_helpers import CPU, assert_same_labels, make_predictor, reference_logits

from HiEndMAECore.errors import OutOfMemoryError
from HiEndMAECore.inference import memory_fallback
from HiEndMAECore.inference.memory_fallback import can_reduce_memory, reduce_memory, summarize_logits_within_memory
from HiEndMAECore.inference.memory_plan import MemoryPlan
from HiEndMAECore.inference.sliding_window import SlidingWindow
from HiEndMAECore.inference.uncertainty import summarize_logits
from HiEndMAECore.reporting.reporter import Reporter


class SmallDeviceNetwork(torch.nn.Module):
    """A network on a device with little memory, which counts the tiles that it computed.

    After five tiles it refuses batches of more than `most` tiles, and every batch until `refusals` steps were reported.
    """

    def __init__(self, network: torch.nn.Module, report: Reporter, *, most: int = 99, refusals: int = 0) -> None:
        super().__init__()
        self.network, self.report, self.most, self.refusals, self.tiles = network, report, most, refusals, 0

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        if self.tiles > 5 and (len(tiles) > self.most or len(self.report.warnings) < self.refusals):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.tiles += len(tiles)
        return self.network(tiles)


@pytest.mark.parametrize(
    ("most", "refusals", "steps"),
    [
        (99, 0, []),
        (2, 0, ["2 tile(s) at a time"]),
        (99, 3, ["2 tile(s)", "1 tile(s)", "sums are kept in system memory"]),
        (99, 4, ["2 tile(s)", "1 tile(s)", "system memory", "the CPU computes instead of cpu:0"]),
    ],
)
def test_fallback_steps_give_the_same_logits_and_repeat_no_tile(most: int, refusals: int, steps: list[str]) -> None:
    """The device is 'cpu:0', which the sliding window distinguishes from 'cpu', so that every step is possible."""
    predictor, report = make_predictor(), Reporter(quiet=True)
    image = torch.rand(1, 20, 30, 50, generator=torch.Generator().manual_seed(0))
    reference = reference_logits(predictor, image.numpy())
    network = SmallDeviceNetwork(predictor.network, report, most=most, refusals=refusals)
    device = torch.device("cpu", 0)
    window = SlidingWindow(
        image, network, tile=predictor.tile, classes=3, device=device, report=report, exact=True,
        plan=MemoryPlan(4, device, torch.float32, 0, 0),
    )  # fmt: skip
    logits = torch.full((3, *image.shape[1:]), torch.nan)
    for region, part in window.blocks():
        logits[(slice(None), *region)] = part
    np.testing.assert_allclose(logits.numpy(), reference, atol=1e-4)
    assert_same_labels(logits.argmax(0).numpy(), reference)
    assert network.tiles == len(window.positions)
    assert {warning["code"] for warning in report.warnings} <= {"out_of_memory_step"}
    messages = [warning["message"] for warning in report.warnings]
    assert len(messages) == len(steps)
    assert all(part in message for part, message in zip(steps, messages))


def test_fallback_order_is_batch_then_sums_then_cpu() -> None:
    device = torch.device("cuda", 0)
    plan: MemoryPlan | None = MemoryPlan(4, device, torch.float32, 10, 20)
    states = []
    while can_reduce_memory(plan, device):
        step = reduce_memory(plan, device)
        plan, device = step.plan, step.device
        assert plan is not None
        states.append((plan.batch_size, plan.sums_device.type, device.type))
    assert states == [(2, "cuda", "cuda"), (1, "cuda", "cuda"), (1, "cpu", "cuda"), (1, "cpu", "cpu")]


def test_fallback_before_a_plan_is_made_goes_to_the_cpu() -> None:
    step = reduce_memory(None, torch.device("cuda", 0))
    assert (step.plan, step.device) == (None, CPU)
    assert not can_reduce_memory(None, CPU)


def test_fallback_at_its_end_raises_out_of_memory() -> None:
    predictor, report = make_predictor(), Reporter(quiet=True)
    predictor.network = SmallDeviceNetwork(predictor.network, report, refusals=99)  # type: ignore[assignment]
    with pytest.raises(OutOfMemoryError):
        predictor.logits(np.ones((1, 40, 40, 40), np.float32), report=report)


def test_fallback_does_not_catch_other_errors() -> None:
    predictor, report = make_predictor(), Reporter(quiet=True)

    def broken(tiles: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("the memory of this cat is short")

    predictor.network.forward = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="cat"):
        predictor.logits(np.ones((1, 16, 16, 16), np.float32), report=report)
    assert report.warnings == []


def test_summary_that_a_device_cannot_hold_is_computed_in_system_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(3, 4, 5, 6)

    class DeviceLogits:
        device = torch.device("cuda")

        def cpu(self) -> torch.Tensor:
            return logits

    def full_device(value: object) -> object:
        if isinstance(value, DeviceLogits):
            raise error
        return summarize_logits(value)  # type: ignore[arg-type]

    monkeypatch.setattr(memory_fallback, "summarize_logits", full_device)
    error: Exception = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")
    for part, expected in zip(summarize_logits_within_memory(DeviceLogits()), summarize_logits(logits)):  # type: ignore[arg-type]
        torch.testing.assert_close(part, expected)
    error = RuntimeError("no such kernel")
    with pytest.raises(RuntimeError, match="kernel"):
        summarize_logits_within_memory(DeviceLogits())  # type: ignore[arg-type]
