"""Train every arm on the same labelled scan for the same processor time, and test it on other patients.

    python Testing/Benchmarks/one_shot.py run --data OpenKBP --output results.jsonl --arms scratch hi-end-mae dynunet \
        --cases OKBP_004 OKBP_168 OKBP_061 --seeds 0 1 --cpu-seconds 600 --split tune
    python Testing/Benchmarks/one_shot.py report results.jsonl
    python Testing/Benchmarks/one_shot.py plot results.jsonl --cases OKBP_004 --seeds 0 --output dice_against_minutes.png

Arms: `hi-end-mae` starts from --init (default: the packaged weights), `hi-end-mae-encoder` from their encoder alone with
convolutions from scratch, `mae` from the encoder of --mae (a run of the other objective with the same steps), `scratch` from
scratch; `unetr` is the paper's network with the same encoder, and `dynunet` MONAI's residual U-Net, both from scratch. All
are trained in the same loop: the same crops, augmentation, loss, averaging and schedule. Settings that are better for an arm
were chosen on `tune` (`CHOSEN`; --set ARM:NAME=VALUE tries others; `unetr` has the loop's own). `elastix` is not trained: the
labelled scan is registered to each test scan and its labels are propagated (needs itk-elastix, the extra `bench`).

The budget is processor time, because wall clocks of shared machines are unreliable: timing a few of the arm's own steps turns
it into a number of steps, which is recorded with the processor time that the run took. Each run appends one line to the output;
recorded runs are not repeated. Scores are on the scans' original grids, after keeping the largest component of each structure,
for all arms alike. `report` (see `one_shot_report`) compares arms over the same (training case, seed, test case) triples.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from one_shot_report import ARMS, mean_of_structures, plot, read_lines, report
from torch import nn

from HiEndMAECore.data.cases import Case
from HiEndMAECore.data.datasets import read_dataset
from HiEndMAECore.data.labelled_cases import LabelledCase, collect_structures, read_labelled_case
from HiEndMAECore.evaluation.metrics import score_case
from HiEndMAECore.inference.postprocessing import keep_largest_component
from HiEndMAECore.inference.predictor import Predictor
from HiEndMAECore.models.catalogue import DEFAULT_WEIGHTS
from HiEndMAECore.models.description import ModelDescription
from HiEndMAECore.models.pretrained import load_encoder, load_pretrained, read_pretrained
from HiEndMAECore.networks import build_network, segmentation_architecture
from HiEndMAECore.preprocessing.intensity import suggest_normalization
from HiEndMAECore.preprocessing.pipeline import PreprocessingPlan
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.training import finetuning, performance_estimate
from HiEndMAECore.training.mirroring import decide_case_mirroring
from HiEndMAECore.training.plans import PRETRAINED_RATE, FinetuningPlan
from HiEndMAECore.training.training_cases import TrainingCase, preprocess_training_cases

VARIANT = "hi_end_mae_vit_tiny_8p"
CHOSEN = {  # on `tune`, where an arm's best setting is not the loop's own
    "hi-end-mae": {"encoder_rate": PRETRAINED_RATE},
    "hi-end-mae-encoder": {"encoder_rate": PRETRAINED_RATE},
    "mae": {"encoder_rate": PRETRAINED_RATE},
    "dynunet": {"learning_rate": 1e-3, "encoder_rate": 1e-3},
}
CPU = torch.device("cpu")
CHECKPOINT_FOLDER = Path("snapshots")  # nothing is written there: runs of a benchmark are not resumed
finetuning._CHECKPOINT_SECONDS = float("inf")


def build(arm: str, options: argparse.Namespace, *, classes: int, channels: int) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network with its initial weights, and its architecture."""
    variant = "dynunet_small" if arm == "dynunet" else VARIANT
    architecture = segmentation_architecture(variant, classes=classes, in_channels=channels)
    if arm == "dynunet":
        architecture["arguments"]["deep_supervision"] = 0  # MONAI's default, and what the recorded results had
    if arm == "unetr":
        architecture["network"], architecture["arguments"]["feature_size"] = "UNETR", 16
    network = build_network(architecture)
    starts = {"hi-end-mae": options.init, "hi-end-mae-encoder": options.init, "mae": options.mae}
    initial = read_pretrained(str(starts.get(arm, "none")))
    if initial and arm != "hi-end-mae":
        load_encoder(network, initial.encoder)
    else:
        load_pretrained(network, initial)
    return network, architecture


def steps_for(seconds: float, scans: Sequence[TrainingCase], network: nn.Module, plan: Any) -> int:
    """Return the steps that fit into `seconds` of processor time, by timing steps of a temporary copy."""
    timings = []
    for count in (2, 2, 22):  # the first run is slower than the others
        begin = time.process_time()
        trial = FinetuningPlan(**{**vars(plan), "steps": count})
        finetuning.finetune(
            scans, copy.deepcopy(network), plan=trial, device=CPU, folder=CHECKPOINT_FOLDER, report=Reporter(quiet=True)
        )
        timings.append(time.process_time() - begin)
    return max(20, round(seconds / ((timings[2] - timings[1]) / 20)))


