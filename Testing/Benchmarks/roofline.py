"""How far one training step is from the limit of the processor, layer by layer. Called by `finetuning_step.py --roofline`.

The limit is the measured rate of large matrix products. Counted are the products of a step: convolutions, transposed
convolutions, linear layers and attention; forward, gradient of the input (not for layers that read the image) and gradient of
the weights; a multiplication and an addition are two operations (FLOP). The count is that of the textbook algorithm, whatever
kernel computes it.

The whole step is `finetuning.train_step`. A layer is timed alone, forward and backward, on the inputs that it has in the step,
in the context that `train_step` computes in. Rows that are not layers: the crops (cutting and augmentation), the optimizer
(clipping and AdamW), and the rest (normalization, activations, concatenation, loss), which is the difference to the whole step.
All times are processor time. Layers alone find their data in the cache more often than in the step.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from HiEndMAECore.networks import SegmentationNetwork, build_network
from HiEndMAECore.networks.cpu_convolution import CpuTrainingKernels
from HiEndMAECore.runtime.devices import autocast, cpu_has_bf16
from HiEndMAECore.training import finetuning, presets
from HiEndMAECore.training.default_recipe import DefaultRecipe, draw_batch
from HiEndMAECore.training.plans import FinetuningPlan
from HiEndMAECore.training.speed_probe import random_case

BATCHES = (1, 2, 4)
SCAN_SHAPE = (160, 120, 120)
CPU = torch.device("cpu")
Context = Callable[[], AbstractContextManager[Any]]  # enters a context once
_WARM_UP_STEPS = 2
_STEPS = 10
_MIN_REPEATS = 5
_MIN_SECONDS = 0.1  # of the repeats of a layer together
_MATRIX_EDGES = (512, 1024, 2048)
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: Layer or other part of the step.
        flop: Operations of a step.
        seconds: Processor time of a step.
        forward: The part of the time that the forward pass takes; None where it is not known.
    """

    name: str
    flop: float
    seconds: float
    forward: float | None = None


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer in a step.

    Attributes:
        name: Full name of the module.
        module: The layer.
        inputs: Arguments of the call, detached; tensors require a gradient where they did in the step.
    """

    name: str
    module: nn.Module
    inputs: tuple[Any, ...]

    def run(self, context: Context) -> tuple[float, float]:
        """Compute the output in a context, then all gradients; return the processor time of the two passes."""
        begin = time.process_time()
        with context():
            output = self.module(*self.inputs)
        middle = time.process_time()
        output.backward(torch.ones_like(output))
        end = time.process_time()
        for tensor in (*self.module.parameters(), *self.inputs):
            if isinstance(tensor, Tensor):
                tensor.grad = None
        return middle - begin, end - middle

    def seconds(self, context: Context) -> tuple[float, float]:
        """Return the median times of the two passes, in seconds."""
        self.run(context)  # the first run is slower
        times: list[tuple[float, float]] = []
        while len(times) < _MIN_REPEATS or sum(map(sum, times)) < _MIN_SECONDS:
            times.append(self.run(context))
        forward, backward = (statistics.median(values) for values in zip(*times))
        return forward, backward


@contextlib.contextmanager
def training_context(network: SegmentationNetwork, plan: FinetuningPlan, precision: str) -> Iterator[None]:
    """Compute as the forward pass of `finetuning.train_step` does: the one place that knows its contexts."""
    smallest = network.smallest_feature_edge(network.config, plan.crop)
    with autocast(CPU, smallest_edge=smallest, precision=precision), CpuTrainingKernels():
        yield


def processor_seconds(function: Callable[[], object], *, summary: Callable[[list[float]], float]) -> float:
    """Return a summary of the processor times of some calls, in seconds."""
    function()  # the first call is slower
    times = []
    for _ in range(_MIN_REPEATS):
        begin = time.process_time()
        function()
        times.append(time.process_time() - begin)
    return summary(times)


def matrix_rate(precision: str) -> float:
    """Return the largest rate of a product of two square matrices, in FLOP a second of processor time."""
    rates = []
    for edge in _MATRIX_EDGES:
        a, b = (torch.rand(edge, edge).to(_DTYPES[precision]) for _ in range(2))
        rates.append(2 * edge**3 / processor_seconds(functools.partial(torch.matmul, a, b), summary=min))
    return max(rates)


def product_layers(network: nn.Module, image: Tensor) -> set[str]:
    """Return the names of the modules that compute products themselves, and not only in the modules inside them."""
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        network(image)
    root = type(network).__name__
    flop = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    flop = {name.removeprefix(f"{root}."): count for name, count in flop.items() if name not in ("Global", root)}
    own = {name for name in flop if flop[name] > sum(flop[inner] for inner in _outermost(flop, inside=name))}
    return set(_outermost(own))  # a layer inside another one that is timed as a whole is not timed again


def _outermost(names: Iterable[str], *, inside: str = "") -> list[str]:
    """Return the names of modules inside module `inside` that are not inside another one of them."""
    within = [name for name in names if not inside or name.startswith(f"{inside}.")]
    return [name for name in within if not any(name.startswith(f"{other}.") for other in within)]


def record_calls(network: SegmentationNetwork, image: Tensor, names: set[str], context: Context) -> list[LayerCall]:
    """Return every call of the named layers in one forward pass."""
    calls: list[LayerCall] = []

    def copy(value: Any) -> Any:
        return value.detach().clone().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value

    def hook(name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        calls.append(LayerCall(name, module, tuple(copy(value) for value in inputs)))

    modules = dict(network.named_modules())
    handles = [modules[name].register_forward_pre_hook(functools.partial(hook, name)) for name in names]
    with context():
        network(image)
    for handle in handles:
        handle.remove()
    return calls


def count_flop(call: LayerCall) -> int:
    """Return the operations of a call, forward and backward, in 32 bits with torch's own layers."""
    inputs = tuple(
        value.detach().float().requires_grad_(value.requires_grad) if _is_float(value) else value
        for value in call.inputs
    )
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        LayerCall(call.name, call.module, inputs).run(contextlib.nullcontext)
    return counter.get_total_flops()


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def group_name(name: str) -> str:
    """Return the part of the network that a layer belongs to: down.0 for down.0.conv1.conv."""
    return ".".join(name.split(".")[:2])


