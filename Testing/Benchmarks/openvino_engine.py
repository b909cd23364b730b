"""Benchmark OpenVINO against torch on one tile, alternating in one run: processor time, one thread, and equal labels.

python Testing/Benchmarks/openvino_engine.py [--precision f32|bf16] [--networks HybridUNETR …] [--rounds N]

torch runs as `segment` does (`inference.forward`): `exact` for f32, with autocast for bf16. The network is untrained, which
makes its classes nearly equally probable: labels of trained networks agree more. Needs `pip install openvino`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import openvino
import torch

from HiEndMAECore.inference.forward import forward
from HiEndMAECore.networks import build_network, segmentation_architecture
from HiEndMAECore.networks.registry import find_network, list_variants

CLASSES = 14
VARIANTS = {"hybrid_unetr": "hi_end_mae_vit_tiny_8p", "unetr": "hi_end_mae_vit_small_8p"}
NETWORKS = ("hybrid_unetr", "unetr", "dynunet", "segresnet", "unet", "swinunetr", "mednext")


def architecture_of(network: str) -> dict:
    variant = VARIANTS.get(network) or list_variants(network)[0]
    return segmentation_architecture(variant, classes=CLASSES, network=find_network(network).name)


def compile_network(network: torch.nn.Module, tile: torch.Tensor, precision: str) -> Callable[[], torch.Tensor]:
    """Return a call that computes the tile with OpenVINO."""
    with torch.no_grad():
        model = openvino.convert_model(network, example_input=tile, input=[list(tile.shape)])
    config = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    request = openvino.Core().compile_model(model, "CPU", config).create_infer_request()
    array = tile.numpy()
    return lambda: torch.from_numpy(request.infer([array])[0])


def seconds_of(runs: dict[str, Callable[[], torch.Tensor]], rounds: int) -> dict[str, list[float]]:
    """Return the processor seconds of each run, taken in turn; the first two rounds do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 2):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if turn > 1:
                seconds[name].append(time.process_time() - start)
    return seconds


def compare(name: str, precision: str, rounds: int) -> str:
    """Return the row of one network."""
    torch.manual_seed(0)
    architecture = architecture_of(name)
    network = build_network(architecture).eval()
    edges = architecture["arguments"]["image_size"]
    tile = torch.rand(1, 1, *edges)

    @torch.inference_mode()
    def run_torch() -> torch.Tensor:
        return forward(network, tile, exact=precision == "f32")

    runs = {"torch": run_torch, "openvino": compile_network(network, tile, precision)}
    seconds = seconds_of(runs, rounds)
    labels = [run().argmax(1) for run in runs.values()]
    same = float((labels[0] == labels[1]).float().mean())
    ratios = [a / b for a, b in zip(seconds["torch"], seconds["openvino"])]
    middles = [statistics.median(values) for values in seconds.values()]
    return (
        f"{architecture['network']:<12} {'x'.join(map(str, edges)):<10} torch {middles[0]:.4f} s  openvino {middles[1]:.4f} s  "
        f"{statistics.median(ratios):.2f} times ({min(ratios):.2f} to {max(ratios):.2f})  equal labels {same:.5f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--rounds", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    capability = torch.backends.cpu.get_cpu_capability()
    sys.stdout.write(f"torch {torch.__version__} ({capability}), openvino {openvino.__version__}, {args.precision}\n")
    for name in args.networks:
        try:
            row = compare(name, args.precision, args.rounds)
        except Exception as error:  # one network that cannot be converted does not end the others
            row = f"{name}: {type(error).__name__}: {str(error)[:200]}"
        sys.stdout.write(row + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
