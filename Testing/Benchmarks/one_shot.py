"""What one labelled scan teaches, and what one would pick instead: every arm learns from the same scan for the same time.

    python Testing/Benchmarks/one_shot.py run --data OpenKBP --output results.jsonl --arms scratch hi-end-mae dynunet \
        --cases OKBP_004 OKBP_168 OKBP_061 --seeds 0 1 --cpu-seconds 600 --split tune
    python Testing/Benchmarks/one_shot.py report results.jsonl
    python Testing/Benchmarks/one_shot.py plot results.jsonl --cases OKBP_004 --seeds 0 --output dice_against_minutes.png

Arms: `hi-end-mae` starts from --init (default: the weights in the box), `hi-end-mae-encoder` from their encoder alone, its
convolutions from nothing, `mae` so from --mae (a run of the other objective, the same steps),
`scratch` from nothing, `unetr` is the paper's network with the same encoder from scratch, `dynunet` MONAI's residual U-Net
from scratch. All learn in the same loop: the same crops, changes, loss, averaging and schedule. What an arm does better with
was chosen on `tune` (`CHOSEN`; --set ARM:NAME=VALUE tries others; `unetr` has the loop's own). `elastix` learns nothing: the
labelled scan is registered to each tested scan and its labels carried over (needs itk-elastix, the extra `bench`).

The budget is processor time, for clocks of shared machines lie: a probe of the arm's own steps turns it into a number of
steps, which is written down with the processor time that the run took. Each run appends one line to the output; what is
there already is not run again. Scores are on the scans' own grids, after keeping the largest piece of each structure, for
all arms alike. `report` compares arms over the same (teacher, seed, case) pairs: paired differences are averaged over
teachers and seeds first, and tested over cases (Wilcoxon).
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn

from HiEndMAECore.data.cases import Case
from HiEndMAECore.data.datasets import read_dataset
from HiEndMAECore.data.labelled_cases import LabelledCase, collect_structures, read_labelled_case
from HiEndMAECore.evaluation.metrics import score_case
from HiEndMAECore.evaluation.statistics import bootstrap_interval
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
ARMS = ("hi-end-mae", "hi-end-mae-encoder", "mae", "scratch", "unetr", "dynunet", "elastix")
CHOSEN = {  # on `tune`, where an arm's best setting is not the loop's own
    "hi-end-mae": {"encoder_rate": PRETRAINED_RATE},
    "hi-end-mae-encoder": {"encoder_rate": PRETRAINED_RATE},
    "mae": {"encoder_rate": PRETRAINED_RATE},
    "dynunet": {"learning_rate": 1e-3, "encoder_rate": 1e-3},
}
CPU = torch.device("cpu")
NOWHERE = Path("snapshots")  # none is written: a run of a benchmark is not taken up in its middle
finetuning._CHECKPOINT_SECONDS = float("inf")


def build(arm: str, options: argparse.Namespace, *, classes: int, channels: int) -> tuple[nn.Module, dict[str, Any]]:
    """(network with its starting weights, architecture)."""
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
    """Steps that fit into `seconds` of processor time, from steps of a throw-away copy."""
    took = []
    for count in (2, 2, 22):  # the first is slow for being the first
        begin = time.process_time()
        trial = FinetuningPlan(**{**vars(plan), "steps": count})
        finetuning.finetune(
            scans, copy.deepcopy(network), plan=trial, device=CPU, folder=NOWHERE, report=Reporter(quiet=True)
        )
        took.append(time.process_time() - begin)
    return max(20, round(seconds / ((took[2] - took[1]) / 20)))


def run_one(arm: str, teacher: Case, seed: int, tests: Sequence[Case], options: argparse.Namespace) -> dict[str, Any]:
    """Learn and test once; what is to be written down."""
    torch.manual_seed(seed)
    report = Reporter(quiet=True)
    read = [read_labelled_case(teacher, report=report)]
    edge = options.spacing
    grid = PreprocessingPlan((edge, edge, edge), suggest_normalization(read[0].scan))
    structures = collect_structures(read, read_dataset(options.data).structures)
    scans = preprocess_training_cases(read, grid, structures, report=report)
    network, architecture = build(arm, options, classes=len(structures) + 1, channels=read[0].scan.channels)
    settings: dict[str, Any] = {"crop": architecture["arguments"]["image_size"], "seed": seed, "steps": 1}
    own = {**CHOSEN.get(arm, {}), **{name: value for of, name, value in options.set if of == arm}}
    settings.update(own)
    plan = FinetuningPlan(**settings)
    mirroring = decide_case_mirroring(scans, structures, report=report)
    steps = options.steps or steps_for(options.cpu_seconds, scans, network, plan)
    begin, clock = time.process_time(), time.monotonic()
    taught = finetuning.finetune(
        scans, network, plan=FinetuningPlan(**{**settings, "steps": steps}), device=CPU,
        folder=NOWHERE, report=report, mirroring=mirroring,
    )  # fmt: skip
    spent, clock = time.process_time() - begin, time.monotonic() - clock
    crop = settings["crop"]
    work = performance_estimate.plan_estimate(scans, crop=crop, steps=steps, batch_size=plan.batch_size)
    checked = performance_estimate.estimate_performance(
        scans, taught.network, structures, crop=crop, work=work, seed=seed, device=CPU, report=report
    )
    labels = [{"value": s.value, "name": s.name, "colour": list(s.color)} for s in structures]
    description = ModelDescription(
        kind="segmentation", name=arm, architecture=architecture, preparation={**grid.to_json(), "orientation": "RAS"},
        channels=[f"channel {index}" for index in range(read[0].scan.channels)], labels=labels, training={},
    )  # fmt: skip
    predictor = Predictor(taught.network, description, CPU)
    dice, raw, begin = {}, {}, time.process_time()
    for case in tests:
        target = read_labelled_case(case, report=report)
        found = predictor.segment(target.scan).labels
        raw[case.name] = _dice(found, target, structures)
        dice[case.name] = _dice(keep_largest_component(found, [s.value for s in structures])[0], target, structures)
    return {
        "arm": arm, "teacher": teacher.name, "seed": seed, "steps": steps, "cpu_seconds": round(spent, 1),
        "clock_seconds": round(clock, 1), "test_cpu_seconds": round(time.process_time() - begin, 1),
        "threads": torch.get_num_threads(), "budget": options.cpu_seconds, "split": options.split,
        "settings": own, "dice": dice,
        "dice_of_all_pieces": raw,
        "self_check": checked.to_json()["structures"],
        "parameters": sum(parameter.numel() for parameter in taught.network.parameters()),
    }  # fmt: skip


def _dice(found: np.ndarray, target: LabelledCase, structures: Sequence[Any]) -> dict[str, float | None]:
    """{structure: Dice, None where the case does not contour it}."""
    scores = score_case(found, target.labels.array[0], affine=target.scan.affine)
    return {s.name: scores[s.value].dice if s.value in scores else None for s in structures}


def run_elastix(
    arm: str, teacher: Case, seed: int, tests: Sequence[Case], options: argparse.Namespace
) -> dict[str, Any]:
    """Single-atlas registration, as one would try it first: elastix' own settings for rigid, affine and B-spline (mutual
    information), but for control points 20 mm apart (of 10 and 20 mm the better on the first two `tune` cases, and three
    times as fast), started where the bodies' centres of mass coincide."""
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
        voxels[:] = np.clip(voxels, -1024, 1000) + 1024  # air weighs nothing
        return image

    structures, dice, quiet = read_dataset(options.data).structures, {}, Reporter(quiet=True)
    values, moving = [s.value for s in structures], read(teacher)
    labels = itk.imread(str(teacher.label), itk.F)
    begin, clock = time.process_time(), time.monotonic()
    for case in tests:
        _, found = itk.elastix_registration_method(
            read(case), moving, parameter_object=stages, log_to_console=False, number_of_threads=options.threads
        )
        for index in range(3):
            found.SetParameter(index, "ResampleInterpolator", "FinalNearestNeighborInterpolator")
        carried = np.rint(itk.array_from_image(itk.transformix_filter(labels, found))).astype(np.int16).T
        target = read_labelled_case(case, report=quiet)
        dice[case.name] = _dice(keep_largest_component(carried, values)[0], target, structures)
    return {
        "arm": arm, "teacher": teacher.name, "seed": seed, "steps": 0, "cpu_seconds": 0.0, "clock_seconds": 0.0,
        "test_cpu_seconds": round(time.process_time() - begin, 1), "test_clock_seconds": round(time.monotonic() - clock, 1),
        "threads": options.threads, "budget": options.cpu_seconds, "split": options.split, "settings": {}, "dice": dice,
    }  # fmt: skip


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    dataset = {case.name: case for case in read_dataset(options.data).cases}
    splits = options.data / "splits.json"
    tested = json.loads(splits.read_text())[options.split] if splits.exists() else set(dataset) - set(options.cases)
    tests = [dataset[name] for name in sorted(tested)]
    if unfit := set(options.cases) & {case.name for case in tests}:
        raise SystemExit(f"{', '.join(sorted(unfit))} would be taught and tested.")
    done = {_key(line) for line in _lines(options.output)} if options.output.exists() else set()
    for seed in options.seeds:
        for name in options.cases:
            for arm in options.arms:
                key = (arm, name, seed, options.cpu_seconds, options.split)
                if key in done:
                    continue
                line = (run_elastix if arm == "elastix" else run_one)(arm, dataset[name], seed, tests, options)
                with options.output.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                mean = _mean_of_structures(line["dice"].values())
                sys.stdout.write(
                    f"{arm} {name} seed {seed}: {line['steps']} steps, {line['cpu_seconds']} s, {mean:.3f}\n"
                )
                sys.stdout.flush()


