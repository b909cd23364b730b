"""From a store of scans to a run directory: the steps of the command `pretrain`, in their order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from HiEndMAECore.data.crop_store import CropStore
from HiEndMAECore.errors import UsageError
from HiEndMAECore.models.pretrained import PretrainedWeights
from HiEndMAECore.networks.hi_end_mae import Reconstruction
from HiEndMAECore.reporting.reporter import Reporter

from .monitor import ValidationCrops
from .objectives.base import (
    ObjectiveRequest,
    PretrainingSetup,
    build_objective,
    read_initial_encoder,
    warn_preprocessing_mismatch,
)
from .plans import PretrainingPlan
from .pretraining import PretrainingResult, pretrain
from .run_directory import RunDirectory


def read_initial_weights(init: str | None, variant: str) -> PretrainedWeights | None:
    """Read the pretrained encoder of inpainting; None for the objectives that start from scratch.

    Args:
        init: Weights as in `--init`.
        variant: Variant that they must have.

    Raises:
        InputError: The weights cannot be read or are of another variant.
    """
    return read_initial_encoder(init, variant) if init else None


def build_setup(
    store: CropStore,
    initial: PretrainedWeights | None,
    *,
    variant: str,
    objective: str,
    cross_stages: int,
    mask_ratio: float,
    crop: Sequence[int] | None,
    seed: int,
    report: Reporter,
) -> PretrainingSetup:
    """Build the model of the objective.

    Args:
        store: Store of preprocessed scans.
        initial: Encoder of inpainting; None builds an autoencoder from scratch.
        variant: Network variant.
        objective: Pretraining objective.
        cross_stages: Dense-decoding stages.
        mask_ratio: Fraction of the patches that are masked.
        crop: Edges of a crop in voxels; None: the variant's.
        seed: Seed of the random weights.
        report: Receives a warning when the store does not match the initial encoder.

    Raises:
        UsageError: `network_impossible`, when the sizes do not fit together.
    """
    torch.manual_seed(seed)
    try:
        setup = build_objective(
            ObjectiveRequest(
                objective=objective,
                variant=variant,
                in_channels=store.channels,
                image_size=crop,
                mask_ratio=mask_ratio,
                cross_stages=cross_stages,
                initial=initial,
            )
        )
    except ValueError as error:
        raise UsageError("network_impossible", f"This network cannot be built: {error}.") from error
    if initial is not None:
        warn_preprocessing_mismatch(initial, store, report)
    return setup


def train(
    setup: PretrainingSetup,
    store: CropStore,
    plan: PretrainingPlan,
    *,
    device: torch.device,
    output: Path,
    resume: bool,
    report: Reporter,
) -> tuple[RunDirectory, PretrainingResult]:
    """Train the model, and write model folder and figure with every checkpoint; see `pretraining.pretrain`.

    Args:
        setup: Model of the objective.
        store: Store of preprocessed scans.
        plan: Settings of the run.
        device: Device to train on.
        output: Run directory.
        resume: True continues from the newest checkpoint.
        report: Receives progress, messages and warnings.
    """
    run_directory = RunDirectory(output, setup, store=store, seed=plan.seed)

    def on_validation(
        result: PretrainingResult, crops: ValidationCrops, reconstruction: Reconstruction, saved: bool
    ) -> None:
        write = run_directory.write if saved else run_directory.draw
        write(result, crops, reconstruction, report=report)

    result = pretrain(
        store,
        setup.model,
        plan=plan,
        device=device,
        folder=output,
        report=report,
        resume=resume,
        on_validation=on_validation,
    )
    return run_directory, result
