"""Small scans, networks and reporters for the tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from stores import PREPARATION

from HiEndMAECore.data.crop_store import CropStore
from HiEndMAECore.data.store_writer import write_manifest, write_scan
from HiEndMAECore.networks import UNETR, HiEndMAE
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.training import finetuning, pretraining
from HiEndMAECore.training.plans import FinetuningPlan, PretrainingPlan
from HiEndMAECore.training.training_cases import TrainingCase

CPU = torch.device("cpu")


class RequestAt(Reporter):
    """A reporter that receives the control request "finish" or "cancel" once `step` steps are reported."""

    def __init__(self, step: int, request: str) -> None:
        super().__init__(quiet=True)
        self.step, self.request = step, request

    def progress(self, stage: str, step: int, total: int, **values: object) -> None:
        if step == self.step and self.request == "finish":
            self.request_finish()
        if step == self.step and self.request == "cancel":
            self.cancel()
        super().progress(stage, step, total, **values)


class RecordingReporter(Reporter):
    """A reporter that records metrics (with their values) and messages."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.metrics: list[dict[str, Any]] = []
        self.messages: list[str] = []

    def metric(self, name: str, value: float | None, **values: Any) -> None:
        self.metrics.append({"name": name, "value": value, **values})

    def info(self, text: str) -> None:
        self.messages.append(text)


def small_store(folder: Path) -> CropStore:
    """Return a store of three smooth scans of different shapes with air, one of them smaller than a crop of 16 voxels."""
    rng = np.random.default_rng(0)
    scans = []
    for index, shape in enumerate([(20, 24, 18), (10, 30, 16), (16, 16, 16)]):
        x, y, z = np.meshgrid(*(np.linspace(0, 6, n) for n in shape), indexing="ij")
        array = np.clip(0.5 + 0.4 * np.sin(x + index) * np.cos(y) * np.sin(z) + rng.normal(0, 0.02, shape), 0, 1)
        array[:, :4] = 0  # air
        scans.append(write_scan(folder, f"scan{index}", array[None].astype(np.float32)))
    write_manifest(folder, {"scans": scans, "channels": 1, "preparation": PREPARATION})
    return CropStore.open(folder)


def small_mae(seed: int = 0, *, patch_size: int = 4) -> HiEndMAE:
    """Return a small Hi-End-MAE for crops of 16 voxels."""
    torch.manual_seed(seed)
    return HiEndMAE(
        image_size=(16, 16, 16),
        patch_size=patch_size,
        encoder_dim=24,
        encoder_depth=4,
        encoder_heads=2,
        decoder_dim=12,
        decoder_heads=2,
    )


def pretrain(
    store: CropStore,
    folder: Path,
    model: HiEndMAE,
    report: Reporter | None = None,
    *,
    resume: bool = False,
    **plan: Any,
) -> pretraining.PretrainingResult:
    """Pretrain 12 steps of 4 crops, or as `plan` says, without checkpoints on the way."""
    settings = {"steps": 12, "batch_size": 4, "learning_rate": 3e-3, "checkpoint_minutes": 1e9, **plan}
    report = report or Reporter(quiet=True)
    options: dict[str, Any] = {"plan": PretrainingPlan(**settings), "device": CPU, "folder": folder}
    return pretraining.pretrain(store, model, report=report, resume=resume, **options)


def cube_case() -> TrainingCase:
    """Return a case of 28 voxels a side with a bright cube (class 1) and a dark ball (class 2) in gray tissue."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(28.0)] * 3, indexing="ij"))
    classes = torch.zeros(28, 28, 28, dtype=torch.int16)
    classes[5:14, 6:15, 8:17] = 1
    classes[(grid - torch.tensor([19.0, 19, 14])[:, None, None, None]).square().sum(0) < 36] = 2
    noise = torch.randn(28, 28, 28, generator=torch.Generator().manual_seed(0))
    image = torch.tensor([0.5, 0.9, 0.15])[classes.long()] + 0.03 * noise
    return TrainingCase("cube", image[None], classes)


def small_unetr() -> UNETR:
    """Return a small UNETR with three classes for crops of 16 voxels."""
    torch.manual_seed(0)
    return UNETR(
        image_size=(16, 16, 16),
        patch_size=8,
        classes=3,
        encoder_dim=24,
        encoder_depth=4,
        encoder_heads=2,
        feature_size=8,
    )


def finetune(
    folder: Path, report: Reporter | None = None, *, case: TrainingCase | None = None, **options: Any
) -> finetuning.FinetuningResult:
    """Fine-tune the small UNETR on the cube case for 60 steps, or as the options of `finetuning.finetune` and the plan say."""
    run = {name: options.pop(name) for name in ("resume", "callback") if name in options}
    plan = FinetuningPlan(**{"crop": (16, 16, 16), "steps": 60, "learning_rate": 5e-3, **options})
    return finetuning.finetune(
        [case or cube_case()],
        small_unetr(),
        plan=plan,
        device=CPU,
        folder=folder,
        report=report or Reporter(quiet=True),
        **run,
    )
