"""The fine-tuning loop: train a segmentation network on one or a few labelled scans (paper section 4.1).

The scans are held on the device that cuts the crops, without data-loading workers: every crop is cut out of a whole scan
with its augmentation in one interpolation. Step `i` draws from generators keyed by (seed, crop index), so that a resumed
run continues with the same losses.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from HiEndMAECore.errors import HiEndMAEError, InputError
from HiEndMAECore.networks import SegmentationNetwork
from HiEndMAECore.networks.cpu_convolution import CpuTrainingKernels
from HiEndMAECore.preprocessing.laterality import Mirroring
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.runtime.devices import autocast, sampling_device

from .checkpoints import load_checkpoint, read_checkpoint_values, save_checkpoint
from .deep_supervision import deep_supervision_loss
from .default_recipe import DefaultRecipe, Recipe, draw_batch
from .ema import update_average
from .loop import Interval, RunClock, schedule_learning_rate
from .optimizer import build_adamw, freeze_encoder, layer_decay_groups
from .plans import FinetuningPlan
from .time_budget import BudgetMonitor, StepTiming, time_steps
from .training_cases import TrainingCase

CHECKPOINT_FILE = "snapshot.safetensors"
_CHECKPOINT_SECONDS = 45.0  # a killed run loses less than a minute
_MIN_TIMED_RUN_STEPS = 100  # a shorter run ends before its timing would be of use
_MAX_CURVE_POINTS = 200


class TrainingCallback(Protocol):
    """Callback that evaluates the network during training (`preview.Preview`)."""

    def due(self, step: int, planned: int, *, seconds: float, crop: Sequence[int]) -> bool:
        """Return True when `on_validation` is to be called after `step` of `planned` steps."""
        ...

    def on_validation(self, network: nn.Module, *, step: int, crop: Sequence[int], device: torch.device) -> None:
        """Evaluate the averaged network after `step` steps."""
        ...


@dataclass
class FinetuningResult:
    """Result of a fine-tuning run.

    Attributes:
        network: Network with the averaged weights.
        steps: Steps that are done.
        planned: Steps that were planned.
        seconds: Time of the training.
        losses: (step, loss) of every step.
    """

    network: SegmentationNetwork
    steps: int = 0
    planned: int = 0
    seconds: float = 0.0
    losses: list[tuple[int, float]] = field(default_factory=list)

    def curve(self, most: int = _MAX_CURVE_POINTS) -> list[list[float]]:
        """Return at most `most` pairs [step, mean loss] for drawing."""
        width = max(1, -(-len(self.losses) // most))
        groups = [self.losses[first : first + width] for first in range(0, len(self.losses), width)]
        return [[group[-1][0], round(sum(loss for _, loss in group) / len(group), 4)] for group in groups]


def finetune(
    cases: Sequence[TrainingCase],
    network: SegmentationNetwork,
    *,
    plan: FinetuningPlan,
    device: torch.device,
    folder: Path,
    report: Reporter,
    resume: bool = False,
    callback: TrainingCallback | None = None,
    mirroring: Mirroring | None = None,
    recipe: Recipe | None = None,
) -> FinetuningResult:
    """Train `network` in place on labelled cases.

    The control request `finish` ends the run early with a usable result.

    Args:
        cases: Training cases.
        network: Network to train. It ends with the last weights, the result has the averaged ones.
        plan: Settings of the run.
        device: Device to train on.
        folder: Folder of the training checkpoint.
        report: Receives progress, metrics and warnings.
        resume: True continues from the checkpoint in `folder`, if there is one.
        callback: Evaluates the network during training.
        mirroring: Whether the default recipe may mirror crops; None: it does not.
        recipe: Recipe to use instead of the default one.

    Raises:
        Cancelled: The run was cancelled.
        InputError: `snapshot_unfit`, when the checkpoint belongs to other cases or settings.
        HiEndMAEError: `loss_not_finite`.
    """
    network.to(device).train()
    freeze_encoder(network.layer_groups(), plan.encoder_rate <= 0)
    run_digest = digest_run(plan, cases)
    cases = [case.to(sampling_device(device)) for case in cases]
    if recipe is None:
        recipe = DefaultRecipe(cases, classes=network.classes, plan=plan, mirroring=mirroring)
    recipe.criterion.to(device)
    stored = _read_checkpoint_of_run(folder / CHECKPOINT_FILE, run_digest, report) if resume else None
    planned, fastest = _plan_steps(cases, recipe, network, plan=plan, device=device, stored=stored, report=report)
    run = _FinetuningRun(
        cases, recipe, network, plan=plan, device=device, planned=planned,
        checkpoint=folder / CHECKPOINT_FILE, digest=run_digest, fastest=fastest,
    )  # fmt: skip
    if stored:
        run.load(stored)
    run.train(report, callback)
    if run.result.seconds > _CHECKPOINT_SECONDS:
        run.save()  # a failure after the training, such as a full disk, does not lose it
    run.result.network.eval()
    return run.result


class _FinetuningRun:
    """State of a run: network, averaged weights and optimizer, and what its checkpoint stores of them."""

    def __init__(
        self,
        cases: Sequence[TrainingCase],
        recipe: Recipe,
        network: SegmentationNetwork,
        *,
        plan: FinetuningPlan,
        device: torch.device,
        planned: int,
        checkpoint: Path,
        digest: str,
        fastest: float,
    ) -> None:
        self.cases, self.recipe, self.network, self.plan, self.device = cases, recipe, network, plan, device
        self.checkpoint, self.digest, self.fastest = checkpoint, digest, fastest
        self.optimizer = build_optimizer(network, plan)
        self.averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(plan.ema))
        self.result = FinetuningResult(cast(SegmentationNetwork, self.averaged.module), planned=planned)

    @property
    def _modules(self) -> dict[str, nn.Module]:
        return {"network": self.network, "averaged": self.averaged}

    def load(self, values: Mapping[str, Any]) -> None:
        """Continue from the checkpoint, whose plain values are `values`."""
        load_checkpoint(self.checkpoint, self._modules, self.optimizer)
        self.result.steps, self.result.seconds = int(values["step"]), float(values["seconds"])
        self.result.losses = [(int(step), float(loss)) for step, loss in values["losses"]]

    def save(self) -> None:
        """Write the checkpoint. Its keys are stored names."""
        values = {
            "step": self.result.steps,
            "planned": self.result.planned,
            "seconds": self.result.seconds,
            "losses": self.result.losses,
            "fastest": self.fastest,
            "run": self.digest,
            "preset": self.plan.preset,
        }
        save_checkpoint(self.checkpoint, self._modules, self.optimizer, values)

    def train(self, report: Reporter, callback: TrainingCallback | None) -> None:
        """Take the remaining steps, until the run is done, finished early or over its budget."""
        result, planned = self.result, self.result.planned
        budget = BudgetMonitor(None if self.plan.steps else self.plan.seconds, self.fastest, report)
        clock, checkpoint_interval = RunClock(result.seconds), Interval(_CHECKPOINT_SECONDS)
        for step in range(result.steps, planned):
            loss, rate = self._take_step(step)
            result.steps = step + 1
            result.losses.append((step + 1, loss))
            result.seconds = clock.seconds
            report.progress("learning", step + 1, planned, loss=loss, learning_rate=rate)
            if report.finish_requested or budget.is_exceeded(result.seconds, step=result.steps, planned=planned):
                break
            self._validate(callback, seconds=clock.session_seconds)
            if checkpoint_interval.is_over:
                checkpoint_interval.restart()
                self.save()

    def _take_step(self, step: int) -> tuple[float, float]:
        """Take one step and update the average; return its loss and learning rate."""
        planned = self.result.planned
        warm_up = max(1, round(self.plan.warm_up * planned))
        rate = schedule_learning_rate(self.optimizer, step, planned, warm_up=warm_up)
        loss = train_step(
            self.cases, self.recipe, self.network, self.optimizer,
            step=step, done=step / planned, plan=self.plan, device=self.device,
        )  # fmt: skip
        if not np.isfinite(loss):
            raise HiEndMAEError(
                "loss_not_finite", f"The loss was {loss} at step {step}.", "Try another --seed, or --device cpu."
            )
        update_average(self.averaged, self.network, step)
        return loss, rate

    def _validate(self, callback: TrainingCallback | None, *, seconds: float) -> None:
        """Call the callback when it is due."""
        result, crop = self.result, self.plan.crop
        if callback and callback.due(result.steps, result.planned, seconds=seconds, crop=crop):
            callback.on_validation(self.averaged.module, step=result.steps, crop=crop, device=self.device)


def train_step(
    cases: Sequence[TrainingCase],
    recipe: Recipe,
    network: SegmentationNetwork,
    optimizer: torch.optim.Optimizer,
    *,
    step: int,
    done: float,
    plan: FinetuningPlan,
    device: torch.device,
) -> float:
    """Draw a batch and take one optimizer step.

    Args:
        cases: Training cases on the device that cuts the crops (`sampling_device`).
        recipe: Recipe of the run.
        network: Network in training mode on `device`.
        optimizer: Optimizer of its parameters.
        step: The step, counted from 0.
        done: Fraction of the run that is over, from 0 to 1.
        plan: Settings of the run.
        device: Device to train on.

    Returns:
        The loss before the step.
    """
    batch = draw_batch(cases, recipe, step=step, plan=plan)
    image, classes = batch.images.to(device), batch.classes.to(device)
    with autocast(device, smallest_edge=network.smallest_feature_edge(network.config, plan.crop)), CpuTrainingKernels():
        logits = network(image)
    loss = deep_supervision_loss(recipe.criterion, logits, classes, done=done, unknown=batch.unknown)
    loss.backward()
    if plan.clip is not None:
        torch.nn.utils.clip_grad_norm_(network.parameters(), plan.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def build_optimizer(network: SegmentationNetwork, plan: FinetuningPlan) -> torch.optim.Optimizer:
    """Return AdamW with the plan's rates: one for the convolutions, and one for the encoder or for each of its layers."""
    layers = network.layer_groups()
    rest = [parameter for group in layers if not group.is_encoder for parameter in group.parameters]
    groups = [{"params": rest, "lr": plan.learning_rate}]
    if plan.encoder_rate > 0:
        groups += layer_decay_groups(layers, plan.encoder_rate, decay=plan.layer_decay)
    return build_adamw(groups, learning_rate=plan.learning_rate, betas=(0.9, 0.999), weight_decay=plan.weight_decay)


