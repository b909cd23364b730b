"""The fine-tuning loop: one to a few labelled scans, held on the device, and a clock (paper section 4.1, ours in the rest).

No workers and no disk: every crop is cut out of the whole scan with its rotation, scaling and bend in one interpolation.
Step `i` draws from generators keyed by (seed, i), so that a resumed run goes on as if it had never stopped.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from HiEndMAECore.errors import HiEndMAEError, InputError
from HiEndMAECore.networks import SegmentationNetwork
from HiEndMAECore.preprocessing.laterality import Mirroring
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.runtime.devices import autocast

from .augmentation import (
    Augmentation,
    crop_batch_augmented,
    draw_augmentation,
    is_mirrored,
    mirror_augmentation,
    sample_generator,
)
from .checkpoints import load_checkpoint, read_checkpoint_values, save_checkpoint
from .deep_supervision import deep_supervision_loss
from .ema import update_average
from .foreground_sampling import ForegroundSampler
from .losses import WeightedDiceCELoss
from .optimizer import build_adamw, freeze_encoder, layer_decay_groups
from .plans import FinetuningPlan
from .schedule import cosine_schedule, set_learning_rate
from .time_budget import BudgetMonitor, StepTiming, time_steps
from .training_cases import TrainingCase

CHECKPOINT_FILE = "snapshot.safetensors"
_CHECKPOINT_SECONDS = 45.0  # a killed run loses less than a minute
_TIMED_STEPS = 100  # a shorter run is over before a probe would tell how long it takes


class TrainingCallback(Protocol):
    """Who looks at the network while it learns (`previewing.Preview`)."""

    def due(self, step: int, planned: int, *, seconds: float, crop: Sequence[int]) -> bool: ...
    def look(self, network: nn.Module, *, step: int, crop: Sequence[int], device: torch.device) -> None: ...


@dataclass
class FinetuningResult:
    """The averaged network, steps done of those planned, seconds spent, and (step, loss) along the way."""

    network: SegmentationNetwork
    steps: int = 0
    planned: int = 0
    seconds: float = 0.0
    losses: list[tuple[int, float]] = field(default_factory=list)

    def curve(self, most: int = 200) -> list[list[float]]:
        """At most `most` (step, mean loss) pairs: enough to draw."""
        width = max(1, -(-len(self.losses) // most))
        groups = [self.losses[first : first + width] for first in range(0, len(self.losses), width)]
        return [[group[-1][0], round(sum(loss for _, loss in group) / len(group), 4)] for group in groups]


class Recipe(Protocol):
    """What a recipe decides beside the plan's numbers: the crops, their changes and the loss (`OurMethod`, `PaperMethod`).

    criterion: (logits, classes, done=share of the run) -> scalar. swaps: pairs of classes that mirrored crops exchange.
    """

    criterion: nn.Module
    swaps: tuple[tuple[int, int], ...]

    def draw(self, index: int, crop: Sequence[int]) -> tuple[int, np.ndarray, Augmentation]: ...


class DefaultRecipe:
    """Crops evenly around all structures, changed strongly, mirrored where the labels allow it."""

    def __init__(
        self, scans: Sequence[TrainingCase], *, classes: int, plan: FinetuningPlan, mirroring: Mirroring | None = None
    ) -> None:
        self.seed = plan.seed
        self.centers = ForegroundSampler(scans, seed=plan.seed)
        self.criterion: nn.Module = WeightedDiceCELoss(scans, classes=classes)
        self.swaps = mirroring.swaps if mirroring else ()
        self.mirrored = plan.mirrored if mirroring and mirroring.allowed else 0.0

    def draw(self, index: int, crop: Sequence[int]) -> tuple[int, np.ndarray, Augmentation]:
        """Crop `index` of the run: (scan, centre, change)."""
        rng = sample_generator(self.seed, index)
        scan, center = self.centers.draw(rng, crop)
        change = draw_augmentation(rng, crop)
        return scan, center, mirror_augmentation(change) if self.mirrored and rng.random() < self.mirrored else change


def draw_batch(
    scans: Sequence[TrainingCase], method: Recipe, *, step: int, plan: FinetuningPlan
) -> tuple[Tensor, Tensor]:
    """Images (B, C, *crop) and classes (B, 1, *crop) of step `step`: everything is drawn first, then cut at once."""
    first = step * plan.batch_size
    drawn = [method.draw(index, plan.crop) for index in range(first, first + plan.batch_size)]
    like = scans[0]
    images = like.image.new_empty((len(drawn), len(like.image), *plan.crop))
    targets = like.classes.new_empty((len(drawn), 1, *plan.crop))
    for scan in sorted({scan for scan, _, _ in drawn}):
        rows = [row for row, (of, _, _) in enumerate(drawn) if of == scan]
        centers, changes = [drawn[row][1] for row in rows], [drawn[row][2] for row in rows]
        images[rows], targets[rows, 0] = crop_batch_augmented(
            scans[scan].image, scans[scan].classes, centers, plan.crop, changes
        )
    if method.swaps:
        flipped = [row for row, (_, _, change) in enumerate(drawn) if is_mirrored(change)]
        targets[flipped] = swap_classes(targets[flipped], method.swaps)
    return images, targets


def swap_classes(classes: Tensor, swaps: Sequence[tuple[int, int]]) -> Tensor:
    """`classes` with each pair's values exchanged."""
    swapped = classes.clone()
    for one, other in swaps:
        swapped[classes == one] = other
        swapped[classes == other] = one
    return swapped


