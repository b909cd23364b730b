"""Train a segmentation model on one labelled scan, or on a few.

python -m HiEndMAECore.finetune --image scan.nii.gz --label organs.nii.gz --output my-model --budget 5min
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cli.options import CommandConfig, option, require_positive
from .cli.runner import run_command
from .errors import UsageError
from .models.folder import check_output_free
from .models.schema import check_spacing_option
from .networks.registry import check_network_options, list_networks
from .reporting.reporter import Reporter

BUDGETS = {"1min": 60.0, "5min": 300.0, "20min": 1200.0, "good": 3600.0}  # seconds


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(CommandConfig):
    """Options of `finetune`: the labelled cases, the initial weights, and the length of the training."""

    image: tuple[str, ...] = option((), help="Scans, one for each case; join the channels of one case by commas.")
    label: tuple[Path, ...] = option((), help="Label maps, one for each scan, in the same order.")
    dataset: Path | None = option(
        None, help="Data set in the layout of nnU-Net or the Decathlon, instead of --image and --label."
    )
    cases: tuple[str, ...] = option((), help="Cases of the data set to train on (default: all).")
    share: int | None = option(
        None,
        help="Percent of the data set's cases to train on; with the same seed a larger share contains the smaller ones.",
        choices=(1, 10, 100),
    )
    names: Path | None = option(None, help="JSON file with the structures' names (a dataset.json or model.json).")
    ignore: int | None = option(
        None,
        help="Label value of voxels that nobody judged and that are left out (default: 'ignore' of the dataset.json).",
    )
    ignore_unlabelled_slices: str | None = option(
        None,
        help="Plane of the slices, for scans of which only some slices are labelled: those without any label are left out.",
        choices=("axial", "coronal", "sagittal"),
    )
    absent_is_background: bool = option(
        False,
        help="A structure that only other scans label is not in the scan (default: unknown there, and not trained on).",
    )
    init: str | None = option(
        None,
        help="Initial weights: a model, a pretraining run, the authors' checkpoint, a catalogue name, or none (default: "
        "the packaged weights if they fit the network; none with --preset paper-one-shot).",
    )
    network: str | None = option(
        None,
        help=f"Network to train (default: that of the initial weights, else the preset's): {', '.join(list_networks())}.",
    )
    variant: str | None = option(
        None,
        help="Variant of the network (default: that of the initial weights or the preset; with --network alone its first).",
    )
    output: Path = option(help="Model to write: a folder, or a file ending in .zip.", required=True)
    name: str | None = option(None, help="Name of the model (default: the name of the output).")
    budget: str = option(
        "5min",
        help="Total time for training, previews and the performance estimate; 'good' takes up to an hour.",
        choices=tuple(BUDGETS),
    )
    steps: int | None = option(None, help="Optimizer steps, instead of a budget.")
    preset: str = option(
        "auto",
        help="Network, batch and grid for this kind of device (auto: gpu on CUDA, else cpu, or cpu-slow where the budget "
        "has too few steps for it); paper-one-shot is the paper's recipe of 5,000 epochs, without a budget.",
        choices=("auto", "cpu", "cpu-slow", "gpu", "paper-one-shot"),
    )
    spacing: tuple[float, float, float] | None = option(
        None,
        help="Spacing of the network's grid in mm along right, anterior and superior (default: chosen).",
        metavar=("R", "A", "S"),
    )
    improve: Path | None = option(None, help="Model to continue training from, with the scans given here.")
    no_atlas: bool = option(
        False,
        help="Keep no atlas of the labelled scan in the model (label map, edges and tissue classes, no intensities). "
        "Without it other scans are not registered to the labelled one, and are segmented worse.",
    )
    preview: bool = option(False, help="Segment the first scan a few times during training (takes 5 % of the time).")
    resume: bool = option(False, help="Continue an interrupted run with the same output.")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "steps", "spacing", "ignore")
        check_spacing_option(self.spacing)
        if (self.dataset is None) == (not self.image) or len(self.image) != len(self.label):
            raise UsageError(
                "usage", "Give one --label for each --image, or --dataset with --cases.", "See: finetune --help"
            )
        if self.share is not None and self.dataset is None:
            raise UsageError("usage", "--share needs a data set.", "Give --dataset as well, or leave --share out.")
        if self.improve is not None and self.init is not None:
            raise UsageError("usage", "--improve and --init exclude each other.", "Give one of the two.")
        if self.improve is not None and (self.network or self.variant):
            raise UsageError(
                "usage", "--improve keeps the model's network and size.", "Leave out --network and --variant."
            )
        check_network_options(self.network, self.variant)


def run(config: FinetuneConfig, report: Reporter | None = None) -> dict[str, Any]:
    """Train a segmentation model and write it; returns its path as "model".

    Raises:
        InputError: A file cannot be used.
        Cancelled: The run was cancelled.
    """
    report = report or Reporter(quiet=True)
    check_output_free(config.output)
    from .data.labelled_cases import PartialLabels
    from .runtime.devices import choose_device
    from .training import finetune_pipeline as pipeline
    from .training.atlases import build_atlases
    from .training.machine_plan import choose_machine_plan
    from .training.presets import PRESETS
    from .training.training_data import load_training_data, select_cases

    device = choose_device(config.device)
    run_directory = pipeline.run_directory_of(config.output)
    budget = None if config.steps else BUDGETS[config.budget]
    machine = choose_machine_plan(
        config.preset, device, report=report, run_directory=run_directory if config.resume else None,
        budget_seconds=None if config.network or config.variant or config.init or config.improve else budget,
    )  # fmt: skip
    preset = PRESETS[machine.preset]
    choice = pipeline.NetworkChoice(config.network, config.variant)
    initial = pipeline.read_initial_weights(preset, choice, init=config.init, improve=config.improve, report=report)
    selection = select_cases(
        images=config.image, labels=config.label, dataset=config.dataset, names=config.cases,
        share=config.share, structures=config.names, seed=config.seed,
        partial=PartialLabels(config.ignore, config.ignore_unlabelled_slices, config.absent_is_background),
    )  # fmt: skip
    data = load_training_data(
        selection, preset, initial,
        spacing=config.spacing, retain_structures=config.improve is not None, report=report,
    )  # fmt: skip
    model = pipeline.build_model(data, preset, initial, choice, seed=config.seed, report=report)
    preview = pipeline.make_preview(data, run_directory, report) if config.preview else None
    schedule = pipeline.choose_schedule(
        data, model, preset,
        steps=config.steps, budget_seconds=BUDGETS[config.budget] - machine.spent, share=config.share,
        preview=preview, seed=config.seed, preset_name=machine.preset, report=report,
    )  # fmt: skip
    result = pipeline.train(
        data, model, schedule,
        device=device, run_directory=run_directory, resume=config.resume, preview=preview, report=report,
    )  # fmt: skip
    performance = pipeline.estimate(data, result, schedule.plan, device=device, report=report)
    atlases = () if config.no_atlas else build_atlases(
        data.cases, data.preprocessing.normalization,
        unlabelled=data.unlabelled, improved=config.improve, report=report,
    )  # fmt: skip
    pipeline.write_trained_model(
        config.output, config.name or config.output.stem, data, model, schedule, result, performance,
        preset=config.preset, machine=machine, device=device, atlases=atlases,
    )  # fmt: skip
    report.metric("learning_seconds", round(result.seconds, 1), steps=result.steps)
    performance.log(report)
    report.info(f"The model is at {config.output}.")
    return {"model": config.output}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(FinetuneConfig, run, argv, command="finetune", description=__doc__ or "")


if __name__ == "__main__":
    raise SystemExit(main())
