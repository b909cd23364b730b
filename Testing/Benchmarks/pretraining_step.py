"""Time of one pretraining step: the engine against a literal model of the paper (`Testing/oracle.py`).

    python Testing/Benchmarks/pretraining_step.py --variant hi_end_mae_vit_large_12p --batch 4 --pairs 10
    python Testing/Benchmarks/pretraining_step.py --device cuda --batch 192 --pairs 10

Both start from the same weights and get the same crops and masks. In each round every arm takes one whole step (forward,
backward, AdamW); the order rotates from round to round. Printed is the literal model's time divided by the engine's (median
over rounds, lowest and highest). The literal model is run with torch's default AdamW and with the engine's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from HiEndMAECore.networks import HiEndMAE
from HiEndMAECore.networks.variants import OBJECTIVES, list_vit_variants, pretraining_arguments
from HiEndMAECore.runtime.devices import autocast, choose_device
from HiEndMAECore.training.optimizer import build_adamw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from oracle import Oracle

_ADAMW = {"betas": (0.9, 0.95), "weight_decay": 0.05}
_BF16_RATES = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # FLOP/s, dense, from the data sheets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="hi_end_mae_vit_large_12p", choices=list_vit_variants())
    parser.add_argument("--objective", default="hi-end-mae", choices=OBJECTIVES)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = choose_device(options.device)
    torch.manual_seed(0)
    arguments = pretraining_arguments(options.variant, objective=options.objective)
    engine = HiEndMAE(**arguments).to(device)
    literal = Oracle(**arguments).to(device)
    literal.load_state_dict(engine.state_dict())
    volume = torch.rand(options.batch, 1, *arguments["image_size"], device=device)
    permutation = engine.random_masking(options.batch).to(device)

    engine_adamw = build_adamw(engine.parameters(), learning_rate=1e-4, **_ADAMW)
    default_adamw = torch.optim.AdamW(literal.parameters(), lr=1e-4, **_ADAMW)
    same_adamw = build_adamw(literal.parameters(), learning_rate=1e-4, **_ADAMW)

    def step(loss_of: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer, precision: str) -> float:
        with autocast(device, precision=precision):
            loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def engine_loss() -> torch.Tensor:
        return engine(volume, permutation).loss

    def literal_loss() -> torch.Tensor:
        return literal(volume, permutation)[0]

    arms: dict[str, Callable[[], float]] = {
        "engine fp32": lambda: step(engine_loss, engine_adamw, "fp32"),
        "engine bf16": lambda: step(engine_loss, engine_adamw, "bf16"),
        "literal fp32, default AdamW": lambda: step(literal_loss, default_adamw, "fp32"),
        "literal fp32, fused AdamW": lambda: step(literal_loss, same_adamw, "fp32"),
        "literal bf16, fused AdamW": lambda: step(literal_loss, same_adamw, "bf16"),
    }
    times: dict[str, list[float]] = {name: [] for name in arms}
    for name, arm in arms.items():  # one step each to warm up
        print(f"{name}: loss of its first step {arm():.4f}", flush=True)
    names = list(arms)
    for turn in range(options.pairs):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            times[name].append(_step_seconds(arms[name], device))
    print(f"\n{options.variant}, {options.objective}, batch {options.batch}, {options.pairs} rounds")
    print(f"{device}, torch {torch.__version__}, {torch.get_num_threads()} threads; medians (lowest to highest)\n")
    print("| arm | seconds of a step | time / engine fp32 | time / engine bf16 |\n|---|---|---|---|")
    for name, values in times.items():
        ratios = (_ratio(values, times["engine fp32"]), _ratio(values, times["engine bf16"]))
        seconds = f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
        print(f"| {name} | {seconds} | {' | '.join(ratios)} |")
    if device.type == "cuda":
        _print_throughput(arms["engine bf16"], times["engine bf16"], options.batch, device)


def _step_seconds(arm: Callable[[], float], device: torch.device) -> float:
    """Return the time of a step. Reading the loss waits only for the forward pass, so the device is synchronized too."""
    started = time.perf_counter()
    arm()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _ratio(times: list[float], engine_times: list[float]) -> str:
    ratios = [a / b for a, b in zip(times, engine_times)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _print_throughput(arm: Callable[[], float], times: list[float], batch: int, device: torch.device) -> None:
    """Print crops per second, the fraction of the card's bf16 rate, and the peak memory of a bf16 step of the engine."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        arm()
    torch.cuda.reset_peak_memory_stats(device)
    arm()
    seconds, card = statistics.median(times), torch.cuda.get_device_name(device)
    print(f"\n{card}: {batch / seconds:.0f} crops/s, {counter.get_total_flops() / seconds / 1e12:.0f} TFLOP/s in bf16")
    for name, rate in _BF16_RATES.items():
        if name in card:
            print(f"{counter.get_total_flops() / seconds / rate:.1%} of the card's {rate / 1e12:.0f} TFLOP/s")
    print(
        f"peak memory {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB (both models' weights and moments included)"
    )


if __name__ == "__main__":
    main()