def finetune(
    scans: Sequence[TrainingCase],
    network: SegmentationNetwork,
    *,
    plan: FinetuningPlan,
    device: torch.device,
    folder: Path,
    report: Reporter,
    resume: bool = False,
    preview: TrainingCallback | None = None,
    mirroring: Mirroring | None = None,
    method: Recipe | None = None,
) -> FinetuningResult:
    """Train `network` on `scans`; it keeps the last weights, the result also holds the averaged ones.
    Snapshots go to `folder`, `preview` looks on.

    mirroring: what the labels allow (None: no crop is mirrored). method: another recipe than ours.
    `finish` ends early with a usable result; `cancel` raises `Cancelled`.
    """
    network.to(device).train()
    freeze_encoder(network.layer_groups(), plan.encoder_rate <= 0)
    mark = _mark_of(plan, scans)
    scans = [TrainingCase(scan.name, scan.image.to(device), scan.classes.to(device)) for scan in scans]
    if method is None:
        method = DefaultRecipe(scans, classes=network.classes, plan=plan, mirroring=mirroring)
    method.criterion.to(device)
    snapshot = folder / CHECKPOINT_FILE
    values = read_checkpoint_values(snapshot) if resume else None
    if values and values.get("run") != mark:
        raise InputError(
            "snapshot_unfit",
            f"The snapshot {snapshot} is of other scans, labels or settings.",
            "Resume with what it was started with, or start anew without --resume.",
        )
    budget = None if plan.steps else plan.seconds
    what = f"Learning from {len(scans)} labelled scan{'s' if len(scans) > 1 else ''}"
    pace = (
        None if values or (plan.steps and plan.steps < _TIMED_STEPS) else _probe(scans, method, network, plan, device)
    )
    planned = int(values["planned"]) if values else plan.steps or _steps_in(budget, pace)
    if pace:
        pace.tell(report, steps=planned, what=what)
    else:
        report.info(f"{what} in {planned} steps.")
    fastest = pace.fastest if pace else float(values.get("fastest", 0.0)) if values else 0.0
    clock = BudgetMonitor(budget, fastest, report)

    optimizer = _build_optimizer(network, plan)
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(plan.ema))
    result = FinetuningResult(cast(SegmentationNetwork, averaged.module), planned=planned)
    if values:
        load_checkpoint(snapshot, {"network": network, "averaged": averaged}, optimizer)
        result.steps, before = int(values["step"]), float(values["seconds"])
        result.losses, result.seconds = [(int(step), float(loss)) for step, loss in values["losses"]], before
    else:
        before = 0.0

    def save() -> None:
        message = {"step": result.steps, "planned": planned, "seconds": result.seconds, "losses": result.losses}
        message |= {"fastest": fastest, "run": mark}
        save_checkpoint(snapshot, {"network": network, "averaged": averaged}, optimizer, message)

    started = saved = time.monotonic()
    warm_up = max(1, round(plan.warm_up * planned))
    for step in range(result.steps, planned):
        rate = set_learning_rate(optimizer, cosine_schedule(step, planned, warm_up=warm_up))
        loss = _step(scans, method, network, optimizer, step=step, done=step / planned, plan=plan, device=device)
        if not np.isfinite(loss):
            raise HiEndMAEError(
                "loss_not_finite", f"The loss was {loss} at step {step}.", "Try another --seed, or --device cpu."
            )
        update_average(averaged, network, step)
        result.steps = step + 1
        result.losses.append((step + 1, loss))
        now = time.monotonic()
        result.seconds = before + now - started
        report.progress("learning", step + 1, planned, loss=loss, learning_rate=rate)
        if report.finish_requested or clock.over(result.seconds, step=result.steps, planned=planned):
            break
        if preview and preview.due(result.steps, planned, seconds=now - started, crop=plan.crop):
            preview.look(averaged.module, step=result.steps, crop=plan.crop, device=device)
        if now - saved > _CHECKPOINT_SECONDS:
            saved = now
            save()
    if result.seconds > _CHECKPOINT_SECONDS:
        save()  # what comes after learning may fail, too
    result.network.eval()
    return result


