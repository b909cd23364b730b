"""Time of one fine-tuning step: the engine against a plain MONAI loop on the same scan with the same network.

    python Testing/Benchmarks/finetuning_step.py --preset cpu --pairs 10
    python Testing/Benchmarks/finetuning_step.py --preset paper-one-shot --batch 1 --pairs 3
    python Testing/Benchmarks/finetuning_step.py --roofline --classes 14 --threads 1

The plain loop is what a tutorial would write: the preprocessed scan in MONAI's CacheDataset; crops centered on classes and
augmented by MONAI's random transforms in a DataLoader (affine, elastic, intensities, noise, blur, each as often as in the
engine); DiceCELoss; torch's AdamW with its defaults. It computes in 32 bits; `--autocast` gives it the engine's precision. In
each round every arm takes one whole step with its crop, in alternating order (`--apart`: all steps of one arm, then of the
other). Printed are the processor time a crop (median), the plain loop's time divided by the engine's (median, lowest and
highest), and the peak memory of a process that runs one arm only. `--roofline` compares the engine's step with the limit of the
processor instead, layer by layer; see `roofline.py`.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import roofline
import torch
from monai.data import CacheDataset, DataLoader
from monai.losses import DiceCELoss
from monai.transforms import (
    Compose,
    Rand3DElasticd,
    RandAdjustContrastd,
    RandAffined,
    RandCropByLabelClassesd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandShiftIntensityd,
)

from HiEndMAECore.networks import build_network
from HiEndMAECore.runtime.devices import autocast, choose_device, sampling_device
from HiEndMAECore.runtime.processor import describe_processor
from HiEndMAECore.training import finetuning, presets
from HiEndMAECore.training.default_recipe import DefaultRecipe
from HiEndMAECore.training.plans import FinetuningPlan
from HiEndMAECore.training.speed_probe import random_case
from HiEndMAECore.training.training_cases import TrainingCase

NAMES = ("engine", "plain")
_WARM_UP_ROUNDS = 2  # not counted, because the first steps are slower


def plain_crops(case: TrainingCase, crop: tuple[int, int, int], batch: int, options: argparse.Namespace) -> Any:
    """Return an endless iterator of MONAI's augmented crops of a case."""
    keys = ["image", "label"]
    both: dict[str, Any] = {"keys": keys, "mode": ["bilinear", "nearest"], "padding_mode": "zeros"}
    transforms = Compose(
        [
            RandCropByLabelClassesd(
                keys, "label", crop, num_classes=options.classes, num_samples=batch, allow_smaller=False
            ),
            RandAffined(prob=0.35, rotate_range=[0.35] * 3, scale_range=[0.3] * 3, **both),
            Rand3DElasticd(prob=0.25, sigma_range=(5, 7), magnitude_range=(50, 150), **both),
            RandAdjustContrastd("image", prob=0.25, gamma=(0.7, 1.4)),
            RandScaleIntensityd("image", 0.2, prob=0.25),
            RandShiftIntensityd("image", 0.1, prob=0.25),
            RandGaussianNoised("image", prob=0.2, std=0.06),
            RandGaussianSmoothd("image", prob=0.1),
        ]
    )
    data = [{"image": case.image, "label": case.classes[None]}]
    dataset = CacheDataset(data, transforms, progress=False)
    loader = DataLoader(dataset, batch_size=1, num_workers=options.workers, persistent_workers=bool(options.workers))
    return itertools.chain.from_iterable(loader for _ in itertools.count())


