"""Peak memory of a pretraining step for each batch size: the engine with its options, and the literal model.

    python Testing/Benchmarks/pretraining_memory.py --variant hi_end_mae_vit_base_16p --batches 1 2 4 8

Every value is measured in a process of its own that takes two whole steps: the largest resident set on a CPU, torch's
largest allocation on a CUDA card.
"""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
from pathlib import Path

import torch

from HiEndMAECore.networks import HiEndMAE
from HiEndMAECore.networks.masking import random_masking
from HiEndMAECore.networks.variants import list_vit_variants, pretraining_arguments
from HiEndMAECore.runtime.devices import autocast, choose_device
from HiEndMAECore.training.optimizer import build_adamw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from oracle import Oracle

_ARMS = ("literal fp32", "engine fp32", "engine bf16", "engine bf16, recomputed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="hi_end_mae_vit_base_16p", choices=list_vit_variants())
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--child", nargs=2, metavar=("ARM", "BATCH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(measure(options.variant, options.child[0], int(options.child[1]), options.device))
        return
    print(f"{options.variant}, {choose_device(options.device)}, torch {torch.__version__}: peak memory in GiB\n")
    print("| batch | " + " | ".join(_ARMS) + " |\n|---|" + "---|" * len(_ARMS))
    for batch in options.batches:
        cells = []
        for arm in _ARMS:
            command = [sys.executable, *sys.argv, "--child", arm, str(batch)]
            child = subprocess.run(command, capture_output=True, text=True, check=False)
            cells.append(f"failed ({child.returncode})" if child.returncode else f"{float(child.stdout) / 2**30:.2f}")
        print(f"| {batch} | " + " | ".join(cells) + " |", flush=True)


def measure(variant: str, arm: str, batch: int, name: str) -> float:
    """Return the peak memory of two steps in bytes."""
    device = choose_device(name)
    arguments = pretraining_arguments(variant)
    model = (Oracle if arm.startswith("literal") else HiEndMAE)(**arguments).to(device)
    if "recomputed" in arm:
        model.set_grad_checkpointing()
    optimizer = build_adamw(model.parameters(), learning_rate=1e-4, betas=(0.9, 0.95), weight_decay=0.05)
    volume = torch.rand(batch, 1, *arguments["image_size"], device=device)
    permutation = random_masking(batch, math.prod(model.grid)).to(device)
    for _ in range(2):
        with autocast(device, precision="bf16" if "bf16" in arm else "fp32"):
            output = model(volume, permutation)
        (output[0] if isinstance(output, tuple) else output.loss).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(kilobytes * (1 if sys.platform == "darwin" else 1024))


if __name__ == "__main__":
    main()
