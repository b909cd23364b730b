"""The preset for the speed of a computer: where a budget has too few steps for the default preset, a cheaper one.

A processor without bf16 arithmetic, or an old one, may take ten times as long for a step as a current one. A network that is
trained for too few steps segments nothing, so `finetune` times a few steps of the default preset before it reads a scan.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from HiEndMAECore.reporting.reporter import Reporter

from .checkpoints import read_checkpoint_values
from .finetuning import CHECKPOINT_FILE
from .presets import MIN_STEPS, SLOW_PRESET, preset_name
from .speed_probe import TrainingSpeed, measure_training_speed


@dataclass(frozen=True)
class MachinePlan:
    """The preset of a run, and the speed that it was chosen by.

    Attributes:
        preset: Name of the preset.
        speed: Measured speed of the default preset; None where nothing was measured.
        spent: Seconds that the measurement took; they are a part of the budget.
    """

    preset: str
    speed: TrainingSpeed | None = None
    spent: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the model card."""
        steps = {} if self.speed is None else {"steps_a_minute": round(self.speed.steps_a_minute, 1)}
        return {"preset": self.preset, **steps}


def choose_machine_plan(
    preset: str,
    device: torch.device,
    *,
    budget_seconds: float | None,
    run_directory: Path | None,
    report: Reporter,
) -> MachinePlan:
    """Choose the preset of a run.

    Only the preset "auto" on a CPU with a budget is chosen by the speed. Given steps, and a resumed run, do not depend on a
    measurement.

    Args:
        preset: Option of the preset.
        device: Device to train on.
        budget_seconds: Budget of the run; None for a run of given steps, and where options name the network or its weights.
        run_directory: Folder of the run's checkpoint if the run is resumed, else None.
        report: Receives progress, and a message where the cheaper preset is chosen.

    Raises:
        InputError: The checkpoint cannot be read.
        Cancelled: The run was cancelled.
    """
    default = preset_name(preset, device)
    stored = read_checkpoint_values(run_directory / CHECKPOINT_FILE) if run_directory else None
    if stored and preset == "auto":
        return MachinePlan(
            str(stored.get("preset") or default)
        )  # earlier versions had no other preset, and stored none
    if preset != "auto" or device.type != "cpu" or budget_seconds is None:
        return MachinePlan(default)
    speed = measure_training_speed(device, report)
    steps = speed.steps_in_budget(budget_seconds)
    chosen = SLOW_PRESET if steps < MIN_STEPS else default
    if chosen == SLOW_PRESET:
        report.info(
            f"This computer takes {speed.steps_a_minute:.0f} steps a minute, which are {steps} in this budget: too few for "
            f"the default network. The preset {SLOW_PRESET} is used, with a smaller network on a coarser grid. "
            "A longer --budget gives a better model."
        )
    return MachinePlan(chosen, speed, speed.timing.spent)
