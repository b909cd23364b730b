"""The training speed of a computer is that of the steps that `finetune` takes there."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from training_examples import RecordingReporter

from HiEndMAECore.reporting import events
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.runtime.processor import describe_processor, processor_name
from HiEndMAECore.training import speed_probe
from HiEndMAECore.training.speed_probe import TrainingSpeed
from HiEndMAECore.training.time_budget import StepTiming

TWO_STEPS_A_SECOND = TrainingSpeed("cpu", "hi_end_mae_vit_tiny_8p", 1, StepTiming(0.5, 0.4, spent=3.0))


def test_measure_training_speed_takes_steps_of_the_preset_and_shows_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed_probe, "_QUIET_SECONDS", 0.0)
    stream = io.StringIO()
    report = Reporter(as_events=True, stream=stream)
    speed = speed_probe.measure_training_speed(torch.device("cpu"), report)
    assert (speed.device, speed.variant, speed.batch_size) == ("cpu", "hi_end_mae_vit_tiny_8p", 1)
    assert 0 < speed.timing.fastest <= speed.timing.seconds < speed.timing.spent
    progress = [events.decode(line) for line in stream.getvalue().splitlines()]
    assert [event["stage"] for event in progress] == ["measuring"] * len(progress)
    assert progress[-1]["step"] == progress[-1]["total"]


def test_steps_in_budget_leave_time_for_timing_and_performance_estimate() -> None:
    assert TWO_STEPS_A_SECOND.steps_a_minute == 120
    assert TWO_STEPS_A_SECOND.steps_in_budget(300) == (300 * 0.94 - 3) / 0.5
    assert "120 steps a minute" in TWO_STEPS_A_SECOND.describe()
    assert "about 558 steps in five minutes" in TWO_STEPS_A_SECOND.describe()


def test_report_training_speed_warns_of_a_device_that_cannot_take_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The card is a stand-in."""

    def measure(device: torch.device, report: Any) -> TrainingSpeed:
        if device.type == "cuda":
            raise torch.OutOfMemoryError("out of memory\nwith details")
        return TWO_STEPS_A_SECOND

    monkeypatch.setattr(speed_probe, "measure_training_speed", measure)
    devices: list[dict[str, Any]] = [{"device": "cuda:0", "name": "Card"}, {"device": "cpu", "name": "CPU"}]
    report = RecordingReporter()
    speed_probe.report_training_speed(devices, report)
    assert "training" not in devices[0]
    assert devices[1]["training"]["steps_in_five_minutes"] == 558
    assert [(warning["code"], warning["message"]) for warning in report.warnings] == [
        ("speed_not_measured", "Training on cuda:0 failed: out of memory")
    ]
    assert {"name": "steps_a_minute", "value": 120, "device": "cpu"} in report.metrics
    assert report.messages == [TWO_STEPS_A_SECOND.describe()]


@pytest.mark.parametrize(("only", "measured"), [("auto", 3), ("cuda", 2), ("cuda:1", 1), ("cpu", 1), ("cuda:63", 0)])
def test_report_training_speed_measures_the_named_device(
    monkeypatch: pytest.MonkeyPatch, only: str, measured: int
) -> None:
    monkeypatch.setattr(speed_probe, "measure_training_speed", lambda device, report: TWO_STEPS_A_SECOND)
    devices = [{"device": name, "name": name} for name in ("cuda:0", "cuda:1", "cpu")]
    speed_probe.report_training_speed(devices, RecordingReporter(), only=only)
    assert sum("training" in device for device in devices) == measured


def test_random_case_has_every_class() -> None:
    case = speed_probe.random_case(classes=14, shape=(48, 40, 40))
    assert case.image.shape == (1, 48, 40, 40)
    assert case.classes.unique().tolist() == list(range(14))


def test_describe_processor_names_it_and_its_arithmetic() -> None:
    assert processor_name()
    assert describe_processor().startswith(processor_name())
    assert describe_processor().endswith(("with bf16", "without bf16"))
