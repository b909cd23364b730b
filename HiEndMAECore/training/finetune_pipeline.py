"""From labelled scans to a model folder: the steps of the command `finetune`, in their order.

Selecting and loading the cases is in `training_data`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from HiEndMAECore.errors import InputError
from HiEndMAECore.models.folder import write_model
from HiEndMAECore.models.pretrained import PretrainedWeights, load_pretrained
from HiEndMAECore.networks import SegmentationNetwork, build_network
from HiEndMAECore.preprocessing.laterality import Mirroring
from HiEndMAECore.registration.atlas import Atlas
from HiEndMAECore.reporting.reporter import Reporter

from . import finetuning
from .default_recipe import Recipe
from .finetuning import FinetuningResult
from .machine_plan import MachinePlan
from .mirroring import decide_case_mirroring, mirroring_to_json
from .model_card import describe_model
from .network_choice import choose_initial_weights, choose_learning_rates
from .paper_recipe import PaperRecipe, paper_plan, warn_about_flips
from .performance_estimate import BUDGET_SHARE, PerformanceEstimate, estimate_performance, plan_estimate
from .plans import FinetuningPlan
from .presets import Preset, choose_architecture
from .preview import Preview
from .training_data import TrainingData


@dataclass(frozen=True)
class NetworkChoice:
    """Network and variant that the options name; None chooses them by the initial weights and the preset."""

    network: str | None = None
    variant: str | None = None


def read_initial_weights(
    preset: Preset, choice: NetworkChoice, *, init: str | None, improve: Path | None, report: Reporter
) -> PretrainedWeights | None:
    """Read the weights that training starts from; None for a network from scratch.

    Args:
        preset: Sizes for this machine; some start from scratch unless weights are given.
        choice: Network and variant to train.
        init: Weights as in `--init`; None: the packaged weights, where they suit the network.
        improve: Segmentation model to continue training from.
        report: Receives a message when the packaged weights do not suit the network.

    Raises:
        InputError: The weights cannot be read, or `improve` is not a segmentation model.
    """
    initial = choose_initial_weights(
        str(improve) if improve else init,
        from_scratch=preset.from_scratch,
        network=choice.network,
        variant=choice.variant,
        report=report,
    )
    if improve and not (initial and initial.is_segmentation):
        raise InputError("model_not_for_segmentation", f"{improve} is not a segmentation model.", "Use it as --init.")
    return initial


@dataclass(frozen=True)
class InitialModel:
    """Network before training.

    Attributes:
        network: The network with its initial weights.
        architecture: Network, variant and arguments, as in `model.json`.
        origin: Entries of `model.json` about the initial weights.
        is_pretrained: True when the network has initial weights, False when they are random.
    """

    network: SegmentationNetwork
    architecture: dict[str, Any]
    origin: dict[str, Any]
    is_pretrained: bool

    @property
    def crop(self) -> tuple[int, int, int]:
        """Edges of the crops in voxels."""
        return self.architecture["arguments"]["image_size"]


def build_model(
    data: TrainingData,
    preset: Preset,
    initial: PretrainedWeights | None,
    choice: NetworkChoice,
    *,
    seed: int,
    report: Reporter,
) -> InitialModel:
    """Build the network and load the initial weights.

    Args:
        data: Training cases and structures.
        preset: Sizes for this machine.
        initial: Initial weights.
        choice: Network and variant to train.
        seed: Seed of the random weights.
        report: Receives a message about the initial weights.

    Raises:
        InputError: The initial weights do not fit.
    """
    architecture = choose_architecture(
        preset,
        initial,
        classes=len(data.structures) + 1,
        channels=len(data.cases[0].image),
        network=choice.network,
        variant=choice.variant,
    )
    torch.manual_seed(seed)
    network = build_network(architecture)
    origin = load_pretrained(network, initial)
    if initial:
        report.info(f"Starting from the {origin['init_taken']} of {origin['init']}.")
    return InitialModel(network, architecture, origin, is_pretrained=initial is not None)


def make_preview(data: TrainingData, run_directory: Path, report: Reporter) -> Preview:
    """Return the preview of the first case, which is written into the run directory."""
    case = data.cases[0]
    assert case.grid is not None
    run_directory.mkdir(parents=True, exist_ok=True)
    return Preview(case, case.grid, data.structures, path=run_directory / "preview.nii", report=report)


@dataclass(frozen=True)
class Schedule:
    """How a network is trained.

    Attributes:
        plan: Settings of the run.
        recipe: Recipe to use instead of the default one.
        mirroring: Whether crops may be mirrored; None for the paper's recipe.
    """

    plan: FinetuningPlan
    recipe: Recipe | None = None
    mirroring: Mirroring | None = None


def choose_schedule(
    data: TrainingData,
    model: InitialModel,
    preset: Preset,
    *,
    steps: int | None,
    budget_seconds: float,
    share: int | None,
    preview: Preview | None,
    seed: int,
    preset_name: str = "",
    report: Reporter,
) -> Schedule:
    """Choose recipe and settings of the training.

    Args:
        data: Training cases and structures.
        model: Network before training.
        preset: Sizes for this machine, and whether the paper's recipe is used.
        steps: Optimizer steps, instead of the budget or of the paper's schedule.
        budget_seconds: Time for training, previews and the performance estimate.
        share: Percent of the data set's cases that these are; the paper's schedule depends on it.
        preview: Preview during training, whose share of the budget is reserved.
        seed: Seed of the run.
        preset_name: Name of the preset, for the checkpoint.
        report: Receives the decision about mirroring, and a warning or message.
    """
    if preset.paper:
        warn_about_flips([structure.name for structure in data.structures], report)
        plan = paper_plan(crop=model.crop, cases=len(data.cases), share=share, steps=steps, seed=seed)
        return Schedule(plan, PaperRecipe(data.cases, seed=seed))
    mirroring = decide_case_mirroring(data.cases, data.structures, report=report)
    if not steps:
        report.info(f"{BUDGET_SHARE:.0%} of the budget is reserved for the performance estimate.")
    plan = FinetuningPlan(
        crop=model.crop,
        steps=steps,
        seconds=budget_seconds * (1 - BUDGET_SHARE - (preview.share if preview else 0)),
        batch_size=preset.batch_size,
        seed=seed,
        preset=preset_name,
        **choose_learning_rates(model.network, pretrained=model.is_pretrained),
    )
    return Schedule(plan, mirroring=mirroring)


def train(
    data: TrainingData,
    model: InitialModel,
    schedule: Schedule,
    *,
    device: torch.device,
    run_directory: Path,
    resume: bool,
    preview: Preview | None,
    report: Reporter,
) -> FinetuningResult:
    """Train the network; see `finetuning.finetune`.

    Args:
        data: Training cases.
        model: Network before training.
        schedule: Settings and recipe of the run.
        device: Device to train on.
        run_directory: Folder of the training checkpoint.
        resume: True continues from that checkpoint.
        preview: Preview during training.
        report: Receives progress, metrics and warnings.
    """
    return finetuning.finetune(
        data.cases,
        model.network,
        plan=schedule.plan,
        device=device,
        folder=run_directory,
        report=report,
        resume=resume,
        callback=preview,
        mirroring=schedule.mirroring,
        recipe=schedule.recipe,
    )


def estimate(
    data: TrainingData, result: FinetuningResult, plan: FinetuningPlan, *, device: torch.device, report: Reporter
) -> PerformanceEstimate:
    """Estimate the Dice on other patients with work in proportion to the training; see `performance_estimate`."""
    work = plan_estimate(data.cases, crop=plan.crop, steps=result.steps, batch_size=plan.batch_size)
    return estimate_performance(
        data.cases, result.network, data.structures,
        crop=plan.crop, work=work, seed=plan.seed, device=device, report=report,
    )  # fmt: skip


def write_trained_model(
    output: Path,
    name: str,
    data: TrainingData,
    model: InitialModel,
    schedule: Schedule,
    result: FinetuningResult,
    performance: PerformanceEstimate,
    *,
    preset: str,
    machine: MachinePlan,
    device: torch.device,
    atlases: Sequence[Atlas] = (),
) -> None:
    """Write the model folder and delete the run directory.

    Args:
        output: Folder, or file ending in .zip.
        name: Name of the model.
        data: Training cases, preprocessing and structures.
        model: Network before training; architecture and origin are used.
        schedule: Settings of the run.
        result: Result of the training.
        performance: Expected Dice.
        preset: Name of the preset as it was requested.
        machine: The preset that was used, and the speed of the computer.
        device: Device that the model was trained on.
        atlases: Atlases of the labelled scans that the model keeps.
    """
    mirroring = mirroring_to_json(schedule.mirroring, data.structures)
    description = describe_model(
        name,
        architecture=model.architecture,
        plan=data.preprocessing,
        structures=data.structures,
        cases=data.cases,
        result=result,
        estimate=performance,
        origin={**model.origin, "preset": preset, "machine_plan": machine.to_json(), **mirroring},
        seed=schedule.plan.seed,
        device=device,
    )
    write_model(output, description, result.network.state_dict(), atlases)
    shutil.rmtree(run_directory_of(output), ignore_errors=True)


def run_directory_of(output: Path) -> Path:
    """Return the folder in which a run keeps its training checkpoint and preview until the model is written."""
    return output.with_name(output.name + ".training")
