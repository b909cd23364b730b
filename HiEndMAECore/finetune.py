"""Learn from one labelled scan (or a few): image and label map in, a model out.

python -m HiEndMAECore.finetune --image scan.nii.gz --label organs.nii.gz --output my-model --budget 5min
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .configuration import DoorConfig, option, require_positive
from .errors import InputError, UsageError
from .reporting.front_door import open_door
from .reporting.reporter import Reporter

BUDGETS = {"1min": 60.0, "5min": 300.0, "20min": 1200.0, "good": 3600.0}


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(DoorConfig):
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


def run(config: FinetuneConfig, report: Reporter | None = None) -> dict[str, Any]:
    """Train and write the model; returns its path. Raises `InputError`, `Cancelled`."""
    report = report or Reporter(quiet=True)
    assert config.output is not None
    from .checkpoints import model_folder

    model_folder.refuse_taken(config.output)
    from .checkpoints.catalogue import OURS
    from .checkpoints.transfer import read_initial, start_from
    from .devices import choose_device
    from .networks import build_segmentation
    from .training import finetuning, paper, self_check, teaching
    from .training.describing import describe_model

    device = choose_device(config.device)
    preset = teaching.choose_preset(config.preset, device)
    initial = read_initial(str(config.improve or config.init or ("none" if preset.paper else OURS)))
    if config.improve and not (initial and initial.is_segmentation):
        raise InputError(
            "model_not_for_segmentation", f"{config.improve} has not learned to segment.", "Use it as --init."
        )
    if config.dataset:
        dataset = teaching.cases_of(config.dataset, config.cases, share=config.share, seed=config.seed)
        known, cases, ignore = dataset.structures, dataset.cases, dataset.ignore
    else:
        known, cases, ignore = (), tuple(teaching.cases_from(config.image, config.label)), None
    if config.names:
        known = teaching.named_structures(config.names)
    read = []
    for step in report.steps("reading", len(cases)):
        read.append(teaching.read_case(cases[step], report=report))
    teaching.check_together(read, ignore=ignore)
    plan = teaching.choose_plan(read, preset=preset, spacing=config.spacing, initial=initial)
    if config.improve and initial and initial.description:
        from .inference.predictor import structures_of

        known = structures_of(initial.description)
        structures = known
    else:
        structures = teaching.collect_structures(read, known)
    scans = teaching.prepare_teaching(read, plan, structures, report=report)
    del read  # half a gigabyte a large scan
    architecture = teaching.architecture_for(preset, initial, classes=len(structures) + 1, channels=len(scans[0].image))
    crop = architecture["arguments"]["image_size"]

    import torch

    torch.manual_seed(config.seed)
    network = build_segmentation(architecture)
    origin = start_from(network, initial)
    if initial:
        report.say(f"Starting from the {origin['init_taken']} of {origin['init']}.")
    folder = config.output.with_name(config.output.name + ".training")
    looking = None
    if config.preview:
        from .training.previewing import Preview

        assert scans[0].grid is not None
        folder.mkdir(parents=True, exist_ok=True)
        looking = Preview(scans[0], scans[0].grid, structures, path=folder / "preview.nii", report=report)
    mirroring = None
    if preset.paper:
        paper.warn_of_sides([structure.name for structure in structures], report)
        recipe = paper.paper_plan(crop=crop, cases=len(scans), share=config.share, steps=config.steps, seed=config.seed)
    else:
        mirroring = teaching.mirroring_of(scans, structures, report=report)
        if not config.steps:
            report.say(f"{self_check.SHARE:.0%} of the budget is kept for the self-check.")
        recipe = finetuning.FinetuningPlan(
            crop=crop,
            steps=config.steps,
            seconds=BUDGETS[config.budget] * (1 - self_check.SHARE - (looking.share if looking else 0)),
            batch_size=preset.batch_size,
            seed=config.seed,
            **({"encoder_rate": finetuning.PRETRAINED_RATE} if initial else {}),
        )
    result = finetuning.finetune(
        scans,
        network,
        plan=recipe,
        device=device,
        folder=folder,
        report=report,
        resume=config.resume,
        preview=looking,
        mirroring=mirroring,
        method=paper.PaperMethod(scans, seed=config.seed) if preset.paper else None,
    )
    work = self_check.plan_work(scans, crop=crop, steps=result.steps, batch_size=recipe.batch_size)
    checked = self_check.self_check(
        scans, result.network, structures,
        crop=crop, work=work, seed=config.seed, device=device, report=report,
    )  # fmt: skip
    description = describe_model(
        config.name or config.output.stem,
        architecture=architecture,
        plan=plan, structures=structures, scans=scans, result=result, checked=checked,
        origin={**origin, "preset": config.preset, **teaching.told_mirroring(mirroring, structures)},
        seed=config.seed, device=device,
    )  # fmt: skip
    model_folder.write_model(config.output, description, result.network.state_dict())
    shutil.rmtree(folder, ignore_errors=True)
    report.metric("learning_seconds", round(result.seconds, 1), steps=result.steps)
    checked.tell(report)
    report.say(f"The model is at {config.output}.")
    return {"model": config.output}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return open_door(FinetuneConfig, run, argv, door="finetune", description=__doc__ or "")


if __name__ == "__main__":
    raise SystemExit(main())
