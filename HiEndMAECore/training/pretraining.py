"""The pretraining loop: rebuild masked crops of unlabelled scans (paper sections 3 and 4.1)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import nn

from HiEndMAECore.data.crop_store import CropStore
from HiEndMAECore.errors import Cancelled, HiEndMAEError, InputError
from HiEndMAECore.networks.hi_end_mae import Reconstruction
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.runtime.devices import autocast, gradient_scaler
from HiEndMAECore.runtime.distributed import DistributedContext, init_distributed

from .checkpoints import checkpoint_file, delete_old_checkpoints, load_checkpoint, newest_checkpoint, save_checkpoint
from .crop_sampling import Batch, CropSampler
from .monitor import NUM_VALIDATION_CROPS, ValidationCrops
from .objectives.base import PretrainingObjective
from .optimizer import build_adamw, weight_decay_groups
from .plans import PretrainingPlan
from .schedule import cosine_schedule, set_learning_rate
from .training_log import StepRecord, TrainingLog, step_records

_NAMED = 8  # scans in a message
_LOOKING = 50  # a look that takes a second comes 50 s after the last one at the earliest


@dataclass
class PretrainingResult:
    """Steps done, seconds spent computing, what was logged of each step, and (step, loss on the watched crops)."""

    steps: int = 0
    seconds: float = 0.0
    records: list[StepRecord] = field(default_factory=list)
    watched: list[tuple[int, float]] = field(default_factory=list)

    @property
    def losses(self) -> list[tuple[int, float]]:
        """(step, loss) of every step."""
        return [(record.step, record.loss) for record in self.records]


def pretrain(
    store: CropStore,
    model: PretrainingObjective,
    *,
    plan: PretrainingPlan,
    device: torch.device,
    folder: Path,
    report: Reporter,
    resume: bool = False,
    on_look: Callable[[PretrainingResult, ValidationCrops, Reconstruction, bool], None] | None = None,
) -> PretrainingResult:
    """Train `model` in place. Snapshots and the log go to `folder`; a cancelled run saves one before it leaves.

    on_look(result, watch, reconstruction, saved): called every `look_minutes`, and whenever a snapshot was `saved`, by the
    first of the processes; the reconstruction is of the watch's first batch.
    With `resume`, or after `torchrun` lost a process, the run goes on from its newest snapshot. Raises `Cancelled`, and
    `HiEndMAEError` ("loss_not_finite") with the state before the bad step saved.
    """
    processes = init_distributed(device)
    model.to(device).train()
    model.set_grad_checkpointing(plan.recompute)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = learning if plan.decay_all else weight_decay_groups(cast(nn.Module, model), plan.weight_decay)
    optimizer = build_adamw(groups, learning_rate=plan.learning_rate, betas=plan.betas, weight_decay=plan.weight_decay)
    scaler = gradient_scaler(device, plan.precision)
    result = PretrainingResult()
    if resume or processes.restarted:
        start = newest_checkpoint(
            folder, on_damage=lambda e: report.warning(e.code, e.message, "An older one is used.")
        )
        if start is not None:
            values = load_checkpoint(start, {"model": cast(nn.Module, model)}, optimizer)
            if values.get("store", store.digest) != store.digest:
                message = f"The snapshot {start} has learned from a store of other scans."
                raise InputError("snapshot_unfit", message, "Resume with the store it was started with.")
            if values.get("start", plan.start) != plan.start:
                message = f"The snapshot {start} comes from other starting weights."
                raise InputError("snapshot_unfit", message, "Resume with the --init it was started with.")
            result.steps, result.seconds = int(values["step"]), float(values["seconds"])
            scaler.load_state_dict(values["scaler"])
            report.info(f"Going on from step {result.steps}.")
    sampler = CropSampler.for_model(store, model, plan.seed)
    log = TrainingLog(folder, first=result.steps, tensorboard=plan.tensorboard) if processes.is_main else None
    watch = _watch(store, model, plan)
    if log:
        result.records = step_records(log.lines)
        result.watched = [(line["step"], line["watch_loss"]) for line in log.lines if "watch_loss" in line]
        log.lines = []
        if not result.steps:
            zero, nearest = watch.trivial_losses(model)
            log.write(step=0, zero_loss=zero, nearest_loss=nearest)
            report.info(
                f"To beat: a loss of {zero:.3f} by predicting nothing, {nearest:.3f} by copying what is nearest."
            )
    loop = _Loop(model, plan, device, processes, optimizer, scaler, sampler)
    before, started = result.seconds, time.monotonic()
    saved, next_look = started, started + plan.look_minutes * 60

    def look(*, save: bool) -> None:
        result.seconds = before + time.monotonic() - started
        if not processes.is_main:
            return
        if save and not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
            save = False  # a gradient that was no number: the snapshots that are there are the better ones
        if save:
            values = {"step": result.steps, "seconds": result.seconds, "scaler": scaler.state_dict()}
            values |= {"store": store.digest, "start": plan.start}
            save_checkpoint(checkpoint_file(folder, result.steps), {"model": cast(nn.Module, model)}, optimizer, values)
            delete_old_checkpoints(folder, plan.keep)
        loss, output = watch.loss(model, device, plan.precision)
        result.watched.append((result.steps, loss))
        if log:
            log.write(step=result.steps, watch_loss=loss)
        if on_look:
            on_look(result, watch, output, save)

    try:
        for record, stop, finish in loop.steps(result.steps, report):
            if stop:
                look(save=True)
                raise Cancelled(advice="The run can go on with --resume.")
            if not math.isfinite(record.loss):
                look(save=True)
                kept = newest_checkpoint(folder, on_damage=lambda error: report.warning(error.code, error.message))
                raise _not_finite(record, sampler.names(loop.indices(result.steps)), kept)
            loop.update()
            result.steps = record.step
            if log:
                result.records.append(record)
                log.step(record)
            now = time.monotonic()
            save = now - saved > plan.snapshot_minutes * 60
            if save or now > next_look:
                look(save=save)
                saved = now if save else saved
                looking = time.monotonic() - now
                next_look = now + max(plan.look_minutes * 60, _LOOKING * looking)
            if finish:
                break
        look(save=True)
    finally:
        loop.close()
        if log:
            log.close()
    return result


@dataclass
class _Loop:
    """One process's part of the run: forward and backward of its crops, then the step that all take."""

    model: PretrainingObjective
    plan: PretrainingPlan
    device: torch.device
    processes: DistributedContext
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    sampler: CropSampler

    def __post_init__(self) -> None:
        network: nn.Module = torch.compile(self.model) if self.plan.compile else self.model  # type: ignore[assignment]
        self.network = self.processes.wrap(network, self.device)
        self.batches: Iterator[Batch] = iter(())
        self.optimizer.zero_grad(set_to_none=True)

    def indices(self, step: int) -> range:
        """The samples of `step`, of all processes."""
        return range(step * self.plan.batch_size, (step + 1) * self.plan.batch_size)

    def steps(self, first: int, report: Reporter) -> Iterator[tuple[StepRecord, bool, bool]]:
        """For each step what it gave, with the gradients ready (`update` takes the step), and whether any process was
        told to stop or to finish. All processes see the same."""
        plan = self.plan
        warm_up = max(1, round(plan.steps / 100) if plan.warm_up is None else plan.warm_up)
        parts = (
            self.processes.share(self.indices(step))[part :: plan.accumulate]
            for step in range(first, plan.steps)
            for part in range(plan.accumulate)
        )
        self.batches = self.sampler.batches(parts, workers=plan.workers, pinned=self.device.type == "cuda")
        last: dict[str, float] = {}
        for step in range(first, plan.steps):
            started = time.monotonic()
            rate = set_learning_rate(self.optimizer, cosine_schedule(step, plan.steps, warm_up=warm_up))
            loss, waited = self._backward()
            stop = False
            try:
                report.progress("pretraining", step, plan.steps, **last)
            except Cancelled:
                stop = True
            message = torch.stack(
                [loss / self.processes.count, *torch.tensor([stop, report.finish_requested]).to(loss)]
            )
            mean, stops, finishes = self.processes.all_reduce_sum(
                message
            ).tolist()  # the one wait for the device in a step
            spent = time.monotonic() - started
            last = {"loss": mean, "learning_rate": rate}
            yield StepRecord(step + 1, mean, rate, plan.batch_size / spent, waited / spent), stops > 0, finishes > 0
        report.progress("pretraining", plan.steps, plan.steps, **last)

    def _backward(self) -> tuple[torch.Tensor, float]:
        """Gradients of this process's crops; returns their mean loss, on the device, and seconds spent waiting for them."""
        total, waited = torch.zeros((), device=self.device), 0.0
        for part in range(self.plan.accumulate):
            asked = time.monotonic()
            batch = next(self.batches)
            waited += time.monotonic() - asked
            volume, permutation, inside = batch.on(self.device)
            with self.processes.sync_context(self.network, last=part + 1 == self.plan.accumulate):
                with autocast(self.device, smallest_edge=min(self.model.grid), precision=self.plan.precision):
                    loss = self.network(volume, permutation, inside).loss / self.plan.accumulate
                self.scaler.scale(loss).backward()
            total += loss.detach()
        return total, waited

    def update(self) -> None:
        """The optimiser's step with the gradients at hand."""
        if self.plan.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def close(self) -> None:
        """Let the reading threads go."""
        if hasattr(self.batches, "close"):
            self.batches.close()


def _watch(store: CropStore, model: PretrainingObjective, plan: PretrainingPlan) -> ValidationCrops:
    """The watched crops, drawn with another seed than the run's."""
    sampler = CropSampler.for_model(store, model, plan.seed + 1)
    part = max(1, min(8, plan.batch_size // plan.accumulate))
    return ValidationCrops(
        tuple(
            sampler.batch(range(first, min(first + part, NUM_VALIDATION_CROPS)))
            for first in range(0, NUM_VALIDATION_CROPS, part)
        )
    )


def _not_finite(record: StepRecord, scans: list[str], snapshot: Path | None) -> HiEndMAEError:
    more = f" and {len(scans) - _NAMED} more" if len(scans) > _NAMED else ""
    return HiEndMAEError(
        "loss_not_finite",
        f"The loss was {record.loss} at step {record.step}, on the scans {', '.join(scans[:_NAMED])}{more}.",
        (f"The last good state is {snapshot}. " if snapshot else "")
        + "Look at these scans, lower --learning-rate, or use --precision fp32.",
    )