def run_one(
    arm: str, training_case: Case, seed: int, tests: Sequence[Case], options: argparse.Namespace
) -> dict[str, Any]:
    """Train and test once; return the line to record."""
    torch.manual_seed(seed)
    report = Reporter(quiet=True)
    read = [read_labelled_case(training_case, report=report)]
    edge = options.spacing
    grid = PreprocessingPlan((edge, edge, edge), suggest_normalization(read[0].scan))
    structures = collect_structures(read, read_dataset(options.data).structures)
    scans = preprocess_training_cases(read, grid, structures, report=report)
    network, architecture = build(arm, options, classes=len(structures) + 1, channels=read[0].scan.channels)
    settings: dict[str, Any] = {"crop": architecture["arguments"]["image_size"], "seed": seed, "steps": 1}
    chosen = {**CHOSEN.get(arm, {}), **{name: value for of, name, value in options.set if of == arm}}
    settings.update(chosen)
    plan = FinetuningPlan(**settings)
    mirroring = decide_case_mirroring(scans, structures, report=report)
    steps = options.steps or steps_for(options.cpu_seconds, scans, network, plan)
    begin, clock = time.process_time(), time.monotonic()
    trained = finetuning.finetune(
        scans, network, plan=FinetuningPlan(**{**settings, "steps": steps}), device=CPU,
        folder=CHECKPOINT_FOLDER, report=report, mirroring=mirroring,
    )  # fmt: skip
    spent, clock = time.process_time() - begin, time.monotonic() - clock
    crop = settings["crop"]
    work = performance_estimate.plan_estimate(scans, crop=crop, steps=steps, batch_size=plan.batch_size)
    estimate = performance_estimate.estimate_performance(
        scans, trained.network, structures, crop=crop, work=work, seed=seed, device=CPU, report=report
    )
    labels = [{"value": s.value, "name": s.name, "colour": list(s.color)} for s in structures]
    description = ModelDescription(
        kind="segmentation", name=arm, architecture=architecture, preparation={**grid.to_json(), "orientation": "RAS"},
        channels=[f"channel {index}" for index in range(read[0].scan.channels)], labels=labels, training={},
    )  # fmt: skip
    predictor = Predictor(trained.network, description, CPU)
    dice, raw, begin = {}, {}, time.process_time()
    for case in tests:
        target = read_labelled_case(case, report=report)
        found = predictor.segment(target.scan).labels
        raw[case.name] = _dice(found, target, structures)
        dice[case.name] = _dice(keep_largest_component(found, [s.value for s in structures])[0], target, structures)
    return {
        "arm": arm, "teacher": training_case.name, "seed": seed, "steps": steps, "cpu_seconds": round(spent, 1),
        "clock_seconds": round(clock, 1), "test_cpu_seconds": round(time.process_time() - begin, 1),
        "threads": torch.get_num_threads(), "budget": options.cpu_seconds, "split": options.split,
        "settings": chosen, "dice": dice,
        "dice_of_all_pieces": raw,
        "self_check": estimate.to_json()["structures"],
        "parameters": sum(parameter.numel() for parameter in trained.network.parameters()),
    }  # fmt: skip


def _dice(found: np.ndarray, target: LabelledCase, structures: Sequence[Any]) -> dict[str, float | None]:
    """{structure: Dice, None where the case does not contour it}."""
    scores = score_case(found, target.labels.array[0], affine=target.scan.affine)
    return {s.name: scores[s.value].dice if s.value in scores else None for s in structures}


