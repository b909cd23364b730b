"""Learn from one labelled scan (or a few): image and label map in, a model out.

python -m HiEndMAECore.finetune --image scan.nii.gz --label organs.nii.gz --output my-model --budget 5min
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cli.options import CommandConfig, option, require_positive
from .cli.runner import run_command
from .errors import InputError, UsageError
from .networks.registry import check_network_options, list_networks
from .reporting.reporter import Reporter

BUDGETS = {"1min": 60.0, "5min": 300.0, "20min": 1200.0, "good": 3600.0}


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(CommandConfig):
    """What to learn from, from where to start, how long."""

    image: tuple[str, ...] = option((), help="Scans, one a case; the channels of one case joined by commas.")
    label: tuple[Path, ...] = option((), help="Label maps, one a scan, in the same order.")
    dataset: Path | None = option(
        None, help="Folder in nnU-Net's or Decathlon's layout, instead of --image and --label."
    )
    cases: tuple[str, ...] = option((), help="Cases of the data set to learn from.")
    share: int | None = option(
        None,
        help="Percent of the data set's cases: of one seed the smaller lies within the larger.",
        choices=(1, 10, 100),
    )
    names: Path | None = option(None, help="JSON file with the structures' names (a dataset.json or model.json).")
    init: str | None = option(
        None,
        help="Start from: a model, a pretraining run, the authors' file, a catalogue name, or none (default: the weights "
        "that come with the package).",
    )
    network: str | None = option(
        None, help=f"Network to train (default: that of the weights): {', '.join(list_networks())}."
    )
    variant: str | None = option(None, help="Size of the network, one of its variants (default: the network's first).")
    output: Path | None = option(help="Model to write: a folder, or a file ending in .zip.", required=True)
    name: str | None = option(None, help="What to call the model (default: the output's name).")
    budget: str = option(
        "5min", help="Time to learn and to check what was learned; 'good' is up to an hour.", choices=tuple(BUDGETS)
    )
    steps: int | None = option(None, help="Optimiser steps, instead of a budget.")
    preset: str = option(
        "auto",
        help="Sizes that suit the machine; paper-one-shot: the paper's own schedule of 5,000 epochs, no budget.",
        choices=("auto", "cpu", "gpu", "paper-one-shot"),
    )
    spacing: tuple[float, float, float] | None = option(
        None, help="Working grid in mm along right, anterior, superior."
    )
    improve: Path | None = option(None, help="Model to go on learning from, with the scans given here.")
    preview: bool = option(False, help="Segment the first scan now and then while learning (5 % of the time).")
    resume: bool = option(False, help="Go on with an interrupted run of the same output.")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "steps", "spacing")
        if (self.dataset is None) == (not self.image) or len(self.image) != len(self.label):
            raise UsageError(
                "usage", "Give one --label for each --image, or --dataset with --cases.", "See: finetune --help"
            )
        if self.share is not None and self.dataset is None:
            raise UsageError("usage", "--share is of a data set.", "Give --dataset as well, or leave it out.")
        if self.improve is not None and self.init is not None:
            raise UsageError("usage", "--improve and --init exclude each other.", "Give one of the two.")
        if self.improve is not None and (self.network or self.variant):
            raise UsageError(
                "usage", "--improve keeps the model's network and size.", "Leave out --network and --variant."
            )
        check_network_options(self.network, self.variant)


def run(config: FinetuneConfig, report: Reporter | None = None) -> dict[str, Any]:
    """Train and write the model; returns its path. Raises `InputError`, `Cancelled`."""
    report = report or Reporter(quiet=True)
    assert config.output is not None
    from .models import folder

    folder.check_output_free(config.output)
    from .data.label_table import read_structures
    from .data.labelled_cases import (
        cases_from_dataset,
        cases_from_files,
        check_compatible,
        collect_structures,
        read_labelled_case,
    )
    from .models.pretrained import load_pretrained
    from .networks import build_network
    from .runtime.devices import choose_device
    from .training import finetuning, network_choice, paper_recipe, performance_estimate, presets
    from .training.mirroring import decide_case_mirroring, mirroring_to_json
    from .training.model_card import describe_model
    from .training.plans import FinetuningPlan
    from .training.training_cases import preprocess_training_cases

    device = choose_device(config.device)
    preset = presets.choose_preset(config.preset, device)
    init = str(config.improve) if config.improve else config.init
    initial = network_choice.choose_initial_weights(
        init, paper=preset.paper, network=config.network, variant=config.variant, report=report
    )
    if config.improve and not (initial and initial.is_segmentation):
        raise InputError(
            "model_not_for_segmentation", f"{config.improve} has not learned to segment.", "Use it as --init."
        )
    if config.dataset:
        dataset = cases_from_dataset(config.dataset, config.cases, share=config.share, seed=config.seed)
        known, cases, ignore = dataset.structures, dataset.cases, dataset.ignore
    else:
        known, cases, ignore = (), tuple(cases_from_files(config.image, config.label)), None
    if config.names:
        known = read_structures(config.names)
    read = []
    for step in report.steps("reading", len(cases)):
        read.append(read_labelled_case(cases[step], report=report))
    check_compatible(read, ignore=ignore)
    plan = presets.choose_preprocessing(read, preset=preset, spacing=config.spacing, initial=initial)
    if config.improve and initial and initial.description:
        from .data.label_table import model_structures

        known = model_structures(initial.description)
        structures = known
    else:
        structures = collect_structures(read, known)
    scans = preprocess_training_cases(read, plan, structures, report=report)
    del read  # half a gigabyte a large scan
    architecture = presets.choose_architecture(
        preset,
        initial,
        classes=len(structures) + 1,
        channels=len(scans[0].image),
        network=config.network,
        variant=config.variant,
    )
    crop = architecture["arguments"]["image_size"]

    import torch

    torch.manual_seed(config.seed)
    network = build_network(architecture)
    origin = load_pretrained(network, initial)
    if initial:
        report.info(f"Starting from the {origin['init_taken']} of {origin['init']}.")
    run_directory = config.output.with_name(config.output.name + ".training")
    looking = None
    if config.preview:
        from .training.preview import Preview

        assert scans[0].grid is not None
        run_directory.mkdir(parents=True, exist_ok=True)
        looking = Preview(scans[0], scans[0].grid, structures, path=run_directory / "preview.nii", report=report)
    mirroring = None
    if preset.paper:
        paper_recipe.warn_about_flips([structure.name for structure in structures], report)
        recipe = paper_recipe.paper_plan(
            crop=crop, cases=len(scans), share=config.share, steps=config.steps, seed=config.seed
        )
    else:
        mirroring = decide_case_mirroring(scans, structures, report=report)
        if not config.steps:
            report.info(f"{performance_estimate.BUDGET_SHARE:.0%} of the budget is kept for the self-check.")
        recipe = FinetuningPlan(
            crop=crop,
            steps=config.steps,
            seconds=BUDGETS[config.budget]
            * (1 - performance_estimate.BUDGET_SHARE - (looking.share if looking else 0)),
            batch_size=preset.batch_size,
            seed=config.seed,
            **network_choice.choose_learning_rates(network, pretrained=initial is not None),
        )
    result = finetuning.finetune(
        scans,
        network,
        plan=recipe,
        device=device,
        folder=run_directory,
        report=report,
        resume=config.resume,
        preview=looking,
        mirroring=mirroring,
        method=paper_recipe.PaperRecipe(scans, seed=config.seed) if preset.paper else None,
    )
    work = performance_estimate.plan_estimate(scans, crop=crop, steps=result.steps, batch_size=recipe.batch_size)
    checked = performance_estimate.estimate_performance(
        scans, result.network, structures,
        crop=crop, work=work, seed=config.seed, device=device, report=report,
    )  # fmt: skip
    description = describe_model(
        config.name or config.output.stem,
        architecture=architecture,
        plan=plan, structures=structures, scans=scans, result=result, checked=checked,
        origin={**origin, "preset": config.preset, **mirroring_to_json(mirroring, structures)},
        seed=config.seed, device=device,
    )  # fmt: skip
    folder.write_model(config.output, description, result.network.state_dict())
    shutil.rmtree(run_directory, ignore_errors=True)
    report.metric("learning_seconds", round(result.seconds, 1), steps=result.steps)
    checked.tell(report)
    report.info(f"The model is at {config.output}.")
    return {"model": config.output}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(FinetuneConfig, run, argv, command="finetune", description=__doc__ or "")


if __name__ == "__main__":
    raise SystemExit(main())
