"""One step of one-shot learning: the engine against a plain loop over the same scan with the same network.

    python Testing/Benchmarks/finetuning_step.py --preset cpu --pairs 10
    python Testing/Benchmarks/finetuning_step.py --preset paper-one-shot --batch 1 --pairs 3

The rival is what a tutorial would write: the prepared scan in MONAI's CacheDataset, crops centred on classes and changed by
MONAI's random transforms (affine, elastic, intensities, noise, blur, each as often as ours) in a DataLoader, DiceCELoss,
torch's AdamW as it comes. It computes in 32 bits; `--autocast` gives it the engine's precision. In each round every arm
takes one whole step, crop included; the order turns (`--apart`: all steps of one arm, then of the other). Printed: the median
of the rival's time over ours, lowest and highest, and the peak memory of a process that does nothing else.
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
from HiEndMAECore.training.plans import FinetuningPlan
from HiEndMAECore.training.training_cases import TrainingCase

CLASSES = 8
NAMES = ("engine", "plain")
_LEFT_OUT = 2  # first rounds, slow for being the first


def made_up_scan() -> TrainingCase:
    """A body of 160 x 120 x 120 voxels with seven balls in it: only its size matters to the time of a step."""
    rng = np.random.default_rng(0)
    image = rng.random((1, 160, 120, 120), dtype=np.float32)
    classes = np.zeros(image.shape[1:], np.int16)
    places = np.indices(classes.shape).transpose(1, 2, 3, 0)
    for value in range(1, CLASSES):
        center = rng.uniform(20, 100, 3)
        classes[((places - center) ** 2).sum(-1) < 10**2] = value
    return TrainingCase("made up", torch.from_numpy(image), torch.from_numpy(classes))


def plain_crops(scan: TrainingCase, crop: tuple[int, int, int], batch: int, workers: int) -> Any:
    keys = ["image", "label"]
    both: dict[str, Any] = {"keys": keys, "mode": ["bilinear", "nearest"], "padding_mode": "zeros"}
    changes = Compose(
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
    whole = [{"image": scan.image, "label": scan.classes[None]}]
    dataset = CacheDataset(whole, changes, progress=False)
    loader = DataLoader(dataset, batch_size=1, num_workers=workers, persistent_workers=bool(workers))
    return itertools.chain.from_iterable(loader for _ in itertools.count())


def build_arms(options: argparse.Namespace) -> dict[str, Callable[[int], float]]:
    device = choose_device(options.device)
    preset = presets.choose_preset(options.preset, device)
    architecture = presets.choose_architecture(preset, None, classes=CLASSES, channels=1)
    crop, batch = tuple(architecture["arguments"]["image_size"]), options.batch or preset.batch_size
    scan = made_up_scan()
    torch.manual_seed(0)
    network = build_network(architecture).to(device).train()
    plan = FinetuningPlan(crop=crop, steps=1, batch_size=batch)
    arms: dict[str, Callable[[int], float]] = {}

    if options.only in (None, "engine"):
        held = TrainingCase(scan.name, scan.image.to(device), scan.classes.to(device))
        method = finetuning.DefaultRecipe([held], classes=CLASSES, plan=plan)
        method.criterion.to(device)
        optimizer = finetuning._build_optimizer(network, plan)
        arms["engine"] = lambda step: finetuning._step(
            [held], method, network, optimizer, step=step, done=0.5, plan=plan, device=device
        )
    if options.only in (None, "plain"):
        crops = plain_crops(scan, crop, batch, options.workers)
        theirs = copy.deepcopy(network) if options.only is None else network
        stock = torch.optim.AdamW(theirs.parameters(), lr=1e-3)
        smallest = network.smallest_feature_edge(network.config, crop)
        criterion = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)

        def plain(step: int) -> float:
            found = next(crops)
            image, label = found["image"].to(device), found["label"].to(device)
            with autocast(device, smallest_edge=smallest, precision="auto" if options.autocast else "fp32"):
                logits = theirs(image)
            loss = criterion(logits.float(), label)
            stock.zero_grad()
            loss.backward()
            stock.step()
            return float(loss.detach())

        arms["plain"] = plain
    return arms


def timed(arm: Callable[[int], float], step: int) -> float:
    begin = time.perf_counter()  # both end by reading the loss, so nothing is left to compute
    arm(step)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=tuple(presets.PRESETS), default="cpu")
    parser.add_argument("--batch", type=int, help="crops a step instead of the preset's")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--workers", type=int, default=0, help="of the plain loop's DataLoader")
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
        seconds = [timed(arm, step) for step in range(_LEFT_OUT + options.pairs)][_LEFT_OUT:]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        sys.stdout.write(json.dumps({"seconds": seconds, "peak": peak}))
        return
    alone = [_alone(name, options.pairs if options.apart else 1) for name in NAMES]
    if options.apart:
        took = [result["seconds"] for result in alone]
    else:
        arms, took = build_arms(options), [[], []]
        for step in range(_LEFT_OUT + options.pairs):
            for place in sorted(range(len(NAMES)), reverse=bool(step % 2)):
                took[place].append(timed(arms[NAMES[place]], step))
        took = [seconds[_LEFT_OUT:] for seconds in took]
    for name, seconds, result in zip(NAMES, took, alone):
        sys.stdout.write(f"{name}: median {statistics.median(seconds):.3f} s a step, peak {result['peak']:.2f} GB\n")
    ratios = [theirs / ours for ours, theirs in zip(*took)]
    sys.stdout.write(f"plain / engine: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})\n")


def _alone(name: str, pairs: int) -> dict[str, Any]:
    command = [sys.executable, *sys.argv, "--only", name, "--pairs", str(pairs)]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


if __name__ == "__main__":
    main()