def _setting(text: str) -> tuple[str, str, float]:
    arm, _, setting = text.partition(":")
    name, _, value = setting.partition("=")
    if arm not in ARMS or name not in FinetuningPlan.__dataclass_fields__:
        raise argparse.ArgumentTypeError(f"'{text}' names no arm or no setting")
    return arm, name, float(value)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _key(line: dict[str, Any]) -> tuple[Any, ...]:
    return line["arm"], line["teacher"], line["seed"], line["budget"], line["split"]


def _mean_of_structures(cases: Any) -> float:
    columns = defaultdict(list)
    for case in cases:
        for structure, value in case.items():
            if value is not None:
                columns[structure].append(value)
    return statistics.fmean(statistics.fmean(column) for column in columns.values())


def report(options: argparse.Namespace) -> None:
    """Markdown: every run, per structure with intervals over cases, and paired comparisons with the first arm."""
    lines = [line for file in options.files for line in _lines(file) if line["seed"] in options.seeds]
    if len({line["split"] for line in lines}) > 1 or (
        len({line["budget"] for line in lines}) > 1 and not options.budget
    ):
        raise SystemExit("These runs had different budgets or tests: give files of one kind, or --budget.")
    lines = [line for line in lines if options.budget in (None, line["budget"])]
    info = sys.stdout.write
    info(
        "| arm | teacher | seed | steps | processor s | mean Dice | structures at 0 |\n|---|---|---|---|---|---|---|\n"
    )
    for line in lines:
        zeros = [s for s in next(iter(line["dice"].values())) if not any(case[s] for case in line["dice"].values())]
        info(f"| {line['arm']} | {line['teacher']} | {line['seed']} | {line['steps']} | {line['cpu_seconds']:.0f} ")
        info(f"| {_mean_of_structures(line['dice'].values()):.3f} | {', '.join(zeros) or 'none'} |\n")
    arms = [arm for arm in ARMS if any(line["arm"] == arm for line in lines)]
    of_arm = {arm: [line for line in lines if line["arm"] == arm] for arm in arms}
    structures = list(next(iter(lines[0]["dice"].values())))
    info("\n| structure | " + " | ".join(arms) + " |\n|---|" + "---|" * len(arms) + "\n")
    for structure in (*structures, None):
        info(f"| {structure or '**mean of structures**'} ")
        for arm in arms:
            values = list(_of_cases(of_arm[arm], structure).values())
            low, high = bootstrap_interval([[value] for value in values], seed=0) or (np.nan, np.nan)
            info(f"| {statistics.fmean(values):.3f} ({low:.3f} to {high:.3f}) ")
        info("|\n")
    info(f"\nPaired differences in mean Dice, {arms[0]} less the other:\n\n")
    info("| other | difference | cases won | p |\n|---|---|---|---|\n")
    for arm in arms[1:]:
        pair = [of_arm[arms[0]], of_arm[arm]]
        shared = set.intersection(*({(line["teacher"], line["seed"]) for line in of} for of in pair))
        ours, theirs = (
            _of_cases([line for line in of if (line["teacher"], line["seed"]) in shared], None) for of in pair
        )
        differences = np.array([ours[case] - theirs[case] for case in ours if case in theirs])
        p = stats.wilcoxon(differences).pvalue if len(differences) > 5 else np.nan
        info(f"| {arm} | {differences.mean():+.3f} | {(differences > 0).sum()} of {len(differences)} | {p:.2g} |\n")
    info("\nThe self-check beside the truth, over structures and runs:\n\n")
    info(
        "| arm | structures | error of the expected Dice | of always saying the mean | correlation | of `deformed` alone |\n"
    )
    info("|---|---|---|---|---|---|\n")
    for arm in arms:
        pairs = [pair for line in of_arm[arm] for pair in _checked(line)]
        if pairs:
            expected, deformed, true = np.array(pairs).T
            info(
                f"| {arm} | {len(true)} | {np.abs(expected - true).mean():.3f} | {np.abs(true.mean() - true).mean():.3f} "
            )
            info(f"| {np.corrcoef(expected, true)[0, 1]:.2f} | {np.corrcoef(deformed, true)[0, 1]:.2f} |\n")


