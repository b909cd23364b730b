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
from monai.losses import DiceLoss
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from HiEndMAECore.devices import autocast
from HiEndMAECore.errors import HiEndMAEError, InputError
from HiEndMAECore.networks import UNETR, HybridUNETR
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.volumes.preparation import Grid
from HiEndMAECore.volumes.sides import Mirroring

from .augmentation import Deformation, cut_batch, draw_deformation, is_mirrored, mirrored, sample_generator
from .budget import Clock, Pace, measure_pace
from .optimiser import build_adamw, cosine_rate, decayed_by_depth, set_rate
from .snapshots import load_snapshot, read_values, save_snapshot

SNAPSHOT = "snapshot.safetensors"
_SNAPSHOT_SECONDS = 45.0  # a killed run loses less than a minute
_CENTRES = 50_000  # voxels of one structure to choose crop centres from
_ANYWHERE = 0.4  # share of crops centred anywhere in the body instead of on a structure
PRETRAINED_RATE = 1e-4  # `encoder_rate` of an encoder that has learned before; Testing/Benchmarks/results.md has why
_TOLD_STEPS = 100  # a shorter run is over before a probe would tell how long it takes


class Onlooker(Protocol):
    """Who looks at the network while it learns (`previewing.Preview`)."""

    def due(self, step: int, planned: int, *, seconds: float, crop: Sequence[int]) -> bool: ...
    def look(self, network: nn.Module, *, step: int, crop: Sequence[int], device: torch.device) -> None: ...


@dataclass(frozen=True, kw_only=True)
class FinetuningPlan:
    """Settings of a run.

    crop: voxels (H, W, D). learning_rate is of the convolutions; the encoder's is `encoder_rate`, as suits one that starts
    from nothing (`PRETRAINED_RATE` suits one that does not); 0 freezes it. Either `steps` is given, or `seconds`, from
    which a probe makes steps once. ema: decay of the averaged weights that are kept.
    layer_decay: each block of the encoder learns at this share of the rate of the one after it; 1 is one rate for all.
    mirrored: share of crops that are mirrored where the labels allow it. clip: the gradients' largest norm.
    """

    crop: tuple[int, int, int]
    steps: int | None = None
    seconds: float | None = None
    batch_size: int = 1
    learning_rate: float = 4e-3
    encoder_rate: float = 1e-3
    layer_decay: float = 1.0
    weight_decay: float = 1e-5
    warm_up: float = 0.05
    ema: float = 0.99
    mirrored: float = 0.5
    clip: float | None = 1.0
    seed: int = 0


@dataclass(frozen=True)
class TeachingScan:
    """One labelled scan on the network's grid: image (C, H, W, D) float32 in [0, 1]; classes (H, W, D) int16, 0 is
    background and i + 1 the model's i-th structure. grid: where it lies, for whoever brings a result home."""

    name: str
    image: Tensor
    classes: Tensor
    grid: Grid | None = None