def _mark_of(plan: FinetuningPlan, scans: Sequence[TrainingCase]) -> str:
    """What a snapshot must have in common with a run that goes on from it: the plan, and every voxel."""
    digest = hashlib.blake2b(repr(plan).encode(), digest_size=16)
    for scan in scans:
        for part in (scan.image, scan.classes):
            digest.update(part.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _build_optimizer(network: SegmentationNetwork, plan: FinetuningPlan) -> torch.optim.Optimizer:
    layers = network.layer_groups()
    rest = [parameter for group in layers if not group.is_encoder for parameter in group.parameters]
    groups = [{"params": rest, "lr": plan.learning_rate}]
    if plan.encoder_rate > 0:
        groups += layer_decay_groups(layers, plan.encoder_rate, decay=plan.layer_decay)
    return build_adamw(groups, learning_rate=plan.learning_rate, betas=(0.9, 0.999), weight_decay=plan.weight_decay)


def _step(
    scans: Sequence[TrainingCase],
    method: Recipe,
    network: SegmentationNetwork,
    optimizer: torch.optim.Optimizer,
    *,
    step: int,
    done: float,
    plan: FinetuningPlan,
    device: torch.device,
) -> float:
    image, classes = draw_batch(scans, method, step=step, plan=plan)
    with autocast(device, smallest_edge=network.smallest_feature_edge(network.config, plan.crop)):
        logits = network(image)
    loss = deep_supervision_loss(method.criterion, logits, classes, done=done)
    loss.backward()
    if plan.clip is not None:
        torch.nn.utils.clip_grad_norm_(network.parameters(), plan.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def _probe(
    scans: Sequence[TrainingCase],
    method: Recipe,
    network: SegmentationNetwork,
    plan: FinetuningPlan,
    device: torch.device,
) -> StepTiming:
    """What a step costs, from a few steps of a throw-away copy."""
    trial = copy.deepcopy(network)
    optimizer = _build_optimizer(trial, plan)
    return time_steps(
        lambda step: _step(scans, method, trial, optimizer, step=step, done=0.0, plan=plan, device=device),
        device=device,
        budget=None if plan.steps else plan.seconds,
    )


def _steps_in(budget: float | None, pace: StepTiming | None) -> int:
    if not budget or not pace:
        raise ValueError("a plan needs steps or seconds")
    return pace.steps_in(budget)
