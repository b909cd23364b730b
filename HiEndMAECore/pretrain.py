"""Pretrain on unlabelled scans: rebuild what was masked. First the encoder (Hi-End-MAE, or MAE to compare with), then, by
--objective inpainting, the convolutions that are taught with it.

python -m HiEndMAECore.pretrain --data store --output run --variant hi_end_mae_vit_tiny_8p --steps 1000
python -m HiEndMAECore.pretrain --data store --output whole --objective inpainting --init run --variant hi_end_mae_vit_tiny_8p …
torchrun --nproc-per-node 8 -m HiEndMAECore.pretrain --data store --output run …
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from .cli.options import CommandConfig, option, require_positive, to_json
from .cli.runner import run_command
from .errors import UsageError
from .networks.variants import INPAINTING, OBJECTIVES, list_variants
from .reporting.reporter import Reporter
from .runtime.devices import PRECISIONS, choose_device, require_torch
from .runtime.processes import rank_from_environment, world_size_from_environment


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(CommandConfig):
    """Data, network, objective and schedule. Defaults are the paper's."""

    data: Path | None = option(help="Store made by prepare, or a folder of scans (prepared first).", required=True)
    output: Path | None = option(help="Folder of the run: model, snapshot, log, picture.", required=True)
    variant: str = option("hi_end_mae_vit_large_12p", help="Sizes of the network.", choices=list_variants())
    objective: str = option(
        "hi-end-mae",
        help="What the decoder learns from; inpainting: the segmentation network learns, beneath a frozen encoder.",
        choices=(*OBJECTIVES, INPAINTING),
    )
    init: str | None = option(
        None, help="Encoder of inpainting: a pretraining run, a model, the authors' file or a catalogue name."
    )
    cross_stages: int = option(3, help="Dense-decoding stages.", choices=(0, 1, 2, 3))
    steps: int = option(400_000, help="Optimiser steps.")
    batch_size: int = option(192, help="Crops a step, over all processes and accumulation steps.")
    accumulate: int = option(1, help="Parts a step is computed in, to save memory.")
    recompute: bool = option(False, help="Gradient checkpointing: less memory, about a third more time.")
    mask_ratio: float = option(0.75, help="Share of patches that are hidden.")
    learning_rate: float = option(1e-4, help="Base rate of AdamW.")
    warm_up: int | None = option(None, help="Steps until the full rate (default: a hundredth of the run).")
    weight_decay: float = option(0.05, help="Of AdamW.")
    decay_all: bool = option(
        True, help="Weight decay on every tensor, as in the released code; --no-decay-all: on matrices alone."
    )
    clip: float | None = option(None, help="Largest norm of the gradients (default: none, as in the released code).")
    precision: str = option("auto", help="auto: bf16 where the processor has it, else fp32.", choices=PRECISIONS)
    compile: bool = option(False, help="torch.compile the network (wants a C++ compiler).")
    workers: int = option(2, help="Threads that read crops ahead.")
    snapshot_minutes: float = option(10.0, help="Time between two snapshots.")
    keep: int = option(2, help="Snapshots that stay.")
    tensorboard: bool = option(False, help="Write TensorBoard's files too.")
    crop: tuple[int, int, int] | None = option(None, help="Crop in voxels (default: the variant's).")
    spacing: tuple[float, float, float] = option((1.5, 1.5, 1.5), help="Grid in mm when --data is a folder of scans.")
    resume: bool = option(False, help="Go on with the run in --output.")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(
            self, "steps", "batch_size", "accumulate", "learning_rate", "warm_up", "clip", "crop", "spacing"
        )
        require_positive(self, "snapshot_minutes", "keep")
        if (self.objective == INPAINTING) != (self.init is not None):
            message = f"--objective {INPAINTING} learns beneath a pretrained encoder, the others start from nothing."
            raise UsageError("usage", message, f"Give --init with --objective {INPAINTING}, and only there.")
        if self.objective == INPAINTING and self.recompute:
            raise UsageError("usage", "--recompute saves memory of the encoder, which is frozen here.", "Leave it out.")
        processes = world_size_from_environment()
        if self.batch_size % (self.accumulate * processes):
            raise UsageError(
                "usage",
                f"--batch-size {self.batch_size} cannot be shared by {processes} process(es) x {self.accumulate} parts.",
                "Choose a multiple.",
            )


