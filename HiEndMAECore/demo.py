"""Run the whole method with figures: pretrain, fine-tune on ONE labelled scan, segment another patient, evaluate.

  python -m HiEndMAECore.demo --output demo

Without --dataset it uses digital patients (no download, no patient data). With a data set in nnU-Net's layout, its first case
is the training case, and the next ones are segmented.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli.options import CommandConfig, option, require_positive
from .cli.runner import run_command
from .errors import InputError
from .reporting.reporter import Reporter

if TYPE_CHECKING:
    from .data.cases import Case
    from .data.datasets import Dataset
    from .data.labelled_cases import LabelledCase
    from .preprocessing.pipeline import PreprocessingPlan

_MAX_UNLABELLED = 8
_PHANTOM_SPACING_MM = 5.0  # coarse, so that two processor cores train on the digital patients within minutes


@dataclass(frozen=True, kw_only=True)
class DemoConfig(CommandConfig):
    """The options of `demo`."""

    output: Path = option(help="Folder to write: scans, model, results, figure.", required=True)
    dataset: Path | None = option(None, help="Real scans in nnU-Net's or Decathlon's layout.")
    training_case: str | None = option(
        None, help="Case of the data set to train on (default: the first).", aliases=("--teacher",)
    )
    targets: int = option(1, help="How many other cases to segment.")
    pretraining_steps: int = option(250, help="Steps of pretraining, 4 crops each.")
    steps: int = option(550, help="Steps of fine-tuning on the labelled scan.")
    spacing: float | None = option(None, help="Working grid in mm (default: 5 for the digital patients, else chosen).")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "targets", "pretraining_steps", "steps", "spacing")


def run(config: DemoConfig, report: Reporter | None = None) -> dict[str, Any]:
    """Run the commands one after the other and draw the first result; returns the figure, the scores and the model.

    Raises:
        InputError: The data set has too few labelled cases, or a file cannot be used.
    """
    report = report or Reporter(quiet=True)
    from .data.datasets import read_dataset
    from .data.labelled_cases import read_labelled_case

    started = time.monotonic()
    folder = config.dataset or _write_phantoms(config.output / "patients", config.targets, report)
    dataset = read_dataset(folder)
    training_case, targets = _choose_cases(dataset, config)
    labelled = read_labelled_case(training_case, report=report)
    plan = _choose_preprocessing(labelled, config)
    _pretrain(dataset.unlabelled or (training_case,), plan, config, report)
    outputs = _finetune_and_evaluate(folder, training_case, targets, config, report)
    figure = _draw_result(labelled, targets[0], plan, dataset, config.output)
    report.preview(figure)
    report.info(f"The result is drawn in {figure}. All steps took {time.monotonic() - started:.0f} s.")
    return {"picture": figure, **outputs}


def _write_phantoms(folder: Path, targets: int, report: Reporter) -> Path:
    """Write the digital patients: one to train on, `targets` to segment, and some without labels."""
    from .data.phantom import DEMO_SEEDS
    from .data.phantom_dataset import write_patients

    first = max(DEMO_SEEDS) + 1
    labelled = [*DEMO_SEEDS, *range(first, first + targets - 1)]
    unlabelled = range(first + targets - 1, first + targets - 1 + _MAX_UNLABELLED)
    patients = write_patients(folder, labelled=labelled, unlabelled=unlabelled)
    for _ in report.steps("drawing patients", len(labelled) + len(unlabelled)):
        next(patients)
    return folder


def _choose_cases(dataset: Dataset, config: DemoConfig) -> tuple[Case, list[Case]]:
    """Return the case to train on and the cases to segment; raise `InputError` when there are too few."""
    cases = {case.name: case for case in dataset.cases}
    if len(cases) < 2 or (config.training_case and config.training_case not in cases):
        message = f"The data set {dataset.name} has the labelled cases: {', '.join(cases) or 'none'}."
        raise InputError("case_absent", message, "Two are needed at least; check --training-case.")
    training_case = cases.pop(config.training_case or next(iter(cases)))
    return training_case, list(cases.values())[: config.targets]


def _choose_preprocessing(labelled: LabelledCase, config: DemoConfig) -> PreprocessingPlan:
    """Return the grid and the intensity normalization for all commands."""
    from .runtime.devices import choose_device
    from .training.presets import choose_preprocessing, choose_preset

    edge = config.spacing or (None if config.dataset else _PHANTOM_SPACING_MM)
    preset = choose_preset("auto", choose_device(config.device))
    return choose_preprocessing([labelled], preset=preset, spacing=None if edge is None else (edge, edge, edge))


def _pretrain(cases: Sequence[Case], plan: PreprocessingPlan, config: DemoConfig, report: Reporter) -> None:
    """Prepare the scans of at most 8 cases, and pretrain an encoder on them."""
    from . import prepare, pretrain

    cases = cases[:_MAX_UNLABELLED]
    report.info(f"1. Pretraining on {len(cases)} scan(s) without labels.")
    scans, store, run_directory = (config.output / name for name in ("unlabelled.txt", "store", "pretraining"))
    scans.parent.mkdir(parents=True, exist_ok=True)
    scans.write_text("".join(f"{case.channels[0].resolve()}\n" for case in cases), encoding="utf-8")
    prepare_config = prepare.PrepareConfig(
        input=(scans,),
        output=store,
        spacing=plan.spacing,
        modality="ct" if plan.normalization.kind == "window" else "mri",
        device=config.device,
        seed=config.seed,
    )
    prepare.run(prepare_config, report)
    pretrain_config = pretrain.PretrainConfig(
        data=store,
        output=run_directory,
        variant="hi_end_mae_vit_tiny_8p",
        steps=config.pretraining_steps,
        batch_size=4,
        learning_rate=1e-3,
        resume=(run_directory / "config.json").exists(),
        device=config.device,
        seed=config.seed,
    )
    pretrain.run(pretrain_config, report)


def _finetune_and_evaluate(
    folder: Path, training_case: Case, targets: Sequence[Case], config: DemoConfig, report: Reporter
) -> dict[str, Any]:
    """Fine-tune on one case, segment the others, and score them; returns the model and the reports."""
    from . import evaluate, finetune, segment

    out, shared = config.output, {"device": config.device, "seed": config.seed}
    report.info(f"2. Fine-tuning on one labelled scan, {training_case.name}.")
    finetune_config = finetune.FinetuneConfig(
        dataset=folder,
        cases=(training_case.name,),
        init=str(out / "pretraining"),
        output=out / "model",
        steps=config.steps,
        **shared,  # type: ignore[arg-type]
    )
    finetune.run(finetune_config, report)
    report.info(f"3. Segmenting {', '.join(case.name for case in targets)}, on which nothing was trained.")
    inputs = tuple(",".join(map(str, case.channels)) for case in targets)
    segment_config = segment.SegmentConfig(
        model=out / "model",
        input=inputs,
        output=out / "results",
        clean=True,
        **shared,  # type: ignore[arg-type]
    )
    segment.run(segment_config, report)
    report.info("4. Evaluating against the reference.")
    evaluate_config = evaluate.EvaluateConfig(
        prediction=out / "results",
        reference=training_case.label.parent if training_case.label else folder,
        output=out / "scores.json",
        labels=folder / "dataset.json",
    )
    return {**evaluate.run(evaluate_config, report), "model": out / "model"}


def _draw_result(labelled: LabelledCase, target: Case, plan: PreprocessingPlan, dataset: Dataset, out: Path) -> Path:
    """Draw the result of one case; returns the figure's path."""
    from .inference.result_figure import draw_result_figure
    from .io.readers import read_label_map, read_volume
    from .models.folder import read_description

    report = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    figure = out / "result.png"
    draw_result_figure(
        figure,
        scan=read_volume(target.channels),
        prediction=read_label_map(out / "results" / f"{target.name}.nii.gz", allow_empty=True),
        reference=read_label_map(target.label) if target.label else None,
        training_case=(labelled.scan, labelled.labels),
        normalization=plan.normalization,
        structures=dataset.structures,
        losses=[(int(step), loss) for step, loss in read_description(out / "model").training["losses"]],
        scores={row["structure"]: row["dice"] for row in report["cases"] if row["case"] == target.name},
        title=f"{target.name}, segmented after training on {labelled.scan.name} alone",
    )
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return run_command(DemoConfig, run, argv, command="demo", description=__doc__ or "")


if __name__ == "__main__":
    raise SystemExit(main())
