"""Tables and the plot of `one_shot.py`: arms compared over the same training cases, seeds and test cases.

Paired differences are averaged over training cases and seeds first, and tested over test cases (Wilcoxon).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from HiEndMAECore.evaluation.statistics import bootstrap_interval
from HiEndMAECore.training import performance_estimate

ARMS = ("hi-end-mae", "hi-end-mae-encoder", "mae", "scratch", "unetr", "dynunet", "elastix")
TRAINING_CASE = "teacher"  # the name of this field in the recorded lines


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the recorded runs of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def mean_of_structures(cases: Any) -> float:
    """Return the mean over structures of the mean Dice over cases."""
    columns = defaultdict(list)
    for case in cases:
        for structure, value in case.items():
            if value is not None:
                columns[structure].append(value)
    return statistics.fmean(statistics.fmean(column) for column in columns.values())


def report(options: argparse.Namespace) -> None:
    """Write Markdown: every run, structures with intervals over cases, and paired comparisons with the first arm."""
    lines = [line for file in options.files for line in read_lines(file) if line["seed"] in options.seeds]
    if len({line["split"] for line in lines}) > 1 or (
        len({line["budget"] for line in lines}) > 1 and not options.budget
    ):
        raise SystemExit("These runs had different budgets or tests: give files of one kind, or --budget.")
    lines = [line for line in lines if options.budget in (None, line["budget"])]
    info = sys.stdout.write
    info(
        "| arm | training case | seed | steps | processor s | mean Dice | structures at 0 |\n|---|---|---|---|---|---|---|\n"
    )
    for line in lines:
        zeros = [s for s in next(iter(line["dice"].values())) if not any(case[s] for case in line["dice"].values())]
        info(f"| {line['arm']} | {line[TRAINING_CASE]} | {line['seed']} | {line['steps']} | {line['cpu_seconds']:.0f} ")
        info(f"| {mean_of_structures(line['dice'].values()):.3f} | {', '.join(zeros) or 'none'} |\n")
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
        shared = set.intersection(*({(line[TRAINING_CASE], line["seed"]) for line in of} for of in pair))
        first, other = (
            _of_cases([line for line in of if (line[TRAINING_CASE], line["seed"]) in shared], None) for of in pair
        )
        differences = np.array([first[case] - other[case] for case in first if case in other])
        p = stats.wilcoxon(differences).pvalue if len(differences) > 5 else np.nan
        info(f"| {arm} | {differences.mean():+.3f} | {(differences > 0).sum()} of {len(differences)} | {p:.2g} |\n")
    info("\nThe performance estimate and the true Dice, over structures and runs:\n\n")
    info(
        "| arm | structures | error of the expected Dice | of the mean as estimate | correlation | of `deformed` alone |\n"
    )
    info("|---|---|---|---|---|---|\n")
    for arm in arms:
        pairs = [pair for line in of_arm[arm] for pair in _estimates(line)]
        if pairs:
            expected, deformed, true = np.array(pairs).T
            info(
                f"| {arm} | {len(true)} | {np.abs(expected - true).mean():.3f} | {np.abs(true.mean() - true).mean():.3f} "
            )
            info(f"| {np.corrcoef(expected, true)[0, 1]:.2f} | {np.corrcoef(deformed, true)[0, 1]:.2f} |\n")


def _estimates(line: dict[str, Any]) -> list[tuple[float, float, float]]:
    """Return (expected Dice, Dice on deformed copies, true Dice over the test cases) of each structure."""
    found = []
    for check in line.get("self_check", ()):
        true = [case[check["name"]] for case in line["dice"].values() if case[check["name"]] is not None]
        if check["expected"] is not None and true:
            expected = performance_estimate.CALIBRATION.expected_dice(check["deformed"], check["voxels"])
            found.append((expected, check["deformed"], statistics.fmean(true)))
    return found


def plot(options: argparse.Namespace) -> None:
    """Plot mean Dice against the budget: a line through the means over runs for each arm, and a dot for each run."""
    import matplotlib.pyplot as plt

    points: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in (line for file in options.files for line in read_lines(file)):
        if (
            line[TRAINING_CASE] not in options.cases
            or line["seed"] not in options.seeds
            or line["arm"] not in options.arms
        ):
            continue
        points[line["arm"]][line["budget"] / 120].append(mean_of_structures(line["dice"].values()))
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
    axes.set_xlabel("minutes of training on two cores (processor time / 2)")
    axes.set_ylabel("mean Dice on other patients")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(options.output, dpi=140)


def _of_cases(lines: Sequence[dict[str, Any]], structure: str | None) -> dict[str, float]:
    """Return {case: Dice averaged over training cases and seeds} of one structure, or of the mean of a case's structures."""
    values = defaultdict(list)
    for line in lines:
        for case, row in line["dice"].items():
            present = [value for name, value in row.items() if value is not None and structure in (None, name)]
            if present:
                values[case].append(statistics.fmean(present))
    return {case: statistics.fmean(found) for case, found in values.items()}