def run_elastix(
    arm: str, training_case: Case, seed: int, tests: Sequence[Case], options: argparse.Namespace
) -> dict[str, Any]:
    """Register the labelled scan to each test scan and propagate its labels.

    The settings are the defaults of elastix for rigid, affine and B-spline registration (mutual information), except for
    control points 20 mm apart (better than 10 mm on the first two `tune` cases, and three times as fast), starting where the
    centers of mass of the bodies coincide.
    """
    import itk

    stages = itk.ParameterObject.New()
    for stage in ("rigid", "affine", "bspline"):
        settings = stages.GetDefaultParameterMap(stage, 4, 20.0)
        settings["AutomaticTransformInitialization"] = ["true" if stage == "rigid" else "false"]
        settings["AutomaticTransformInitializationMethod"] = ["CenterOfGravity"]
        settings["RandomSeed"] = [str(seed + 1)]
        stages.AddParameterMap(settings)

    def read(case: Case) -> Any:
        image = itk.imread(str(case.channels[0]), itk.F)
        voxels = itk.array_view_from_image(image)
        voxels[:] = np.clip(voxels, -1024, 1000) + 1024  # air has no weight in the center of mass
        return image

    structures, dice, quiet = read_dataset(options.data).structures, {}, Reporter(quiet=True)
    values, moving = [s.value for s in structures], read(training_case)
    labels = itk.imread(str(training_case.label), itk.F)
    begin, clock = time.process_time(), time.monotonic()
    for case in tests:
        _, found = itk.elastix_registration_method(
            read(case), moving, parameter_object=stages, log_to_console=False, number_of_threads=options.threads
        )
        for index in range(3):
            found.SetParameter(index, "ResampleInterpolator", "FinalNearestNeighborInterpolator")
        propagated = np.rint(itk.array_from_image(itk.transformix_filter(labels, found))).astype(np.int16).T
        target = read_labelled_case(case, report=quiet)
        dice[case.name] = _dice(keep_largest_component(propagated, values)[0], target, structures)
    return {
        "arm": arm, "teacher": training_case.name, "seed": seed, "steps": 0, "cpu_seconds": 0.0, "clock_seconds": 0.0,
        "test_cpu_seconds": round(time.process_time() - begin, 1), "test_clock_seconds": round(time.monotonic() - clock, 1),
        "threads": options.threads, "budget": options.cpu_seconds, "split": options.split, "settings": {}, "dice": dice,
    }  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Train and test every arm on every training case with every seed; recorded runs are not repeated."""
    torch.set_num_threads(options.threads)
    dataset = {case.name: case for case in read_dataset(options.data).cases}
    splits = options.data / "splits.json"
    tested = json.loads(splits.read_text())[options.split] if splits.exists() else set(dataset) - set(options.cases)
    tests = [dataset[name] for name in sorted(tested)]
    if unfit := set(options.cases) & {case.name for case in tests}:
        raise SystemExit(f"{', '.join(sorted(unfit))} would be trained on and tested.")
    done = {_key(line) for line in read_lines(options.output)} if options.output.exists() else set()
    for seed in options.seeds:
        for name in options.cases:
            for arm in options.arms:
                key = (arm, name, seed, options.cpu_seconds, options.split)
                if key in done:
                    continue
                line = (run_elastix if arm == "elastix" else run_one)(arm, dataset[name], seed, tests, options)
                with options.output.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                mean = mean_of_structures(line["dice"].values())
                sys.stdout.write(
                    f"{arm} {name} seed {seed}: {line['steps']} steps, {line['cpu_seconds']} s, {mean:.3f}\n"
                )
                sys.stdout.flush()


def _key(line: dict[str, Any]) -> tuple[Any, ...]:
    return line["arm"], line["teacher"], line["seed"], line["budget"], line["split"]


def _setting(text: str) -> tuple[str, str, float]:
    arm, _, setting = text.partition(":")
    name, _, value = setting.partition("=")
    if arm not in ARMS or name not in FinetuningPlan.__dataclass_fields__:
        raise argparse.ArgumentTypeError(f"'{text}' does not name an arm and a setting")
    return arm, name, float(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    runs = commands.add_parser("run")
    runs.set_defaults(command=run)
    runs.add_argument(
        "--data",
        type=Path,
        required=True,
        help="a data set in nnU-Net's layout; without a splits.json, every case that is not trained on is tested",
    )
    runs.add_argument("--output", type=Path, required=True)
    runs.add_argument("--arms", nargs="+", choices=ARMS, default=("hi-end-mae", "scratch", "dynunet"))
    runs.add_argument("--cases", nargs="+", default=("OKBP_004", "OKBP_168", "OKBP_061"))
    runs.add_argument("--seeds", nargs="+", type=int, default=(0, 1))
    runs.add_argument("--cpu-seconds", type=float, default=600.0, help="5 minutes of two cores")
    runs.add_argument("--steps", type=int, help="instead of --cpu-seconds")
    runs.add_argument("--split", choices=("tune", "test"), default="tune")
    runs.add_argument("--spacing", type=float, default=3.0)
    runs.add_argument("--threads", type=int, default=2)
    runs.add_argument("--init", default=DEFAULT_WEIGHTS)
    runs.add_argument("--mae", default="none")
    runs.add_argument("--set", nargs="*", type=_setting, default=(), help="ARM:NAME=VALUE, a number of FinetuningPlan")
    reports = commands.add_parser("report")
    reports.set_defaults(command=report)
    reports.add_argument("files", nargs="+", type=Path)
    reports.add_argument("--seeds", nargs="+", type=int, default=(0, 1))
    reports.add_argument("--budget", type=float, help="only runs of so many processor seconds")
    plots = commands.add_parser("plot")
    plots.set_defaults(command=plot)
    plots.add_argument("files", nargs="+", type=Path)
    plots.add_argument(
        "--cases", nargs="+", default=("OKBP_004",), help="training cases, the same ones for every budget"
    )
    plots.add_argument("--seeds", nargs="+", type=int, default=(0,))
    plots.add_argument("--arms", nargs="+", choices=ARMS, default=("hi-end-mae", "scratch", "dynunet"))
    plots.add_argument("--output", type=Path, default=Path("dice_against_minutes.png"))
    options = parser.parse_args()
    options.command(options)


if __name__ == "__main__":
    main()
