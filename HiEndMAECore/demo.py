"""The main job, end to end, with pictures: pretrain, learn from ONE labelled scan, segment another patient, score it.

  python -m HiEndMAECore.demo --output demo

Without --dataset it works on digital patients made on the spot (no download, no patient data); with a data set in
nnU-Net's layout, on its scans: the first case teaches, the next ones are segmented.
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
    from .preprocessing.intensity import IntensityNormalization

_UNLABELLED = 8
_SPACING = 5.0  # mm; coarse, so that two processor cores learn the digital patients in minutes


@dataclass(frozen=True, kw_only=True)
class DemoConfig(CommandConfig):
    """Where to write, on what, and how long."""

    output: Path = option(help="Folder to write: scans, model, results, picture.", required=True)
    dataset: Path | None = option(None, help="Real scans in nnU-Net's or Decathlon's layout.")
    teacher: str | None = option(None, help="Case of the data set to learn from (default: the first).")
    targets: int = option(1, help="How many other cases to segment.")
    pretraining_steps: int = option(250, help="Steps of pretraining, 4 crops each.")
    steps: int = option(550, help="Steps of learning from the labelled scan.")
    spacing: float | None = option(None, help="Working grid in mm (default: 5 for the digital patients, else chosen).")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "targets", "pretraining_steps", "steps", "spacing")


def run(config: DemoConfig, report: Reporter | None = None) -> dict[str, Any]:
    """Run the doors one after the other; returns the picture and the scores. Raises `InputError`."""
    report = report or Reporter(quiet=True)
    from HiEndMAECore import evaluate, finetune, prepare, pretrain, segment

    from .data.datasets import read_dataset
    from .data.labelled_cases import read_labelled_case
    from .runtime.devices import choose_device
    from .training import presets

    started = time.monotonic()
    shared: dict[str, Any] = {"device": config.device, "seed": config.seed}
    out = config.output
    dataset = config.dataset or _draw_patients(out / "patients", config.targets, report)
    found = read_dataset(dataset)
    teacher, targets = _roles(found, config)
    read = read_labelled_case(teacher, report=report)
    preset = presets.choose_preset("auto", choose_device(config.device))
    edge = config.spacing or (None if config.dataset else _SPACING)
    plan = presets.choose_preprocessing([read], preset=preset, spacing=None if edge is None else (edge, edge, edge))
    report.info(f"1. Pretraining on {min(len(found.unlabelled), _UNLABELLED)} scans that nobody labelled.")
    listed = out / "unlabelled.txt"
    pool = [case.channels[0].resolve() for case in (found.unlabelled or (teacher,))[:_UNLABELLED]]
    listed.parent.mkdir(parents=True, exist_ok=True)
    listed.write_text("\n".join(map(str, pool)) + "\n", encoding="utf-8")
    store, pretrained, model, results = out / "store", out / "pretraining", out / "model", out / "results"
    modality = "ct" if plan.normalization.kind == "window" else "mri"
    prepare.run(
        prepare.PrepareConfig(input=(listed,), output=store, spacing=plan.spacing, modality=modality, **shared), report
    )
    pretrain.run(
        pretrain.PretrainConfig(
            data=store,
            output=pretrained,
            variant="hi_end_mae_vit_tiny_8p",
            steps=config.pretraining_steps,
            batch_size=4,
            learning_rate=1e-3,
            resume=(pretrained / "config.json").exists(),
            **shared,
        ),
        report,
    )
    report.info(f"2. Learning from one labelled scan, {teacher.name}.")
    finetune.run(
        finetune.FinetuneConfig(
            dataset=dataset, cases=(teacher.name,), init=str(pretrained), output=model, steps=config.steps, **shared
        ),
        report,
    )
    report.info(f"3. Segmenting {', '.join(case.name for case in targets)}, never seen before.")
    inputs = tuple(",".join(map(str, case.channels)) for case in targets)
    segment.run(segment.SegmentConfig(model=model, input=inputs, output=results, clean=True, **shared), report)
    report.info("4. Scoring against the reference.")
    reference = teacher.label.parent if teacher.label else dataset
    scores = evaluate.run(
        evaluate.EvaluateConfig(
            prediction=results, reference=reference, output=out / "scores.json", labels=dataset / "dataset.json"
        ),
        report,
    )
    picture = _show(out, read, targets[0], plan.normalization, found)
    report.preview(picture)
    report.info(f"Look at {picture}. All took {time.monotonic() - started:.0f} s.")
    return {"picture": picture, **scores, "model": model}


def _draw_patients(folder: Path, targets: int, report: Reporter) -> Path:
    """Make the digital patients: one to learn from, `targets` to segment, and some whom nobody labels."""
    from .data.phantom import DEMO_SEEDS
    from .data.phantom_dataset import write_patients

    first = max(DEMO_SEEDS) + 1
    labelled = [*DEMO_SEEDS, *range(first, first + targets - 1)]
    unlabelled = range(first + targets - 1, first + targets - 1 + _UNLABELLED)
    patients = write_patients(folder, labelled=labelled, unlabelled=unlabelled)
    for _ in report.steps("drawing patients", len(labelled) + len(unlabelled)):
        next(patients)
    return folder


def _roles(dataset: Dataset, config: DemoConfig) -> tuple[Case, list[Case]]:
    """(the case to learn from, the cases to segment); raises `InputError` when there are too few."""
    cases = {case.name: case for case in dataset.cases}
    if len(cases) < 2 or (config.teacher and config.teacher not in cases):
        message = f"The data set {dataset.name} has the labelled cases: {', '.join(cases) or 'none'}."
        raise InputError("case_absent", message, "Two are needed at least; check --teacher.")
    teacher = cases.pop(config.teacher or next(iter(cases)))
    return teacher, list(cases.values())[: config.targets]


def _show(
    out: Path, teacher: LabelledCase, target: Case, normalization: IntensityNormalization, dataset: Dataset
) -> Path:
    """The picture of the first target."""
    from .inference.result_figure import draw_result_figure
    from .io.readers import read_label_map, read_volume
    from .models.folder import read_description

    whole = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    scores = {row["structure"]: row["dice"] for row in whole["cases"] if row["case"] == target.name}
    picture = out / "result.png"
    draw_result_figure(
        picture,
        scan=read_volume(target.channels),
        prediction=read_label_map(out / "results" / f"{target.name}.nii.gz", allow_empty=True),
        reference=read_label_map(target.label) if target.label else None,
        training_case=(teacher.scan, teacher.labels),
        normalization=normalization,
        structures=dataset.structures,
        losses=[(int(step), loss) for step, loss in read_description(out / "model").training["losses"]],
        scores=scores,
        title=f"{target.name}, segmented after learning from {teacher.scan.name} alone",
    )
    return picture


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(DemoConfig, run, argv, command="demo", description=__doc__ or "")


if __name__ == "__main__":
    raise SystemExit(main())
