"""Pretrain on unlabelled scans by reconstructing masked patches: the encoder first (Hi-End-MAE, or MAE for comparison), then,
with --objective inpainting, the convolutions of the segmentation network.

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
from .networks.registry import list_variants
from .reporting.reporter import Reporter
from .runtime.devices import PRECISIONS, choose_device, require_torch
from .runtime.processes import rank_from_environment, world_size_from_environment
from .training.objectives import find_objective, list_objectives
from .training.plans import PretrainingPlan


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(CommandConfig):
    """Options of `pretrain`: data, network, objective and schedule. Defaults are the paper's."""

    data: Path = option(help="Store made by prepare, or a folder of scans, which is prepared first.", required=True)
    output: Path = option(help="Run directory: model, training checkpoints, log and figure.", required=True)
    variant: str = option(
        "hi_end_mae_vit_large_12p", help="Network variant; hi-end-mae and mae need a ViT.", choices=list_variants()
    )
    objective: str = option(
        "hi-end-mae",
        help="Pretraining objective; inpainting trains the segmentation network on top of a frozen encoder.",
        choices=list_objectives(),
    )
    init: str | None = option(
        None, help="Encoder for inpainting: a pretraining run, a model, the authors' checkpoint or a catalogue name."
    )
    cross_stages: int = option(
        3, help="Stages of cross-attention in the decoder (0: a plain MAE decoder).", choices=(0, 1, 2, 3)
    )
    steps: int = option(400_000, help="Optimizer steps.")
    batch_size: int = option(192, help="Global batch size: crops of a step over all processes and accumulation steps.")
    accumulate: int = option(1, help="Gradient accumulation: micro-batches of an optimizer step, to save memory.")
    recompute: bool = option(False, help="Gradient checkpointing: less memory, about a third more time.")
    mask_ratio: float = option(0.75, help="Fraction of the patches that are masked.")
    learning_rate: float = option(1e-4, help="Base learning rate of AdamW.")
    warm_up: int | None = option(
        None, help="Steps until the full learning rate (default: a hundredth of the run).", metavar="STEPS"
    )
    weight_decay: float = option(0.05, help="Weight decay of AdamW.")
    decay_all: bool = option(
        True, help="Weight decay on every tensor, as in the released code; --no-decay-all: only on matrices."
    )
    clip: float | None = option(
        None, help="Gradient clipping: largest norm of the gradients (default: none, as in the released code)."
    )
    precision: str = option("auto", help="auto: bf16 where the device supports it, else fp32.", choices=PRECISIONS)
    compile: bool = option(False, help="Compile the network with torch.compile (needs a C++ compiler).")
    workers: int = option(2, help="Data-loading threads.")
    snapshot_minutes: float = option(10.0, help="Minutes between two training checkpoints.", metavar="MINUTES")
    keep: int = option(2, help="Number of training checkpoints that are retained.")
    tensorboard: bool = option(False, help="Also write TensorBoard's files.")
    crop: tuple[int, int, int] | None = option(
        None, help="Edges of a crop in voxels (default: the variant's).", metavar=("X", "Y", "Z")
    )
    spacing: tuple[float, float, float] = option(
        (1.5, 1.5, 1.5), help="Spacing in mm when --data is a folder of scans.", metavar=("R", "A", "S")
    )
    resume: bool = option(False, help="Continue the run in --output.")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(
            self, "steps", "batch_size", "accumulate", "learning_rate", "warm_up", "clip", "crop", "spacing"
        )
        require_positive(self, "snapshot_minutes", "keep")
        objective = find_objective(self.objective)
        if objective.needs_init != (self.init is not None):
            names = ", ".join(name for name in list_objectives() if find_objective(name).needs_init)
            message = f"--objective {names} needs a pretrained encoder, and the other objectives accept none."
            raise UsageError("usage", message, f"Give --init with --objective {names}, and only there.")
        if objective.frozen_encoder and self.recompute:
            message = "--recompute saves memory of the encoder, which is frozen for inpainting."
            raise UsageError("usage", message, "Leave it out.")
        processes = world_size_from_environment()
        if self.batch_size % (self.accumulate * processes):
            parts = f"{processes} process(es) x {self.accumulate} micro-batches"
            message = f"--batch-size {self.batch_size} is not a multiple of {parts}."
            raise UsageError("usage", message, "Choose a multiple.")


def run(config: PretrainConfig, report: Reporter | None = None) -> dict[str, Any]:
    """Train and write the run directory; returns the paths "model" and "run".

    Raises:
        InputError: A file cannot be used.
        Cancelled: The run was cancelled; a training checkpoint was saved.
    """
    report = report or Reporter(quiet=True)
    require_torch()
    from .data.crop_store import CropStore
    from .reporting.run_record import read_record, write_record
    from .runtime.distributed import init_distributed
    from .training import pretrain_pipeline as pipeline
    from .training.run_directory import require_same_run

    rank = rank_from_environment()
    if rank > 0:
        report.mute()
    device = choose_device(config.device)
    resume = config.resume or init_distributed(device).restarted
    require_same_run(config.output, to_json(config), read_record(config.output), resume=resume)
    initial = pipeline.read_initial_weights(config.init, config.variant)
    store = CropStore.open(_prepare_store(config, report))
    report.info(f"Computing on {device}, {world_size_from_environment()} process(es).")
    setup = pipeline.build_setup(
        store, initial,
        variant=config.variant, objective=config.objective, cross_stages=config.cross_stages,
        mask_ratio=config.mask_ratio, crop=config.crop, seed=config.seed, report=report,
    )  # fmt: skip
    if rank == 0:
        write_record(config.output, to_json(replace(config, resume=False)))
    plan = _plan(config)
    if initial:  # AdamW's coefficients of fine-tuning, because convolutions are trained
        plan = replace(plan, betas=(0.9, 0.999), initial_sha256=initial.sha256)
    run_directory, result = pipeline.train(
        setup, store, plan, device=device, output=config.output, resume=resume, report=report
    )
    report.metric("loss", result.losses[-1][1] if result.losses else None, steps=result.steps)
    report.info(f"The pretrained model is at {run_directory.model}.")
    return {"model": run_directory.model, "run": config.output}


def _plan(config: PretrainConfig) -> PretrainingPlan:
    """Return the settings of the loop: the options of the same names, and two that are named differently."""
    names = {field.name for field in fields(PretrainingPlan)} & {field.name for field in fields(config)}
    values = {name: getattr(config, name) for name in names}
    return PretrainingPlan(**values, checkpoint_minutes=config.snapshot_minutes, max_checkpoints=config.keep)


def _prepare_store(config: PretrainConfig, report: Reporter) -> Path:
    """Return the store to read; a folder of scans is prepared first."""
    from .data.crop_store import MANIFEST

    if (config.data / MANIFEST).is_file():
        return config.data
    if world_size_from_environment() > 1:
        message = f"{config.data} is not a store."
        raise UsageError("usage", message, "Run prepare first, because many processes need a store.")
    from .prepare import PrepareConfig
    from .prepare import run as prepare

    store = config.output / "store"
    prepare(PrepareConfig(input=(config.data,), output=store, spacing=config.spacing, seed=config.seed), report)
    return store


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(PretrainConfig, run, argv, command="pretrain", description=__doc__ or "")


if __name__ == "__main__":
    raise SystemExit(main())
