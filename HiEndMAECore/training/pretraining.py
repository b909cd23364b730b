"""The pretraining loop: rebuild masked crops of unlabelled scans (paper sections 3 and 4.1).

Crop `i` of a run is drawn from a generator keyed by (seed, i): scan, place, augmentation and mask are the same for any
number of processes, and for a run that was stopped and resumed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from HiEndMAECore.devices import autocast
from HiEndMAECore.errors import Cancelled, HiEndMAEError
from HiEndMAECore.networks import HiEndMAE
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.volumes.crop_store import CropStore

from .augmentation import apply_flip, draw_flip, sample_generator
from .distribution import Processes, join_processes
from .optimiser import build_adamw, cosine_rate, set_rate
from .snapshots import load_snapshot, read_values, save_snapshot

CROPS_A_LAP = 8  # crops of one scan each time all are visited (paper section 4.1)
_POSITIVE = 0.75  # positive : negative = 3 : 1
SNAPSHOT = "snapshot.safetensors"


@dataclass(frozen=True, kw_only=True)
class PretrainingPlan:
    """Settings of a run; defaults are the paper's, with the released code's reading where they differ.

    batch_size counts crops over all processes and accumulation steps; warm_up is a share of the steps (4 K of 400 K).
    """

    steps: int
    batch_size: int = 192
    accumulate: int = 1
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    warm_up: float = 0.01
    snapshot_minutes: float = 10.0
    seed: int = 0


@dataclass
class PretrainingResult:
    """Steps done, seconds spent computing, and (step, loss) of every step that was logged."""

    steps: int = 0
    seconds: float = 0.0
    losses: list[tuple[int, float]] = field(default_factory=list)


def draw_sample(store: CropStore, index: int, *, seed: int, size: Sequence[int], patches: int) -> tuple[Tensor, Tensor]:
    """Sample `index` of the run: crop (C, *size) float32 and its permutation of patches (patches,) long."""
    rng = sample_generator(seed, index)
    scan = scan_of(index, len(store), seed)
    start = _draw_start(store, scan, size, rng)
    crop = apply_flip(store.crop(scan, start=start, size=size), draw_flip(rng, square=size[0] == size[1]))
    return torch.from_numpy(crop), torch.from_numpy(rng.random(patches).argsort())


def scan_of(index: int, scans: int, seed: int) -> int:
    """Which of `scans` sample `index` comes from: every lap takes 8 crops of each, in an order of its own.

    Crops are mixed over the whole lap, so that even a small batch sees several scans.
    """
    lap, place = divmod(index, CROPS_A_LAP * scans)
    return int(_order(seed, lap, scans)[place])


@lru_cache(maxsize=2)
def _order(seed: int, lap: int, scans: int) -> np.ndarray:
    return np.random.default_rng((seed, lap, scans)).permutation(CROPS_A_LAP * scans) // CROPS_A_LAP


def _draw_start(store: CropStore, scan: int, size: Sequence[int], rng: np.random.Generator) -> list[int]:
    """First voxel of a crop: around a tissue voxel three times of four, else anywhere; inside the scan where it fits."""
    shape = store.shape(scan)
    tissue = store.tissue(scan)
    if len(tissue) and rng.random() < _POSITIVE:
        centre = tissue[int(rng.integers(len(tissue)))]
    else:
        centre = [int(rng.integers(length)) for length in shape]
    starts = []
    for middle, wanted, there in zip(centre, size, shape):
        room = there - wanted
        low, high = (0, room) if room >= 0 else (room // 2, room // 2)  # a small scan sits in the middle of its crop
        starts.append(int(np.clip(int(middle) - wanted // 2, low, high)))
    return starts


def draw_batch(store: CropStore, indices: range, model: HiEndMAE, seed: int) -> tuple[Tensor, Tensor]:
    """(B, C, *size) crops and (B, L) permutations of the samples `indices`."""
    size = [edge * model.patch_size for edge in model.grid]
    patches = model.grid[0] * model.grid[1] * model.grid[2]
    samples = [draw_sample(store, index, seed=seed, size=size, patches=patches) for index in indices]
    return torch.stack([crop for crop, _ in samples]), torch.stack([order for _, order in samples])


def pretrain(
    store: CropStore,
    model: HiEndMAE,
    *,
    plan: PretrainingPlan,
    device: torch.device,
    folder: Path,
    report: Reporter,
    resume: bool = False,
    on_snapshot: Callable[[int, PretrainingResult], None] | None = None,
) -> PretrainingResult:
    """Train `model` in place. Snapshots go to `folder`; a cancelled run saves one before it leaves (`Cancelled`)."""
    processes = join_processes(device)
    model.to(device).train()
    optimiser = build_adamw(
        model.parameters(), learning_rate=plan.learning_rate, betas=plan.betas, weight_decay=plan.weight_decay
    )
    result, first = PretrainingResult(), 0
    snapshot = folder / SNAPSHOT
    if resume and read_values(snapshot) is not None:
        values = load_snapshot(snapshot, {"model": model}, optimiser)
        first = int(values["step"])
        result = PretrainingResult(first, float(values["seconds"]), [(int(s), float(v)) for s, v in values["losses"]])
        report.say(f"Going on from step {first}.")
    network = processes.wrap(model, device)
    before, started, saved = result.seconds, time.monotonic(), time.monotonic()

    def save() -> None:
        result.seconds = before + time.monotonic() - started
        if processes.leads:
            values = {
                "step": result.steps,
                "seconds": result.seconds,
                "losses": result.losses,
                "batch": plan.batch_size,
            }
            save_snapshot(snapshot, {"model": model}, optimiser, values)
            if on_snapshot:
                on_snapshot(result.steps, result)

    warm_up = max(1, round(plan.warm_up * plan.steps))
    for step in range(first, plan.steps):
        rate = set_rate(optimiser, cosine_rate(step, plan.steps, warm_up=warm_up))
        loss = _step(network, model, optimiser, store, step, plan, device, processes)
        if not np.isfinite(loss):
            save_broken = folder / "broken.safetensors"
            save_snapshot(save_broken, {"model": model}, optimiser, {"step": step})
            names = _scans_of(store, step, plan)
            raise HiEndMAEError(
                "loss_not_finite",
                f"The loss was {loss} at step {step}, on the scans {', '.join(names)}.",
                f"The last good state is {snapshot}; lower --learning-rate or leave these scans out.",
            )
        result.steps = step + 1
        result.losses.append((step + 1, loss))
        asked = report.finish_requested
        try:
            report.progress("pretraining", step + 1, plan.steps, loss=loss, learning_rate=rate)
            stop = False
        except Cancelled:
            stop = True
        if processes.agree(stop, device):
            save()
            raise Cancelled(advice="The run can go on with --resume.")
        if processes.agree(asked, device):
            break
        if time.monotonic() - saved > plan.snapshot_minutes * 60:
            save()
            saved = time.monotonic()
    save()
    return result


def _step(
    network: torch.nn.Module,
    model: HiEndMAE,
    optimiser: torch.optim.Optimizer,
    store: CropStore,
    step: int,
    plan: PretrainingPlan,
    device: torch.device,
    processes: Processes,
) -> float:
    """One optimiser step over `batch_size` crops; returns the mean loss of this process's crops."""
    mine = processes.share(range(step * plan.batch_size, (step + 1) * plan.batch_size))
    total = 0.0
    for part in range(plan.accumulate):
        volume, permutation = draw_batch(store, mine[part :: plan.accumulate], model, plan.seed)
        with autocast(device):
            loss = network(volume.to(device, non_blocking=True), permutation).loss / plan.accumulate
        loss.backward()
        total += float(loss.detach())
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return total


def _scans_of(store: CropStore, step: int, plan: PretrainingPlan) -> list[str]:
    """Names of the scans in the batch of `step`."""
    samples = range(step * plan.batch_size, (step + 1) * plan.batch_size)
    scans = {scan_of(index, len(store), plan.seed) for index in samples}
    return [store.manifest["scans"][scan]["name"] for scan in sorted(scans)]
