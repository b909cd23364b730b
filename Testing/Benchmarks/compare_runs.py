"""Compare two or more pretraining runs: the loss on the same validation crops at the same steps, and the trivial losses.

    python Testing/Benchmarks/compare_runs.py runs/hi-end-mae runs/mae --output runs.png

The runs must share store, variant, mask ratio and seed; only then are their validation crops and masks the same.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from HiEndMAECore.reporting.run_record import read_record
from HiEndMAECore.training.training_log import read_log, step_records

_SAME = ("data", "variant", "mask_ratio", "seed", "crop", "batch_size", "steps", "learning_rate")
_ROWS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="PNG to draw")
    options = parser.parse_args()
    records = {run.name: read_record(run) or {} for run in options.runs}
    for name in _SAME:
        if len({json.dumps(record.get(name)) for record in records.values()}) > 1:
            raise SystemExit(f"These runs differ in {name} and cannot be compared.")
    logs = {run.name: read_log(run) for run in options.runs}
    start = next(iter(logs.values()))[0]
    curves = {}
    for name, lines in logs.items():
        curves[name] = np.array([(line["step"], line["watch_loss"]) for line in lines if "watch_loss" in line]).T

    last = int(min(curve[0, -1] for curve in curves.values()))
    print(f"validation crops: zero {start['zero_loss']:.3f}, nearest visible patch {start['nearest_loss']:.3f}")
    print("| step | " + " | ".join(curves) + " |\n|---|" + "---|" * len(curves))
    for step in np.linspace(last / _ROWS, last, _ROWS).astype(int):  # interpolated between two validations
        print(f"| {step} | " + " | ".join(f"{np.interp(step, *curve):.4f}" for curve in curves.values()) + " |")
    for name, lines in logs.items():
        steps = step_records(lines)
        seconds = [1 / record.crops_per_second for record in steps]  # of one crop
        waited = sum(record.waited * of_crop for record, of_crop in zip(steps, seconds)) / sum(seconds)
        last_losses = np.mean([record.loss for record in steps[-100:]])
        print(
            f"{name}: {len(steps)} steps, mean of the last 100 losses {last_losses:.4f}, waited for crops {waited:.2%}"
        )

    figure, axes = plt.subplots(figsize=(9, 5), dpi=120)
    for (name, curve), color in zip(curves.items(), ("#2f6fb0", "#c8641b", "#3a8f5c", "#7a4fa3")):
        noisy = step_records(logs[name])
        axes.plot([s.step for s in noisy], [s.loss for s in noisy], color=color, alpha=0.15, linewidth=0.7)
        axes.plot(*curve, color=color, linewidth=2, label=name)
    axes.axhline(start["zero_loss"], color="#6b7785", linestyle="--", label="predict the mean (zero)")
    if start["nearest_loss"] < 1.6 * start["zero_loss"]:
        axes.axhline(start["nearest_loss"], color="#6b7785", linestyle=":", label="copy the nearest visible patch")
    axes.set(xlabel="step", ylabel="reconstruction loss (normalized)")
    axes.set_title("Loss on the validation crops (faint: training loss)", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#e6e9ed")
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(options.output)


if __name__ == "__main__":
    main()
