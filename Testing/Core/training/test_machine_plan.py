"""The preset follows the measured speed of the computer, where a budget decides the length of a run, and only there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from HiEndMAECore.errors import InputError
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.training import machine_plan
from HiEndMAECore.training.finetuning import CHECKPOINT_FILE
from HiEndMAECore.training.machine_plan import choose_machine_plan
from HiEndMAECore.training.presets import MIN_STEPS, SLOW_PRESET
from HiEndMAECore.training.speed_probe import TrainingSpeed
from HiEndMAECore.training.time_budget import StepTiming

CPU = torch.device("cpu")
FIVE_MINUTES = 300.0


class Machine:
    """A computer whose speed is given; counts the measurements."""

    def __init__(self, steps_in_five_minutes: int) -> None:
        seconds = FIVE_MINUTES * 0.94 / steps_in_five_minutes
        self.speed = TrainingSpeed("cpu", "variant", 1, StepTiming(seconds, seconds))
        self.measured = 0

    def __call__(self, device: torch.device, report: Reporter) -> TrainingSpeed:
        self.measured += 1
        return self.speed


@pytest.fixture
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A stand-in for a computer that takes the parameter's number of steps in five minutes."""
    stand_in = Machine(request.param)
    monkeypatch.setattr(machine_plan, "measure_training_speed", stand_in)
    return stand_in


def choose(preset: str = "auto", device: torch.device = CPU, **options: Any) -> machine_plan.MachinePlan:
    settings: dict[str, Any] = {"budget_seconds": FIVE_MINUTES, "run_directory": None, "report": Reporter(quiet=True)}
    return choose_machine_plan(preset, device, **{**settings, **options})


@pytest.mark.parametrize("machine", [MIN_STEPS + 1], indirect=True)
def test_a_fast_computer_has_the_default_preset(machine: Machine) -> None:
    chosen = choose()
    assert chosen.preset == "cpu"
    assert SLOW_PRESET not in machine.speed.describe()
    assert chosen.to_json() == {"preset": "cpu", "steps_a_minute": round(machine.speed.steps_a_minute, 1)}


@pytest.mark.parametrize("machine", [MIN_STEPS - 1], indirect=True)
def test_a_slow_computer_has_the_cheaper_preset_and_the_reason(machine: Machine) -> None:
    said: list[str] = []
    report = Reporter(quiet=True)
    report.info = said.append  # type: ignore[method-assign]
    assert choose(report=report).preset == SLOW_PRESET
    assert len(said) == 1
    assert f"{MIN_STEPS - 1} in this budget" in said[0]
    assert "--budget" in said[0]
    assert SLOW_PRESET in machine.speed.describe()
    assert choose(budget_seconds=4 * FIVE_MINUTES).preset == "cpu", "a longer budget has enough steps"


@pytest.mark.parametrize("machine", [10], indirect=True)
def test_named_presets_given_steps_and_graphics_cards_are_not_measured(machine: Machine) -> None:
    assert choose("cpu").preset == "cpu"
    assert choose(SLOW_PRESET).preset == SLOW_PRESET
    assert choose(budget_seconds=None).preset == "cpu"
    assert choose(device=torch.device("cuda", 0)).preset == "gpu"
    assert machine.measured == 0


@pytest.mark.parametrize("machine", [10], indirect=True)
def test_a_resumed_run_has_the_preset_of_its_checkpoint(machine: Machine, tmp_path: Path) -> None:
    from HiEndMAECore.training.checkpoints import save_checkpoint

    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    assert choose(run_directory=tmp_path).preset == SLOW_PRESET, "there is nothing to resume yet"
    for stored, expected in (("cpu", "cpu"), (SLOW_PRESET, SLOW_PRESET)):
        save_checkpoint(tmp_path / CHECKPOINT_FILE, {"network": network}, optimizer, {"preset": stored})
        assert choose(run_directory=tmp_path, budget_seconds=None).preset == expected
    save_checkpoint(tmp_path / CHECKPOINT_FILE, {"network": network}, optimizer, {"step": 3})  # of an earlier version
    assert choose(run_directory=tmp_path).preset == "cpu"
    assert machine.measured == 1
    (tmp_path / CHECKPOINT_FILE).write_bytes(b"damaged")
    with pytest.raises(InputError, match="cannot be read"):
        choose(run_directory=tmp_path)
