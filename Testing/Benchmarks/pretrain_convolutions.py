"""Pretraining what the encoder in the box is not: the convolutions of the hybrid network learn to rebuild masked crops.

    python Testing/Benchmarks/pretrain_convolutions.py --store STORE --output convolutions.pt --cpu-seconds 1500
    python Testing/Benchmarks/one_shot.py run --arms hi-end-mae-whole --whole convolutions.pt …

An experiment, not yet a door. STORE is one made by `prepare`. Of every crop 60 % of the patches are painted grey; the network,
its last convolution predicting one channel of intensities, learns to paint them back (mean squared error over what was
hidden). The encoder is the one in the box, and frozen. The output is the network's state without the last convolution.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from one_shot import VARIANT
from torch import Tensor
from torch.nn import functional as F

from HiEndMAECore.checkpoints.catalogue import OURS
from HiEndMAECore.checkpoints.transfer import read_initial, start_from
from HiEndMAECore.devices import autocast
from HiEndMAECore.networks import build_segmentation, segmentation_architecture
from HiEndMAECore.training.optimiser import build_adamw, cosine_rate, set_rate
from HiEndMAECore.volumes.crop_store import CropStore

EDGE, PATCH, BATCH, MASKED, GREY, RATE = 48, 8, 2, 0.6, 0.5, 2e-3
CPU = torch.device("cpu")


class Crops:
    """Crops (B, 1, 48, 48, 48) near tissue, half of them mirrored, in other contrasts; and what of them is hidden (1)."""

    def __init__(self, store: CropStore, seed: int) -> None:
        self.store, self.rng = store, np.random.default_rng(seed)
        self.tissue = [store.tissue(index) for index in range(len(store))]

    def draw(self) -> tuple[Tensor, Tensor]:
        crops: list[Tensor] = []
        while len(crops) < BATCH:
            index = int(self.rng.integers(len(self.store)))
            places = self.tissue[index]
            if not len(places):
                continue
            centre = np.array(places[int(self.rng.integers(len(places)))], int) + self.rng.integers(-12, 13, 3)
            voxels = self.store.crop(index, start=tuple(int(at) - EDGE // 2 for at in centre), size=(EDGE,) * 3)
            crop = torch.from_numpy(np.ascontiguousarray(voxels)).float()
            crop = crop.flip(1) if self.rng.random() < 0.5 else crop
            crops.append((crop * self.rng.uniform(0.85, 1.15) + self.rng.uniform(-0.05, 0.05)).clamp(0, 1))
        hidden = (torch.rand(BATCH, 1, *[EDGE // PATCH] * 3) < MASKED).float()
        return torch.stack(crops), F.interpolate(hidden, scale_factor=PATCH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--cpu-seconds", type=float, default=1500.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    network = build_segmentation(segmentation_architecture(VARIANT, classes=1, in_channels=1)).train()
    start_from(network, read_initial(OURS))
    network.encoder.requires_grad_(False)
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = build_adamw(learning, learning_rate=RATE, betas=(0.9, 0.999), weight_decay=1e-5)
    crops = Crops(CropStore.open(options.store), options.seed)

    def step() -> tuple[float, float]:
        """(error, error of predicting the mean of what is seen), both over what is hidden."""
        image, hidden = crops.draw()
        with autocast(CPU, smallest_edge=EDGE // PATCH):
            painted = network(image * (1 - hidden) + GREY * hidden)
        loss = ((painted.float() - image).square() * hidden).sum() / hidden.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        seen = (image * (1 - hidden)).sum() / (1 - hidden).sum()
        return float(loss.detach()), float(((image - seen).square() * hidden).sum() / hidden.sum())

    begin = time.process_time()
    for _ in range(6):
        step()
    steps = int(options.cpu_seconds / ((time.process_time() - begin) / 6))
    told: list[tuple[float, float]] = []
    for index in range(steps):
        set_rate(optimiser, cosine_rate(index, steps, warm_up=max(1, steps // 20)))
        told.append(step())
        if (index + 1) % 250 == 0 or index + 1 == steps:
            error, trivial = np.mean(told[-250:], axis=0)
            spent = time.process_time() - begin
            sys.stdout.write(f"{index + 1} of {steps}: {error:.5f}, to beat {trivial:.5f}; {spent:.0f} s\n")
            sys.stdout.flush()
    torch.save(
        {name: value for name, value in network.state_dict().items() if not name.startswith("out.")}, options.output
    )


if __name__ == "__main__":
    main()