def run(config: PretrainConfig, report: Reporter | None = None) -> dict[str, Any]:
    """Train and write the run folder; returns its model. Raises `InputError`, `Cancelled` (a snapshot is there)."""
    report = report or Reporter(quiet=True)
    assert config.output is not None
    require_torch()
    import torch

    from .data.crop_store import CropStore
    from .networks.hi_end_mae import Reconstruction
    from .reporting.run_record import read_record, write_record
    from .runtime.distributed import init_distributed
    from .training.monitor import ValidationCrops
    from .training.objectives.base import (
        build_autoencoder,
        build_inpainting,
        read_initial_encoder,
        warn_preprocessing_mismatch,
    )
    from .training.plans import PretrainingPlan
    from .training.pretraining import PretrainingResult, pretrain
    from .training.run_directory import RunDirectory, require_same_run

    rank = rank_from_environment()
    if rank > 0:
        report.mute()
    device = choose_device(config.device)
    resume = config.resume or init_distributed(device).restarted
    require_same_run(config.output, to_json(config), read_record(config.output), resume=resume)
    initial = read_initial_encoder(config.init, config.variant) if config.init else None
    store = CropStore.open(_store(config, report))
    report.info(f"Computing on {device}, {world_size_from_environment()} process(es).")
    torch.manual_seed(config.seed)
    sizes: dict[str, Any] = {
        "mask_ratio": config.mask_ratio, "in_channels": store.channels, "image_size": config.crop
    }  # fmt: skip
    try:
        if initial:
            built = build_inpainting(initial, **sizes)
            warn_preprocessing_mismatch(initial, store, report)
        else:
            built = build_autoencoder(
                config.variant, objective=config.objective, cross_stages=config.cross_stages, **sizes
            )
    except ValueError as error:
        raise UsageError("network_impossible", f"This network cannot be built: {error}.") from error
    folder = RunDirectory(config.output, built, store=store, seed=config.seed)
    if rank == 0:
        write_record(config.output, to_json(replace(config, resume=False)))
    plan: dict[str, Any] = {
        each.name: getattr(config, each.name) for each in fields(PretrainingPlan) if hasattr(config, each.name)
    }
    if initial:
        plan |= {"betas": (0.9, 0.999), "start": initial.sha256}  # as convolutions are taught

    def look(done: PretrainingResult, watch: ValidationCrops, output: Reconstruction, saved: bool) -> None:
        show = folder.write if saved else folder.draw
        show(done, watch, output, report=report)

    result = pretrain(
        store,
        built.model,
        plan=PretrainingPlan(**plan),
        device=device,
        folder=config.output,
        report=report,
        resume=resume,
        on_look=look,
    )
    report.metric("loss", result.losses[-1][1] if result.losses else None, steps=result.steps)
    report.info(f"The pretrained model is at {folder.model}.")
    return {"model": folder.model, "run": config.output}


def _store(config: PretrainConfig, report: Reporter) -> Path:
    """The store to read; a folder of scans is prepared first."""
    from .data.crop_store import MANIFEST

    assert config.data is not None
    assert config.output is not None
    if (config.data / MANIFEST).is_file():
        return config.data
    if world_size_from_environment() > 1:
        raise UsageError("usage", f"{config.data} is no store.", "Run prepare first: many processes need a store.")
    from .prepare import PrepareConfig
    from .prepare import run as prepare

    store = config.output / "store"
    prepare(PrepareConfig(input=(config.data,), output=store, spacing=config.spacing, seed=config.seed), report)
    return store


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(PretrainConfig, run, argv, command="pretrain", description=__doc__ or "")


if __name__ == "__main__":
    raise SystemExit(main())