def build_arms(options: argparse.Namespace) -> dict[str, Callable[[int], float]]:
    """Return for each arm the function that takes a step and returns its loss."""
    device = choose_device(options.device)
    preset = presets.choose_preset(options.preset, device)
    architecture = presets.choose_architecture(preset, None, classes=options.classes, channels=1)
    crop, batch = tuple(architecture["arguments"]["image_size"]), options.batch or preset.batch_size
    case = random_case(classes=options.classes, shape=roofline.SCAN_SHAPE)
    torch.manual_seed(0)
    network = build_network(architecture).to(device).train()
    plan = FinetuningPlan(crop=crop, steps=1, batch_size=batch)
    arms: dict[str, Callable[[int], float]] = {}

    if options.only in (None, "engine"):
        cases = [case.to(sampling_device(device))]
        recipe = DefaultRecipe(cases, classes=options.classes, plan=plan)
        recipe.criterion.to(device)
        optimizer = finetuning.build_optimizer(network, plan)
        arms["engine"] = lambda step: finetuning.train_step(
            cases, recipe, network, optimizer, step=step, done=0.5, plan=plan, device=device
        )
    if options.only in (None, "plain"):
        crops = plain_crops(case, crop, batch, options)
        plain_network = copy.deepcopy(network) if options.only is None else network
        plain_optimizer = torch.optim.AdamW(plain_network.parameters(), lr=1e-3)
        smallest = network.smallest_feature_edge(network.config, crop)
        criterion = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)

        def plain(step: int) -> float:
            sample = next(crops)
            image, label = sample["image"].to(device), sample["label"].to(device)
            with autocast(device, smallest_edge=smallest, precision="auto" if options.autocast else "fp32"):
                logits = plain_network(image)
            loss = criterion(logits.float(), label)
            plain_optimizer.zero_grad()
            loss.backward()
            plain_optimizer.step()
            return float(loss.detach())

        arms["plain"] = plain
    return arms


def step_seconds(arm: Callable[[int], float], step: int) -> tuple[float, float]:
    """Return wall-clock and processor time of a step, without the plain loop's workers.

    Both arms end by reading the loss, so that no computation is pending.
    """
    wall, processor = time.perf_counter(), time.process_time()
    arm(step)
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=tuple(presets.PRESETS), default="cpu")
    parser.add_argument("--batch", type=int, help="crops a step instead of the preset's")
    parser.add_argument("--classes", type=int, default=8, help="classes with the background")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--workers", type=int, default=0, help="workers of the plain loop's DataLoader")
    parser.add_argument("--autocast", action="store_true", help="the plain loop computes in the engine's precision")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--apart", action="store_true", help="one arm after the other, where two do not fit into memory"
    )
    parser.add_argument("--only", choices=NAMES, help="one arm's times and peak memory, as JSON")
    parser.add_argument("--roofline", action="store_true", help="the engine's step on the CPU, layer by layer")
    parser.add_argument(
        "--precisions", nargs="+", choices=("fp32", "bf16"), help="of --roofline; default: the usable ones"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.only:
        sys.stdout.write(json.dumps(measure_arm(options)))
        return
    sys.stdout.write(f"machine: {describe_processor()}, {options.threads} threads\n")
    if options.roofline:
        roofline.run(options)
    else:
        compare(options)


def measure_arm(options: argparse.Namespace) -> dict[str, Any]:
    """Return the times (wall clock, processor) of the steps of one arm in seconds, and the peak memory in GB."""
    arm = build_arms(options)[options.only]
    times = [step_seconds(arm, step) for step in range(_WARM_UP_ROUNDS + options.pairs)][_WARM_UP_ROUNDS:]
    return {"seconds": times, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def compare(options: argparse.Namespace) -> None:
    """Print times and peak memory of both arms, and the ratio of their times."""
    single = [_run_alone(name, options.pairs if options.apart else 1) for name in NAMES]
    if options.apart:
        times = [result["seconds"] for result in single]
    else:
        arms, times = build_arms(options), [[], []]
        for step in range(_WARM_UP_ROUNDS + options.pairs):
            for index in sorted(range(len(NAMES)), reverse=bool(step % 2)):
                times[index].append(step_seconds(arms[NAMES[index]], step))
        times = [seconds[_WARM_UP_ROUNDS:] for seconds in times]
    batch = options.batch or presets.choose_preset(options.preset, choose_device(options.device)).batch_size
    for name, seconds, result in zip(NAMES, times, single):
        wall, processor = (statistics.median(values) for values in zip(*seconds))
        sys.stdout.write(
            f"{name}: median {wall:.3f} s a step, {processor / batch:.3f} s of processor time a crop, "
            f"peak {result['peak']:.2f} GB\n"
        )
    ratios = [plain[0] / engine[0] for engine, plain in zip(*times)]
    sys.stdout.write(f"plain / engine: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})\n")


def _run_alone(name: str, pairs: int) -> dict[str, Any]:
    """Return times and peak memory (GB) of one arm in a process of its own."""
    command = [sys.executable, *sys.argv, "--only", name, "--pairs", str(pairs)]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


if __name__ == "__main__":
    main()
