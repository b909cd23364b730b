"""The steps of the pretraining loop in one of possibly many processes: gradients, exchange and weight update."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from HiEndMAECore.errors import Cancelled
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.runtime.devices import autocast
from HiEndMAECore.runtime.distributed import DistributedContext

from .crop_sampling import Batch, CropSampler
from .loop import schedule_learning_rate
from .objectives.base import PretrainingObjective
from .plans import PretrainingPlan
from .training_log import StepRecord


@dataclass
class PretrainingSteps:
    """Steps of one process: forward and backward pass of its crops, then the update that all processes take.

    Attributes:
        model: Model of the pretraining objective, in training mode on `device`.
        plan: Settings of the run.
        device: Device to train on.
        processes: All processes of the run.
        optimizer: Optimizer of the model's parameters.
        scaler: Gradient scaler, which is active for fp16.
        sampler: Sampler of the crops.
    """

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
        self.latest: dict[str, float] = {}
        self.optimizer.zero_grad(set_to_none=True)

    def run(self, first: int, report: Reporter) -> Iterator[tuple[StepRecord, bool, bool]]:
        """Yield each step when its gradients are ready; `update_weights` then takes the step.

        Args:
            first: Steps that are done.
            report: Receives the progress of the stage `pretraining`.

        Yields:
            The record of the step, and whether any process was asked to cancel or to finish. All processes get the same.
        """
        plan = self.plan
        warm_up = max(1, round(plan.steps / 100) if plan.warm_up is None else plan.warm_up)
        parts = (
            self.processes.shard(sample_indices(step, plan))[part :: plan.accumulate]
            for step in range(first, plan.steps)
            for part in range(plan.accumulate)
        )
        self.batches = self.sampler.batches(parts, workers=plan.workers, pinned=self.device.type == "cuda")
        for step in range(first, plan.steps):
            started = time.monotonic()
            rate = schedule_learning_rate(self.optimizer, step, plan.steps, warm_up=warm_up)
            loss, waited = self._compute_gradients()
            cancelled = self._report_progress(report, step)
            requests = torch.tensor([cancelled, report.finish_requested]).to(loss)
            # Reading the reduced values is the only time in a step that the device is waited for.
            reduced = self.processes.all_reduce_sum(torch.stack([loss / self.processes.world_size, *requests]))
            mean, cancels, finishes = reduced.tolist()
            seconds = time.monotonic() - started
            self.latest = {"loss": mean, "learning_rate": rate}
            record = StepRecord(step + 1, mean, rate, plan.batch_size / seconds, waited / seconds)
            yield record, cancels > 0, finishes > 0

    def report_completion(self, report: Reporter) -> bool:
        """Report that all steps are done; return True when the run was asked to cancel."""
        return self._report_progress(report, self.plan.steps)

    def _report_progress(self, report: Reporter, step: int) -> bool:
        try:
            report.progress("pretraining", step, self.plan.steps, **self.latest)
        except Cancelled:
            return True
        return False

    def _compute_gradients(self) -> tuple[torch.Tensor, float]:
        """Run forward and backward on this process's crops; return their mean loss and the seconds of waiting for them."""
        total, waited = torch.zeros((), device=self.device), 0.0
        for part in range(self.plan.accumulate):
            requested = time.monotonic()
            batch = next(self.batches)
            waited += time.monotonic() - requested
            volume, permutation, valid_mask = batch.to(self.device)
            with self.processes.sync_context(self.network, last=part + 1 == self.plan.accumulate):
                with autocast(self.device, smallest_edge=min(self.model.grid), precision=self.plan.precision):
                    loss = self.network(volume, permutation, valid_mask).loss / self.plan.accumulate
                self.scaler.scale(loss).backward()
            total += loss.detach()
        return total, waited

    def update_weights(self) -> None:
        """Take the optimizer step with the computed gradients."""
        if self.plan.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def close(self) -> None:
        """Stop the threads that read crops ahead."""
        if hasattr(self.batches, "close"):
            self.batches.close()


def sample_indices(step: int, plan: PretrainingPlan) -> range:
    """Return the samples of `step`, counted from 0, over all processes."""
    return range(step * plan.batch_size, (step + 1) * plan.batch_size)
