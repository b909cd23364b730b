"""The pretraining loop: reconstruct masked crops of unlabelled scans (paper sections 3 and 4.1)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import nn

from HiEndMAECore.data.crop_store import CropStore
from HiEndMAECore.errors import Cancelled, HiEndMAEError, InputError
from HiEndMAECore.networks.hi_end_mae import Reconstruction
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.runtime.devices import gradient_scaler
from HiEndMAECore.runtime.distributed import init_distributed

from .checkpoints import checkpoint_file, delete_old_checkpoints, load_checkpoint, newest_checkpoint, save_checkpoint
from .crop_sampling import CropSampler
from .loop import Interval, RunClock
from .monitor import NUM_VALIDATION_CROPS, ValidationCrops
from .objectives.base import PretrainingObjective
from .optimizer import build_adamw, weight_decay_groups
from .plans import PretrainingPlan
from .pretraining_steps import PretrainingSteps, sample_indices
from .training_log import StepRecord, TrainingLog, step_records

_MAX_NAMED_SCANS = 8  # in an error message
_VALIDATION_PAUSE = 50  # times the duration of a validation pass before the next one
_MAX_VALIDATION_BATCH = 8  # crops
_RESUME_ADVICE = "Continue the run with --resume."


@dataclass
class PretrainingResult:
    """Result of a pretraining run.

    Attributes:
        steps: Steps that are done.
        seconds: Time of the run.
        records: What was logged of each step.
        validation_losses: (step, loss on the fixed validation crops).
    """

    steps: int = 0
    seconds: float = 0.0
    records: list[StepRecord] = field(default_factory=list)
    validation_losses: list[tuple[int, float]] = field(default_factory=list)

    @property
    def losses(self) -> list[tuple[int, float]]:
        """(step, loss) of every step."""
        return [(record.step, record.loss) for record in self.records]


ValidationCallback = Callable[[PretrainingResult, ValidationCrops, Reconstruction, bool], None]


def pretrain(
    store: CropStore,
    model: PretrainingObjective,
    *,
    plan: PretrainingPlan,
    device: torch.device,
    folder: Path,
    report: Reporter,
    resume: bool = False,
    on_validation: ValidationCallback | None = None,
) -> PretrainingResult:
    """Train `model` in place.

    A cancelled run saves a checkpoint before it stops. With `resume`, or after `torchrun` has lost a process, the run
    continues from its newest checkpoint.

    Args:
        store: Store of preprocessed scans.
        model: Model of the pretraining objective.
        plan: Settings of the run.
        device: Device to train on.
        folder: Run directory, for checkpoints and the log.
        report: Receives progress, messages and warnings.
        resume: True continues from the newest checkpoint, if there is one.
        on_validation: Called by the main process as `on_validation(result, crops, reconstruction, saved)` after every
            validation, that is every `validation_minutes` and with every checkpoint. The reconstruction is of the first
            validation batch; `saved` is True when a checkpoint was written.

    Raises:
        Cancelled: The run was cancelled, after a checkpoint was saved.
        InputError: `snapshot_unfit`, when the checkpoint belongs to another store or other initial weights.
        HiEndMAEError: `loss_not_finite`, with the state before the failed step saved.
    """
    run = _PretrainingRun(
        store, model, plan=plan, device=device, folder=folder, report=report, on_validation=on_validation
    )
    if resume or run.processes.restarted:
        run.load_newest_checkpoint()
    run.open_log()
    try:
        run.train()
    finally:
        run.close()
    return run.result


class _PretrainingRun:
    """State of a run: model, optimizer, gradient scaler and log; checkpoints and validation."""

    def __init__(
        self,
        store: CropStore,
        model: PretrainingObjective,
        *,
        plan: PretrainingPlan,
        device: torch.device,
        folder: Path,
        report: Reporter,
        on_validation: ValidationCallback | None,
    ) -> None:
        self.store, self.model, self.plan, self.device = store, model, plan, device
        self.folder, self.report, self.on_validation = folder, report, on_validation
        self.processes = init_distributed(device)
        model.to(device).train()
        model.set_grad_checkpointing(plan.recompute)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = trained if plan.decay_all else weight_decay_groups(cast(nn.Module, model), plan.weight_decay)
        self.optimizer = build_adamw(
            groups, learning_rate=plan.learning_rate, betas=plan.betas, weight_decay=plan.weight_decay
        )
        self.scaler = gradient_scaler(device, plan.precision)
        self.sampler = CropSampler.for_model(store, model, plan.seed)
        self.result = PretrainingResult()
        self.log: TrainingLog | None = None
        self.steps: PretrainingSteps | None = None

    def load_newest_checkpoint(self) -> None:
        """Continue from the newest readable checkpoint, if there is one; raise `InputError` for that of another run."""
        path = newest_checkpoint(
            self.folder, on_damage=lambda e: self.report.warning(e.code, e.message, "An older one is used.")
        )
        if path is None:
            return
        values = load_checkpoint(path, {"model": cast(nn.Module, self.model)}, self.optimizer)
        if values.get("store", self.store.digest) != self.store.digest:
            message = f"The checkpoint {path} was trained on a store of other scans."
            raise InputError("snapshot_unfit", message, "Resume with the store that the run was started with.")
        if values.get("start", self.plan.initial_sha256) != self.plan.initial_sha256:
            message = f"The checkpoint {path} was trained from other initial weights."
            raise InputError("snapshot_unfit", message, "Resume with the --init that the run was started with.")
        self.result.steps, self.result.seconds = int(values["step"]), float(values["seconds"])
        self.scaler.load_state_dict(values["scaler"])
        self.report.info(f"Continuing from step {self.result.steps}.")

    def save_checkpoint(self) -> None:
        """Write a checkpoint and delete old ones. The keys are stored names."""
        values = {
            "step": self.result.steps,
            "seconds": self.result.seconds,
            "scaler": self.scaler.state_dict(),
            "store": self.store.digest,
            "start": self.plan.initial_sha256,
        }
        save_checkpoint(
            checkpoint_file(self.folder, self.result.steps),
            {"model": cast(nn.Module, self.model)},
            self.optimizer,
            values,
        )
        delete_old_checkpoints(self.folder, self.plan.max_checkpoints)

    def open_log(self) -> None:
        """Open the log in the main process, and choose the validation crops; a new run logs the trivial losses."""
        result = self.result
        if self.processes.is_main:
            self.log = TrainingLog(self.folder, first=result.steps, tensorboard=self.plan.tensorboard)
        self.validation_crops = _choose_validation_crops(self.store, self.model, self.plan)
        if self.log is None:
            return
        result.records = step_records(self.log.lines)
        result.validation_losses = [(e["step"], e["watch_loss"]) for e in self.log.lines if "watch_loss" in e]
        self.log.lines = []
        if not result.steps:
            zero, nearest = self.validation_crops.trivial_losses(self.model)
            self.log.write(step=0, zero_loss=zero, nearest_loss=nearest)
            self.report.info(
                f"Trivial losses to beat: {zero:.3f} by predicting the mean, {nearest:.3f} by copying the nearest patch."
            )

    def train(self) -> None:
        """Take the remaining steps. Every way out saves first."""
        self.steps = PretrainingSteps(
            self.model, self.plan, self.device, self.processes, self.optimizer, self.scaler, self.sampler
        )
        self.clock = RunClock(self.result.seconds)
        checkpoint_interval = Interval(self.plan.checkpoint_minutes * 60)
        validation_interval = Interval(self.plan.validation_minutes * 60)
        finished_early = False
        for record, cancelled, finished_early in self.steps.run(self.result.steps, self.report):
            if cancelled:
                self.validate(save=True)
                raise Cancelled(advice=_RESUME_ADVICE)
            if not math.isfinite(record.loss):
                raise self._save_and_describe_failure(record)
            self.steps.update_weights()
            self.result.steps = record.step
            if self.log:
                self.result.records.append(record)
                self.log.step(record)
            save = checkpoint_interval.is_over
            if save or validation_interval.is_over:
                validation_interval.restart()
                if save:
                    checkpoint_interval.restart()
                seconds = self.validate(save=save)
                validation_interval.seconds = max(self.plan.validation_minutes * 60, _VALIDATION_PAUSE * seconds)
            if finished_early:
                break
        # A request to cancel that arrives with the last step must not lose it: it is raised after saving.
        cancelled = not finished_early and self.steps.report_completion(self.report)
        self.validate(save=True)
        if cancelled:
            raise Cancelled(advice=_RESUME_ADVICE)

    def validate(self, *, save: bool) -> float:
        """Compute the validation loss, and save a checkpoint if asked to; returns the seconds that this took.

        Only the main process does so. Weights that are not finite are not saved, because earlier checkpoints are better.
        """
        self.result.seconds = self.clock.seconds
        started = time.monotonic()
        if not self.processes.is_main:
            return 0.0
        save = save and all(bool(parameter.isfinite().all()) for parameter in self.model.parameters())
        if save:
            self.save_checkpoint()
        loss, output = self.validation_crops.loss(self.model, self.device, self.plan.precision)
        self.result.validation_losses.append((self.result.steps, loss))
        if self.log:
            self.log.write(step=self.result.steps, watch_loss=loss)
        if self.on_validation:
            self.on_validation(self.result, self.validation_crops, output, save)
        return time.monotonic() - started

    def _save_and_describe_failure(self, record: StepRecord) -> HiEndMAEError:
        """Save the state before a step whose loss is not finite; return the error that names its scans."""
        self.validate(save=True)
        path = newest_checkpoint(self.folder, on_damage=lambda e: self.report.warning(e.code, e.message))
        names = self.sampler.names(sample_indices(self.result.steps, self.plan))
        more = f" and {len(names) - _MAX_NAMED_SCANS} more" if len(names) > _MAX_NAMED_SCANS else ""
        return HiEndMAEError(
            "loss_not_finite",
            f"The loss was {record.loss} at step {record.step}, on the scans "
            f"{', '.join(names[:_MAX_NAMED_SCANS])}{more}.",
            (f"The last good state is {path}. " if path else "")
            + "Check these scans, lower --learning-rate, or use --precision fp32.",
        )

    def close(self) -> None:
        """Stop the reading threads and close the log."""
        if self.steps:
            self.steps.close()
        if self.log:
            self.log.close()


def _choose_validation_crops(store: CropStore, model: PretrainingObjective, plan: PretrainingPlan) -> ValidationCrops:
    """Draw the validation crops, with another seed than the run's."""
    sampler = CropSampler.for_model(store, model, plan.seed + 1)
    size = max(1, min(_MAX_VALIDATION_BATCH, plan.batch_size // plan.accumulate))
    starts = range(0, NUM_VALIDATION_CROPS, size)
    return ValidationCrops(
        tuple(sampler.batch(range(start, min(start + size, NUM_VALIDATION_CROPS))) for start in starts)
    )
