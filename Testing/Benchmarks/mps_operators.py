"""The torch operators of a training step and of a segmentation, and what Apple's graphics (MPS) have of them.

    python Testing/Benchmarks/mps_operators.py > operators.md

It needs no Apple computer: every network takes one step and segments one scan on the CPU, in 32 bits as on MPS, while torch's
dispatcher reports the operators; torch's own table of kernels, which is part of its package, names those with an MPS kernel. An
operator is `native` (a kernel for MPS), `composite` (made of other operators) or `absent` (an error, or the CPU with
PYTORCH_ENABLE_MPS_FALLBACK=1). That a kernel exists does not say that its result is right: see docs/mps.md.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torchgen
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

from HiEndMAECore.inference import forward, sliding_window
from HiEndMAECore.inference.uncertainty import summarize_logits
from HiEndMAECore.networks import build_network
from HiEndMAECore.networks.registry import list_networks, list_variants, segmentation_architecture
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.runtime.devices import autocast
from HiEndMAECore.training import finetuning
from HiEndMAECore.training.default_recipe import DefaultRecipe, draw_batch
from HiEndMAECore.training.ema import update_average
from HiEndMAECore.training.plans import FinetuningPlan
from HiEndMAECore.training.speed_probe import random_case

CPU = torch.device("cpu")
VIT_VARIANT = "hi_end_mae_vit_tiny_8p"
_CLASSES = 4
# Operators that a backend implements under other names than the dispatcher reports.
BACKEND_NAMES = {
    "convolution": ("_mps_convolution", "_mps_convolution_transpose"),
    "convolution_backward": ("mps_convolution_backward", "mps_convolution_transpose_backward"),
}


class OperatorRecorder(TorchDispatchMode):
    """Records the names of the operators that run, and whether one of their tensors is a batch of volumes.

    Attributes:
        found: True for an operator that has computed on (B, C, H, W, D), by name.
        doubles: Operators with a result in float64, which MPS does not have.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, bool] = {}
        self.doubles: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.name().removeprefix("aten::")
        tensors = [value for value in args if isinstance(value, torch.Tensor)]
        self.found[name] = self.found.get(name, False) or any(tensor.ndim == 5 for tensor in tensors)
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            self.doubles.add(name)
        return result


def kernel_table() -> dict[str, str]:
    """Return the entry of each operator in torch's table of kernels, by name with overload."""
    file = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    entries = re.split(r"^- func: ", file.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {entry.partition("(")[0]: entry for entry in entries}


def support(name: str, table: dict[str, str]) -> str:
    """Return "native", "composite" or "absent" for an operator such as `add.Tensor`."""
    if name in BACKEND_NAMES:
        return "native" if all(support(part, table) == "native" for part in BACKEND_NAMES[name]) else "absent"
    entry = table.get(name)
    if entry is None:
        return "composite"  # generated from the operator itself, such as `empty.names`
    delegate = re.search(r"structured_delegate: (\S+)", entry)
    if delegate:
        return support(delegate.group(1), table)
    keys = {key for line in re.findall(r"^ {4}([\w, ]+): \w", entry, re.MULTILINE) for key in line.split(", ")}
    if "MPS" in keys:
        return "native"
    return "composite" if not keys or any(key.startswith("Composite") for key in keys) else "absent"


@contextlib.contextmanager
def as_on_mps() -> Iterator[None]:
    """Compute on the CPU what MPS would compute: 32 bits, no kernels of the CPU alone, attention by matrix products."""
    precise = partial(autocast, precision="fp32")
    with (
        mock.patch.object(finetuning, "autocast", precise),
        mock.patch.object(finetuning, "CpuTrainingKernels", return_value=contextlib.nullcontext()),
        mock.patch.object(forward, "autocast", precise),
        mock.patch.object(forward, "CpuInferenceKernels", return_value=contextlib.nullcontext()),
        sdpa_kernel(SDPBackend.MATH),
    ):
        yield


def record(option: str) -> tuple[OperatorRecorder, OperatorRecorder, OperatorRecorder]:
    """Return the operators of the crops, of the rest of a training step, and of a segmentation with a network."""
    variant = VIT_VARIANT if VIT_VARIANT in list_variants(option) else list_variants(option)[0]
    architecture = segmentation_architecture(variant, network=option, classes=_CLASSES)
    network = build_network(architecture).train()
    crop = tuple(architecture["arguments"]["image_size"])
    plan = FinetuningPlan(crop=crop, steps=1)
    cases = [random_case(classes=_CLASSES, shape=[edge + 8 for edge in crop])]
    recipe = DefaultRecipe(cases, classes=_CLASSES, plan=plan)
    optimizer = finetuning.build_optimizer(network, plan)
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(plan.ema))
    crops, training, segmentation = OperatorRecorder(), OperatorRecorder(), OperatorRecorder()
    with crops:
        for step in range(30):  # every kind of augmentation
            batch = draw_batch(cases, recipe, step=step, plan=plan)
    with as_on_mps(), mock.patch.object(finetuning, "draw_batch", return_value=batch), training:
        finetuning.train_step(cases, recipe, network, optimizer, step=0, done=0.0, plan=plan, device=CPU)
        update_average(averaged, network, 0)
    window = sliding_window.SlidingWindow(
        cases[0].image, network.eval(), tile=crop, classes=_CLASSES, device=CPU, report=Reporter(quiet=True)
    )
    with as_on_mps(), torch.inference_mode(), segmentation:
        for _, logits in window.blocks():
            summarize_logits(logits)
    return crops, training, segmentation


def main() -> None:
    table = kernel_table()
    networks: dict[str, list[str]] = defaultdict(list)
    volumes: set[str] = set()
    doubles: set[str] = set()
    for option in list_networks():
        for part, recorder in zip(("crops", "training", "segmentation"), record(option)):
            doubles |= {f"{name} ({part} of {option})" for name in recorder.doubles}
            for name, on_volumes in recorder.found.items():
                volumes |= {name} if on_volumes else set()
                networks[name].append("crops" if part == "crops" else option)
    total = len(list_networks())
    lines = [f"torch {torch.__version__}", "", "| operator | volumes | MPS | used by |", "|---|---|---|---|"]
    for name in sorted(networks, key=lambda name: (support(name, table), name not in volumes, name)):
        users = sorted(set(networks[name]))
        text = "all" if len(set(users) - {"crops"}) == total else ", ".join(users)
        lines.append(f"| `{name}` | {'yes' if name in volumes else ''} | {support(name, table)} | {text} |")
    lines += ["", f"float64: {', '.join(sorted(doubles)) or 'none'}"]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
