"""Training speed of this computer: a few steps of the default preset on a random scan, timed as `finetune` times its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from HiEndMAECore.networks import build_network
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.runtime.devices import sampling_device

from . import finetuning, presets
from .default_recipe import DefaultRecipe
from .performance_estimate import BUDGET_SHARE
from .plans import FinetuningPlan
from .time_budget import USUAL_TIMED_STEPS, StepTiming, time_steps
from .training_cases import TrainingCase

_CLASSES = 14  # with the background; the number changes the time of a step by a few percent
_SCAN_SHAPE = (96, 96, 96)
_FIVE_MINUTES = 300.0  # the default budget of `finetune`, in seconds
_BUDGET_SECONDS = 60.0  # the timing takes about a tenth of it at most, see `time_steps`
_QUIET_SECONDS = 2.0  # a longer probe shows its progress


def random_case(*, classes: int, shape: Sequence[int]) -> TrainingCase:
    """Return a case of random intensities with a ball for each class; only its size matters to the time of a step.

    Args:
        classes: Classes with the background.
        shape: Edges (H, W, D) in voxels.
    """
    rng = np.random.default_rng(0)
    image = rng.random((1, *shape), dtype=np.float32)
    labels = np.zeros(shape, np.int16)
    voxels = np.indices(labels.shape).transpose(1, 2, 3, 0)
    edge = min(shape)
    for value in range(1, classes):
        center = rng.uniform(edge / 6, edge * 5 / 6, 3)
        labels[((voxels - center) ** 2).sum(-1) < (edge / 12) ** 2] = value
    return TrainingCase("random", torch.from_numpy(image), torch.from_numpy(labels))


@dataclass(frozen=True)
class TrainingSpeed:
    """Measured speed of fine-tuning with the default preset of a device.

    Attributes:
        device: Name of the device, such as "cpu" or "cuda:0".
        variant: Network variant of the preset.
        batch_size: Crops of a step.
        timing: Time of a step.
    """

    device: str
    variant: str
    batch_size: int
    timing: StepTiming

    @property
    def steps_a_minute(self) -> float:
        """Steps that a minute of training has."""
        return 60 / self.timing.seconds

    def steps_in_budget(self, seconds: float) -> int:
        """Return the steps of a run with this `--budget` in seconds, a part of which the performance estimate takes."""
        return self.timing.steps_in(seconds * (1 - BUDGET_SHARE))

    def describe(self) -> str:
        """Return what to expect of `finetune` in words, and the preset that it chooses on a slow processor."""
        crops = "1 crop" if self.batch_size == 1 else f"{self.batch_size} crops"
        steps = self.steps_in_budget(_FIVE_MINUTES)
        text = (
            f"Training on {self.device}: {self.steps_a_minute:.0f} steps a minute ({self.variant}, {crops} a step), "
            f"about {steps} steps in five minutes."
        )
        if self.device != "cpu" or steps >= presets.MIN_STEPS:
            return text
        return f"{text} That is too few: finetune uses the preset {presets.SLOW_PRESET} for this budget."

    def to_json(self) -> dict[str, Any]:
        """Return the numbers of a report."""
        return {
            "variant": self.variant,
            "batch_size": self.batch_size,
            "seconds_a_step": round(self.timing.seconds, 4),
            "steps_a_minute": round(self.steps_a_minute, 1),
            "steps_in_five_minutes": self.steps_in_budget(_FIVE_MINUTES),
        }


def report_training_speed(devices: Sequence[dict[str, Any]], report: Reporter, *, only: str = "auto") -> None:
    """Measure the training speed of devices, report it, and add it to their entries as "training".

    Args:
        devices: Devices as `diagnostics.find_devices` returns them.
        only: "auto", or the name of the device to measure; "cuda" is every card.
        report: Receives progress, metrics, a sentence for each device, and a warning where it cannot take a step.
    """
    for device in devices:
        name = device["device"]
        if only not in ("auto", name, name.partition(":")[0]):
            continue
        try:
            speed = measure_training_speed(torch.device(name), report)
        except (RuntimeError, TypeError) as error:  # torch raises them where a device lacks memory or a data type
            reason = str(error).partition("\n")[0]
            advice = "Use --device cpu." if name != "cpu" else "Close other programs, and try again."
            report.warning("speed_not_measured", f"Training on {name} failed: {reason}", advice)
            continue
        device["training"] = speed.to_json()
        for key in ("steps_a_minute", "steps_in_five_minutes"):
            report.metric(key, device["training"][key], device=name)
        report.info(speed.describe())


def measure_training_speed(device: torch.device, report: Reporter) -> TrainingSpeed:
    """Time training steps of the default preset of a device, from random weights on a random scan.

    Args:
        device: Device to measure.
        report: Receives progress, where the measurement takes more than two seconds.

    Raises:
        Cancelled: The run was cancelled.
        RuntimeError: The device cannot take a step, for example because its memory is too small.
    """
    preset = presets.choose_preset("auto", device)
    architecture = presets.choose_architecture(preset, None, classes=_CLASSES, channels=1)
    crop = tuple(architecture["arguments"]["image_size"])
    cases = [random_case(classes=_CLASSES, shape=_SCAN_SHAPE).to(sampling_device(device))]
    plan = FinetuningPlan(crop=crop, steps=1, batch_size=preset.batch_size)
    recipe = DefaultRecipe(cases, classes=_CLASSES, plan=plan)
    recipe.criterion.to(device)
    network = build_network(architecture).to(device).train()
    optimizer = finetuning.build_optimizer(network, plan)
    begin, taken = time.monotonic(), 0

    def step(index: int) -> None:
        nonlocal taken
        finetuning.train_step(cases, recipe, network, optimizer, step=index, done=0.0, plan=plan, device=device)
        report.check()
        taken = index + 1
        if time.monotonic() - begin > _QUIET_SECONDS:
            report.progress("measuring", taken, max(taken + 1, USUAL_TIMED_STEPS))

    timing = time_steps(step, device=device, budget=_BUDGET_SECONDS)
    if time.monotonic() - begin > _QUIET_SECONDS:
        report.progress("measuring", taken, taken)
    return TrainingSpeed(str(device), preset.variant, preset.batch_size, timing)