def _checked(line: dict[str, Any]) -> list[tuple[float, float, float]]:
    """(expected Dice, Dice on deformed copies, true Dice over the tested cases) of each structure."""
    found = []
    for check in line.get("self_check", ()):
        true = [case[check["name"]] for case in line["dice"].values() if case[check["name"]] is not None]
        if check["expected"] is not None and true:
            expected = performance_estimate.CALIBRATION.expected(check["deformed"], check["voxels"])
            found.append((expected, check["deformed"], statistics.fmean(true)))
    return found


def plot(options: argparse.Namespace) -> None:
    """Mean Dice against the budget, one line an arm through the means over runs, one dot a run."""
    import matplotlib.pyplot as plt

    points: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in (line for file in options.files for line in _lines(file)):
        if line["teacher"] not in options.cases or line["seed"] not in options.seeds or line["arm"] not in options.arms:
            continue
        points[line["arm"]][line["budget"] / 120].append(_mean_of_structures(line["dice"].values()))
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    colors = {"hi-end-mae": "#2f6fb0", "scratch": "#d17b0f", "dynunet": "#6b7785"}
    for arm in sorted(points, key=ARMS.index):
        minutes = sorted(points[arm])
        means = [statistics.fmean(points[arm][at]) for at in minutes]
        (drawn,) = axes.plot(minutes, means, marker="o", label=arm, color=colors.get(arm), linewidth=2)
        for at in minutes:
            axes.plot(
                [at] * len(points[arm][at]), points[arm][at], ".", color=drawn.get_color(), alpha=0.5, markersize=5
            )
    axes.set_xscale("log")
    ticks = sorted({at for arm in points.values() for at in arm})
    axes.set_xticks(ticks, [f"{at:g}" for at in ticks])
    axes.minorticks_off()
    axes.set_xlabel("minutes of learning on two cores (processor time / 2)")
    axes.set_ylabel("mean Dice on other patients")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(options.output, dpi=140)