class Step:
    """A training step of a preset's network on a random scan.

    Args:
        preset: Name of the preset.
        batch: Crops of the step.
        classes: Classes with the background.
        precision: `fp32` or `bf16`.
    """

    def __init__(self, preset: str, *, batch: int, classes: int, precision: str) -> None:
        architecture = presets.choose_architecture(presets.PRESETS[preset], None, classes=classes, channels=1)
        torch.manual_seed(0)
        self.precision = precision
        self.network = build_network(architecture).train()
        self.plan = FinetuningPlan(crop=tuple(architecture["arguments"]["image_size"]), steps=1, batch_size=batch)
        self.cases = [random_case(classes=classes, shape=SCAN_SHAPE)]
        self.recipe = DefaultRecipe(self.cases, classes=classes, plan=self.plan)
        self.optimizer = finetuning.build_optimizer(self.network, self.plan)

    def seconds(self) -> float:
        """Return the median processor time of a whole step."""
        times = []
        with mock.patch.object(finetuning, "autocast", functools.partial(autocast, precision=self.precision)):
            for step in range(_WARM_UP_STEPS + _STEPS):
                begin = time.process_time()
                finetuning.train_step(
                    self.cases, self.recipe, self.network, self.optimizer,
                    step=step, done=0.5, plan=self.plan, device=CPU,
                )  # fmt: skip
                times.append(time.process_time() - begin)
        return statistics.median(times[_WARM_UP_STEPS:])

    def layers(self) -> list[Row]:
        """Return a row for each part of the network, in the order of their first call."""
        image, *_ = draw_batch(self.cases, self.recipe, step=0, plan=self.plan)
        names = product_layers(self.network, image)
        context = functools.partial(training_context, self.network, self.plan, self.precision)
        calls = record_calls(self.network, image, names, context)
        rows: dict[str, Row] = {}
        for call in calls:
            flop = count_flop(call)
            forward, backward = call.seconds(context)
            name = group_name(call.name)
            before = rows.get(name, Row(name, 0, 0, 0))
            seconds = before.seconds + forward + backward
            rows[name] = Row(name, before.flop + flop, seconds, (before.forward or 0) + forward)
        return list(rows.values())

    def others(self) -> list[Row]:
        """Return the rows of the crops and of the optimizer."""
        draws = [
            functools.partial(draw_batch, self.cases, self.recipe, step=step, plan=self.plan) for step in range(12)
        ]
        crops = statistics.median(processor_seconds(draw, summary=statistics.median) for draw in draws)
        parameters = list(self.network.parameters())
        for parameter in parameters:
            parameter.grad = parameter.detach() * 1e-3

        def optimize() -> None:
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            self.optimizer.step()

        return [Row("crops", 0, crops), Row("optimizer", 0, processor_seconds(optimize, summary=statistics.median))]


def measure(preset: str, *, batch: int, classes: int, precision: str) -> list[Row]:
    """Return all rows of one table; the last one is the whole step."""
    step = Step(preset, batch=batch, classes=classes, precision=precision)
    whole = step.seconds()
    layers, others = step.layers(), step.others()
    rest = whole - sum(row.seconds for row in (*layers, *others))
    forward = sum(row.forward or 0 for row in layers)
    products = Row("all layers", sum(row.flop for row in layers), sum(row.seconds for row in layers), forward)
    return [*layers, products, *others, Row("rest", 0, rest), Row("whole step", products.flop, whole)]


def table(rows: list[Row], rate: float) -> str:
    """Return the rows as a Markdown table.

    Args:
        rows: Rows of a step.
        rate: Rate of large matrix products, in FLOP a second.
    """
    lines = ["| layer | GFLOP | ms | forward | backward | ms at the limit | share of the rate |", "|---" * 7 + "|"]
    for row in rows:
        cells = [row.name, "", f"{1000 * row.seconds:.1f}", "", "", "", ""]
        if row.forward is not None:
            cells[3:5] = [f"{1000 * part:.1f}" for part in (row.forward, row.seconds - row.forward)]
        if row.flop:
            cells[1] = f"{row.flop / 1e9:.2f}"
            cells[5:] = [f"{1000 * row.flop / rate:.1f}", f"{row.flop / row.seconds / rate:.0%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def run(options: argparse.Namespace) -> None:
    """Print a table for each precision and batch size."""
    default = ("fp32", "bf16") if cpu_has_bf16() else ("fp32",)
    for precision in options.precisions or default:
        rate = matrix_rate(precision)
        sys.stdout.write(f"\nmatrix products in {precision}: {rate / 1e9:.0f} GFLOP/s\n")
        for batch in [options.batch] if options.batch else BATCHES:
            rows = measure(options.preset, batch=batch, classes=options.classes, precision=precision)
            crop_ms = 1000 * rows[-1].seconds / batch
            sys.stdout.write(f"\n{precision}, batch {batch}, {crop_ms:.0f} ms a crop\n\n{table(rows, rate)}\n")
            sys.stdout.flush()