def digest_run(plan: FinetuningPlan, cases: Sequence[TrainingCase]) -> str:
    """Return the digest that binds a checkpoint to a run: the plan's values, and voxels and unknown classes of the cases."""
    digest = hashlib.blake2b(plan.stored_text().encode(), digest_size=16)
    for case in cases:
        for tensor in (case.image, case.classes):
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        if case.unknown:
            digest.update(repr(case.unknown).encode())
    return digest.hexdigest()


def _read_checkpoint_of_run(path: Path, digest: str, report: Reporter) -> dict[str, Any] | None:
    """Return the plain values of a checkpoint, or None when it is absent; raise `InputError` for that of another run.

    Versions that stored no preset computed the voxels with other rounding, so that their digest cannot be compared.
    """
    values = read_checkpoint_values(path)
    if values and values.get("run") != digest and "preset" not in values:
        report.warning(
            "snapshot_unchecked",
            f"The checkpoint {path} is of an earlier version: whether it belongs to these scans and labels was not checked.",
            "If it does not, start again without --resume.",
        )
    elif values and values.get("run") != digest:
        raise InputError(
            "snapshot_unfit",
            f"The checkpoint {path} belongs to other scans, labels or settings.",
            "Resume with what the run was started with, or start again without --resume.",
        )
    return values