@dataclass
class FinetuningResult:
    """The averaged network, steps done of those planned, seconds spent, and (step, loss) along the way."""

    network: UNETR | HybridUNETR
    steps: int = 0
    planned: int = 0
    seconds: float = 0.0
    losses: list[tuple[int, float]] = field(default_factory=list)

    def curve(self, most: int = 200) -> list[list[float]]:
        """At most `most` (step, mean loss) pairs: enough to draw."""
        width = max(1, -(-len(self.losses) // most))
        groups = [self.losses[first : first + width] for first in range(0, len(self.losses), width)]
        return [[group[-1][0], round(sum(loss for _, loss in group) / len(group), 4)] for group in groups]


class Criterion(nn.Module):
    """Dice over the whole batch plus weighted cross-entropy: logits (B, K, H, W, D), classes (B, 1, H, W, D) -> scalar.

    Whole batch: a structure that is missing from one crop of a tiny batch must not look like a failure. Weights: at the
    start the inverse square root of each class's share of voxels, then fading to none at half of the run, for with them
    small structures are found everywhere in the end. Without any the background wins first and small structures
    stay at exactly zero for hundreds of steps (demo patients at 6 mm, step 200 of 250: mean Dice 0.46 without, 0.73 with).
    """

    def __init__(self, scans: Sequence[TeachingScan], *, classes: int) -> None:
        super().__init__()
        self.dice = DiceLoss(
            include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=1e-5, smooth_dr=1e-5
        )
        counts = torch.stack([torch.bincount(scan.classes.flatten().long(), minlength=classes) for scan in scans])
        shares = counts.sum(0).double() / counts.sum()
        self.register_buffer("shares", shares.clamp(min=1e-6).float(), persistent=False)

    shares: Tensor

    def forward(self, logits: Tensor, classes: Tensor, *, done: float) -> Tensor:
        """`done`: share of the run that is over, 0 to 1."""
        weights = self.shares ** (-0.5 * max(0.0, 1 - 2 * done))
        weights = weights / (weights * self.shares).sum()
        return self.dice(logits, classes) + F.cross_entropy(logits, classes[:, 0].long(), weights)


class CropCentres:
    """Where crops are centred: on a structure drawn evenly among those there, or anywhere in the body."""

    def __init__(self, scans: Sequence[TeachingScan], *, seed: int) -> None:
        rng = np.random.default_rng((seed, len(scans)))
        self._places: dict[int, list[tuple[int, np.ndarray]]] = {}
        for index, scan in enumerate(scans):
            classes = scan.classes.cpu().numpy()
            body = (scan.image[0] > 0).cpu().numpy()
            for value in (0, *np.unique(classes[classes > 0]).tolist()):
                found = np.argwhere(classes == value if value else body)
                if len(found) > _CENTRES:
                    found = rng.choice(found, _CENTRES, replace=False)
                if len(found):
                    self._places.setdefault(value, []).append((index, found))
        self._structures = sorted(value for value in self._places if value)

    def draw(self, rng: np.random.Generator, crop: Sequence[int]) -> tuple[int, np.ndarray]:
        """(index of the scan, centre voxel (3,) float); the centre is moved by up to a quarter of the crop."""
        anywhere = 0 in self._places and rng.random() < _ANYWHERE
        value = 0 if anywhere else int(rng.choice(self._structures))
        scan, places = self._places[value][int(rng.integers(len(self._places[value])))]
        return scan, places[int(rng.integers(len(places)))] + rng.uniform(-0.25, 0.25, 3) * np.array(crop)


class Method(Protocol):
    """What a recipe decides beside the plan's numbers: the crops, their changes and the loss (`OurMethod`, `PaperMethod`).

    criterion: (logits, classes, done=share of the run) -> scalar. swaps: pairs of classes that mirrored crops exchange.
    """

    criterion: nn.Module
    swaps: tuple[tuple[int, int], ...]

    def draw(self, index: int, crop: Sequence[int]) -> tuple[int, np.ndarray, Deformation]: ...


class OurMethod:
    """Crops evenly around all structures, changed strongly, mirrored where the labels allow it."""

    def __init__(
        self, scans: Sequence[TeachingScan], *, classes: int, plan: FinetuningPlan, mirroring: Mirroring | None = None
    ) -> None:
        self.seed = plan.seed
        self.centres = CropCentres(scans, seed=plan.seed)
        self.criterion: nn.Module = Criterion(scans, classes=classes)
        self.swaps = mirroring.swaps if mirroring else ()
        self.mirrored = plan.mirrored if mirroring and mirroring.allowed else 0.0

    def draw(self, index: int, crop: Sequence[int]) -> tuple[int, np.ndarray, Deformation]:
        """Crop `index` of the run: (scan, centre, change)."""
        rng = sample_generator(self.seed, index)
        scan, centre = self.centres.draw(rng, crop)
        change = draw_deformation(rng, crop)
        return scan, centre, mirrored(change) if self.mirrored and rng.random() < self.mirrored else change


def draw_batch(
    scans: Sequence[TeachingScan], method: Method, *, step: int, plan: FinetuningPlan
) -> tuple[Tensor, Tensor]:
    """Images (B, C, *crop) and classes (B, 1, *crop) of step `step`: everything is drawn first, then cut at once."""
    first = step * plan.batch_size
    drawn = [method.draw(index, plan.crop) for index in range(first, first + plan.batch_size)]
    like = scans[0]
    images = like.image.new_empty((len(drawn), len(like.image), *plan.crop))
    targets = like.classes.new_empty((len(drawn), 1, *plan.crop))
    for scan in sorted({scan for scan, _, _ in drawn}):
        rows = [row for row, (of, _, _) in enumerate(drawn) if of == scan]
        centres, changes = [drawn[row][1] for row in rows], [drawn[row][2] for row in rows]
        images[rows], targets[rows, 0] = cut_batch(scans[scan].image, scans[scan].classes, centres, plan.crop, changes)
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
    scans: Sequence[TeachingScan],
    network: UNETR | HybridUNETR,
    *,
    plan: FinetuningPlan,
    device: torch.device,
    folder: Path,
    report: Reporter,
    resume: bool = False,
    preview: Onlooker | None = None,
    mirroring: Mirroring | None = None,
    method: Method | None = None,
) -> FinetuningResult:
    """Train `network` on `scans`; it keeps the last weights, the result also holds the averaged ones.
    Snapshots go to `folder`, `preview` looks on.

    mirroring: what the labels allow (None: no crop is mirrored). method: another recipe than ours.
    `finish` ends early with a usable result; `cancel` raises `Cancelled`.
    """
    network.to(device).train()
    network.encoder.requires_grad_(plan.encoder_rate > 0)
    mark = _mark_of(plan, scans)
    scans = [TeachingScan(scan.name, scan.image.to(device), scan.classes.to(device)) for scan in scans]
    if method is None:
        method = OurMethod(scans, classes=network.classes, plan=plan, mirroring=mirroring)
    method.criterion.to(device)
    snapshot = folder / SNAPSHOT
    values = read_values(snapshot) if resume else None
    if values and values.get("run") != mark:
        raise InputError(
            "snapshot_unfit",
            f"The snapshot {snapshot} is of other scans, labels or settings.",
            "Resume with what it was started with, or start anew without --resume.",
        )
    budget = None if plan.steps else plan.seconds
    what = f"Learning from {len(scans)} labelled scan{'s' if len(scans) > 1 else ''}"
    pace = None if values or (plan.steps and plan.steps < _TOLD_STEPS) else _probe(scans, method, network, plan, device)
    planned = int(values["planned"]) if values else plan.steps or _steps_in(budget, pace)
    if pace:
        pace.tell(report, steps=planned, what=what)
    else:
        report.say(f"{what} in {planned} steps.")
    fastest = pace.fastest if pace else float(values.get("fastest", 0.0)) if values else 0.0
    clock = Clock(budget, fastest, report)

    optimiser = _optimiser(network, plan)
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(plan.ema))
    result = FinetuningResult(cast(UNETR, averaged.module), planned=planned)
    if values:
        load_snapshot(snapshot, {"network": network, "averaged": averaged}, optimiser)
        result.steps, before = int(values["step"]), float(values["seconds"])
        result.losses, result.seconds = [(int(step), float(loss)) for step, loss in values["losses"]], before
    else:
        before = 0.0

    def save() -> None:
        told = {"step": result.steps, "planned": planned, "seconds": result.seconds, "losses": result.losses}
        told |= {"fastest": fastest, "run": mark}
        save_snapshot(snapshot, {"network": network, "averaged": averaged}, optimiser, told)

    started = saved = time.monotonic()
    warm_up = max(1, round(plan.warm_up * planned))
    for step in range(result.steps, planned):
        rate = set_rate(optimiser, cosine_rate(step, planned, warm_up=warm_up))
        loss = _step(scans, method, network, optimiser, step=step, done=step / planned, plan=plan, device=device)
        if not np.isfinite(loss):
            raise HiEndMAEError(
                "loss_not_finite", f"The loss was {loss} at step {step}.", "Try another --seed, or --device cpu."
            )
        _average(averaged, network, step)
        result.steps = step + 1
        result.losses.append((step + 1, loss))
        now = time.monotonic()
        result.seconds = before + now - started
        report.progress("learning", step + 1, planned, loss=loss, learning_rate=rate)
        if report.finish_requested or clock.over(result.seconds, step=result.steps, planned=planned):
            break
        if preview and preview.due(result.steps, planned, seconds=now - started, crop=plan.crop):
            preview.look(averaged.module, step=result.steps, crop=plan.crop, device=device)
        if now - saved > _SNAPSHOT_SECONDS:
            saved = now
            save()
    if result.seconds > _SNAPSHOT_SECONDS:
        save()  # what comes after learning may fail, too
    result.network.eval()
    return result