def _of_cases(lines: Sequence[dict[str, Any]], structure: str | None) -> dict[str, float]:
    """{case: Dice, averaged over teachers and seeds} of one structure, or of the mean of a case's structures."""
    values = defaultdict(list)
    for line in lines:
        for case, row in line["dice"].items():
            there = [value for name, value in row.items() if value is not None and structure in (None, name)]
            if there:
                values[case].append(statistics.fmean(there))
    return {case: statistics.fmean(found) for case, found in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    doors = parser.add_subparsers(required=True)
    runs = doors.add_parser("run")
    runs.set_defaults(command=run)
    runs.add_argument(
        "--data",
        type=Path,
        required=True,
        help="a data set in nnU-Net's layout; without a splits.json, every case that is not taught is tested",
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
    told = doors.add_parser("report")
    told.set_defaults(command=report)
    told.add_argument("files", nargs="+", type=Path)
    told.add_argument("--seeds", nargs="+", type=int, default=(0, 1))
    told.add_argument("--budget", type=float, help="only runs of so many processor seconds")
    drawn = doors.add_parser("plot")
    drawn.set_defaults(command=plot)
    drawn.add_argument("files", nargs="+", type=Path)
    drawn.add_argument("--cases", nargs="+", default=("OKBP_004",), help="taught: of every budget the same ones")
    drawn.add_argument("--seeds", nargs="+", type=int, default=(0,))
    drawn.add_argument("--arms", nargs="+", choices=ARMS, default=("hi-end-mae", "scratch", "dynunet"))
    drawn.add_argument("--output", type=Path, default=Path("dice_against_minutes.png"))
    options = parser.parse_args()
    options.command(options)


if __name__ == "__main__":
    main()