def _plan_steps(
    cases: Sequence[TrainingCase],
    recipe: Recipe,
    network: SegmentationNetwork,
    *,
    plan: FinetuningPlan,
    device: torch.device,
    stored: Mapping[str, Any] | None,
    report: Reporter,
) -> tuple[int, float]:
    """Return the steps of the run and the shortest time of a step in seconds (0 when unknown), and report them.

    A resumed run has the values of its checkpoint, and a short run of given steps is not timed.
    """
    if not plan.steps and not plan.seconds:
        raise ValueError("a plan needs steps or seconds")
    description = f"Training on {len(cases)} labelled scan{'s' if len(cases) > 1 else ''}"
    if stored:
        planned = int(stored["planned"])
        report.info(f"{description} in {planned} steps.")
        return planned, float(stored.get("fastest", 0.0))
    if plan.steps and plan.steps < _MIN_TIMED_RUN_STEPS:
        report.info(f"{description} in {plan.steps} steps.")
        return plan.steps, 0.0
    timing = _time_steps(cases, recipe, network, plan, device)
    planned = plan.steps or timing.steps_in(plan.seconds or 0.0)
    timing.log(report, steps=planned, description=description)
    return planned, timing.fastest


def _time_steps(
    cases: Sequence[TrainingCase],
    recipe: Recipe,
    network: SegmentationNetwork,
    plan: FinetuningPlan,
    device: torch.device,
) -> StepTiming:
    """Time a few steps of a temporary copy of the network."""
    trial = copy.deepcopy(network)
    optimizer = build_optimizer(trial, plan)
    return time_steps(
        lambda step: train_step(cases, recipe, trial, optimizer, step=step, done=0.0, plan=plan, device=device),
        device=device,
        budget=None if plan.steps else plan.seconds,
    )