def _mark_of(plan: FinetuningPlan, scans: Sequence[TeachingScan]) -> str:
    """What a snapshot must have in common with a run that goes on from it: the plan, and every voxel."""
    digest = hashlib.blake2b(repr(plan).encode(), digest_size=16)
    for scan in scans:
        for part in (scan.image, scan.classes):
            digest.update(part.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _optimiser(network: UNETR | HybridUNETR, plan: FinetuningPlan) -> torch.optim.Optimizer:
    encoder = list(network.encoder.parameters())
    inside = {id(parameter) for parameter in encoder}
    rest = [parameter for parameter in network.parameters() if id(parameter) not in inside]
    groups = [{"params": rest, "lr": plan.learning_rate}]
    if plan.encoder_rate > 0:
        groups += decayed_by_depth(network.encoder, plan.encoder_rate, decay=plan.layer_decay)
    return build_adamw(groups, learning_rate=plan.learning_rate, betas=(0.9, 0.999), weight_decay=plan.weight_decay)


def _step(
    scans: Sequence[TeachingScan],
    method: Method,
    network: UNETR | HybridUNETR,
    optimiser: torch.optim.Optimizer,
    *,
    step: int,
    done: float,
    plan: FinetuningPlan,
    device: torch.device,
) -> float:
    image, classes = draw_batch(scans, method, step=step, plan=plan)
    with autocast(device, smallest_edge=min(plan.crop) // network.encoder.patch_size):
        logits = network(image)
    loss = method.criterion(logits.float(), classes, done=done)
    loss.backward()
    if plan.clip is not None:
        torch.nn.utils.clip_grad_norm_(network.parameters(), plan.clip)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return float(loss.detach())


def _average(averaged: AveragedModel, network: UNETR | HybridUNETR, step: int) -> None:
    """Early steps are noise: until step 50 the average is the network itself."""
    if step < 50:
        averaged.n_averaged.zero_()
    averaged.update_parameters(network)


def _probe(
    scans: Sequence[TeachingScan],
    method: Method,
    network: UNETR | HybridUNETR,
    plan: FinetuningPlan,
    device: torch.device,
) -> Pace:
    """What a step costs, from a few steps of a throw-away copy."""
    trial = copy.deepcopy(network)
    optimiser = _optimiser(trial, plan)
    return measure_pace(
        lambda step: _step(scans, method, trial, optimiser, step=step, done=0.0, plan=plan, device=device),
        device=device,
        budget=None if plan.steps else plan.seconds,
    )


def _steps_in(budget: float | None, pace: Pace | None) -> int:
    if not budget or not pace:
        raise ValueError("a plan needs steps or seconds")
    return pace.steps_in(budget)
