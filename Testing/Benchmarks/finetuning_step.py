"""Time of one fine-tuning step: the engine against a plain MONAI loop on the same scan with the same network.

    python Testing/Benchmarks/finetuning_step.py --preset cpu --pairs 10
    python Testing/Benchmarks/finetuning_step.py --preset paper-one-shot --batch 1 --pairs 3

The plain loop is what a tutorial would write: the preprocessed scan in MONAI's CacheDataset; crops centered on classes and
augmented by MONAI's random transforms in a DataLoader (affine, elastic, intensities, noise, blur, each as often as in the
engine); DiceCELoss; torch's AdamW with its defaults. It computes in 32 bits; `--autocast` gives it the engine's precision. In
each round every arm takes one whole step with its crop, in alternating order (`--apart`: all steps of one arm, then of the
other). Printed are the plain loop's time divided by the engine's (median, lowest and highest), and the peak memory of a
process that runs one arm only.
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

import numpy as np
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
from HiEndMAECore.runtime.devices import autocast, choose_device
from HiEndMAECore.training import finetuning, presets
from HiEndMAECore.training.default_recipe import DefaultRecipe
from HiEndMAECore.training.plans import FinetuningPlan
from HiEndMAECore.training.training_cases import TrainingCase

CLASSES = 8
NAMES = ("engine", "plain")
_WARM_UP_ROUNDS = 2  # not counted, because the first steps are slower


def random_case() -> TrainingCase:
    """Return a case of 160 x 120 x 120 voxels with seven balls; only its size matters to the time of a step."""
    rng = np.random.default_rng(0)
    image = rng.random((1, 160, 120, 120), dtype=np.float32)
    classes = np.zeros(image.shape[1:], np.int16)
    voxels = np.indices(classes.shape).transpose(1, 2, 3, 0)
    for value in range(1, CLASSES):
        center = rng.uniform(20, 100, 3)
        classes[((voxels - center) ** 2).sum(-1) < 10**2] = value
    return TrainingCase("random", torch.from_numpy(image), torch.from_numpy(classes))


def plain_crops(case: TrainingCase, crop: tuple[int, int, int], batch: int, workers: int) -> Any:
    """Return an endless iterator of MONAI's augmented crops of a case."""
    keys = ["image", "label"]
    both: dict[str, Any] = {"keys": keys, "mode": ["bilinear", "nearest"], "padding_mode": "zeros"}
    transforms = Compose(
        [
            RandCropByLabelClassesd(keys, "label", crop, num_classes=CLASSES, num_samples=batch, allow_smaller=False),
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
    loader = DataLoader(dataset, batch_size=1, num_workers=workers, persistent_workers=bool(workers))
    return itertools.chain.from_iterable(loader for _ in itertools.count())


def build_arms(options: argparse.Namespace) -> dict[str, Callable[[int], float]]:
    """Return for each arm the function that takes a step and returns its loss."""
    device = choose_device(options.device)
    preset = presets.choose_preset(options.preset, device)
    architecture = presets.choose_architecture(preset, None, classes=CLASSES, channels=1)
    crop, batch = tuple(architecture["arguments"]["image_size"]), options.batch or preset.batch_size
    case = random_case()
    torch.manual_seed(0)
    network = build_network(architecture).to(device).train()
    plan = FinetuningPlan(crop=crop, steps=1, batch_size=batch)
    arms: dict[str, Callable[[int], float]] = {}

    if options.only in (None, "engine"):
        cases = [TrainingCase(case.name, case.image.to(device), case.classes.to(device))]
        recipe = DefaultRecipe(cases, classes=CLASSES, plan=plan)
        recipe.criterion.to(device)
        optimizer = finetuning.build_optimizer(network, plan)
        arms["engine"] = lambda step: finetuning.train_step(
            cases, recipe, network, optimizer, step=step, done=0.5, plan=plan, device=device
        )
    if options.only in (None, "plain"):
        crops = plain_crops(case, crop, batch, options.workers)
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


def step_seconds(arm: Callable[[int], float], step: int) -> float:
    """Return the time of a step. Both arms end by reading the loss, so that no computation is pending."""
    begin = time.perf_counter()
    arm(step)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=tuple(presets.PRESETS), default="cpu")
    parser.add_argument("--batch", type=int, help="crops a step instead of the preset's")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--workers", type=int, default=0, help="workers of the plain loop's DataLoader")
    parser.add_argument("--autocast", action="store_true", help="the plain loop computes in the engine's precision")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--apart", action="store_true", help="one arm after the other, where two do not fit into memory"
    )
    parser.add_argument("--only", choices=NAMES, help="one arm's times and peak memory, as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.only:
        arm = build_arms(options)[options.only]
        seconds = [step_seconds(arm, step) for step in range(_WARM_UP_ROUNDS + options.pairs)][_WARM_UP_ROUNDS:]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        sys.stdout.write(json.dumps({"seconds": seconds, "peak": peak}))
        return
    single = [_run_alone(name, options.pairs if options.apart else 1) for name in NAMES]
    if options.apart:
        times = [result["seconds"] for result in single]
    else:
        arms, times = build_arms(options), [[], []]
        for step in range(_WARM_UP_ROUNDS + options.pairs):
            for index in sorted(range(len(NAMES)), reverse=bool(step % 2)):
                times[index].append(step_seconds(arms[NAMES[index]], step))
        times = [seconds[_WARM_UP_ROUNDS:] for seconds in times]
    for name, seconds, result in zip(NAMES, times, single):
        sys.stdout.write(f"{name}: median {statistics.median(seconds):.3f} s a step, peak {result['peak']:.2f} GB\n")
    ratios = [plain / engine for engine, plain in zip(*times)]
    sys.stdout.write(f"plain / engine: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})\n")


def _run_alone(name: str, pairs: int) -> dict[str, Any]:
    """Return times and peak memory (GB) of one arm in a process of its own."""
    command = [sys.executable, *sys.argv, "--only", name, "--pairs", str(pairs)]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


if __name__ == "__main__":
    main()
