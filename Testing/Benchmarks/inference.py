"""Benchmark inference against MONAI, alternating in one run: medians, spread and ratios.

python Testing/Benchmarks/inference.py window [--variant NAME --shape H W D --classes N --rounds N]
python Testing/Benchmarks/inference.py memory [--shape 273 273 200 --stand-in]     # one child process each
python Testing/Benchmarks/inference.py unetr [--variant hi_end_mae_vit_base_16p]   # patch 16, as in MONAI; needs einops
python Testing/Benchmarks/inference.py whole [--shape X Y Z --spacing X Y Z]       # steps from reading to the written file
python Testing/Benchmarks/inference.py peak --shape 512 512 800 --spacing 0.8 0.8 1 --classes 61   # memory of all steps

`window` runs one network of HiEndMAE under MONAI's `sliding_window_inference` (overlap 0.5, Gaussian, no autocast), under
HiEndMAE's sliding window with `exact`, and under it with the defaults (bf16 where the processor has it). `memory` is the peak
resident memory of a process that segments one scan, without the memory of a process that only builds the network.
--stand-in replaces the network by one convolution, so that a large scan takes seconds and only the sliding windows are
compared. --every N computes every N-th tile and returns a copy of the last logits for the others: the same peak in less time.
`peak` runs every step in a process of its own, from the file of a digital patient enlarged to the shape to the written result;
--no-air uses tissue only, so that nothing is cropped and no tile is empty.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import UNETR as MonaiUNETR

from HiEndMAECore import segment
from HiEndMAECore.data.phantom import make_patient
from HiEndMAECore.inference.forward import forward
from HiEndMAECore.inference.predictor import Predictor
from HiEndMAECore.io.volume import Geometry
from HiEndMAECore.models.description import ModelDescription
from HiEndMAECore.models.folder import write_model
from HiEndMAECore.networks import UNETR, segmentation_architecture
from HiEndMAECore.networks.interface import NetworkTraits
from HiEndMAECore.preprocessing.pipeline import PreprocessedScan
from HiEndMAECore.runtime.devices import choose_device


def info(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def alternate(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each run, taken in turn; the first round warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def report(measured: dict[str, list[float]]) -> None:
    """Print median, spread and ratio to the first of times or memory."""
    first = statistics.median(next(iter(measured.values())))
    for name, values in measured.items():
        middle = statistics.median(values)
        info(f"{name:<24} {middle:8.3f}  ({min(values):.3f} to {max(values):.3f})  {middle / first:5.2f} of the first")


class EveryNthTile(torch.nn.Module):
    """A network that computes every N-th call, and returns a copy of its last logits for the others."""

    def __init__(self, network: torch.nn.Module, every: int) -> None:
        super().__init__()
        self.network, self.every, self.calls = network, every, 0
        self.traits = getattr(network, "traits", NetworkTraits())  # they decide which CPU kernels are used

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        if self.calls % self.every == 0:
            self.last = self.network(tiles)
        self.calls += 1
        return self.last.clone()


def describe(args: argparse.Namespace) -> ModelDescription:
    return ModelDescription(
        kind="segmentation",
        name="benchmark",
        architecture={"network": "UNETR", "variant": args.variant, "arguments": arguments_of(args)},
        channels=["ct"],
        preparation={"spacing": [1.5] * 3, "normalisation": {"kind": "window", "low": -175.0, "high": 250.0}},
        labels=[{"value": value, "name": f"structure {value}"} for value in range(1, args.classes)],
    )


def arguments_of(args: argparse.Namespace) -> dict:
    arguments = segmentation_architecture(args.variant, classes=args.classes)["arguments"]
    arguments["feature_size"] = args.features or arguments["feature_size"]
    return {**arguments, "image_size": (args.tile,) * 3} if args.tile else arguments


def predictor_of(args: argparse.Namespace, *, exact: bool) -> Predictor:
    torch.manual_seed(0)
    predictor = Predictor(UNETR(**arguments_of(args)), describe(args), choose_device(args.device), exact=exact)
    if args.stand_in:
        predictor.network = torch.nn.Conv3d(1, args.classes, 3, padding=1).to(predictor.device)  # type: ignore[assignment]
    if args.every > 1:
        predictor.network = EveryNthTile(predictor.network, args.every)  # type: ignore[assignment]
    return predictor


def scan_of(shape: list[int]) -> PreprocessedScan:
    """Return a preprocessed scan without empty tiles, so that both sliding windows compute the same tiles."""
    array = np.random.default_rng(0).random((1, *shape), dtype=np.float32)
    return PreprocessedScan(np.eye(4), Geometry(tuple(shape), np.eye(4)), array)  # type: ignore[arg-type]


def monai_window(predictor: Predictor, scan: PreprocessedScan) -> np.ndarray:
    with torch.inference_mode():
        image = torch.from_numpy(scan.array)[None].to(predictor.device)
        logits = sliding_window_inference(image, predictor.tile, 1, predictor.network, overlap=0.5, mode="gaussian")
        return logits.argmax(1)[0].byte().cpu().numpy()


def window(args: argparse.Namespace) -> None:
    exact, default, scan = predictor_of(args, exact=True), predictor_of(args, exact=False), scan_of(args.shape)
    seconds = alternate(
        {
            "MONAI's window, s": lambda: monai_window(exact, scan),
            "exact, s": lambda: exact.infer(scan),
            "default, s": lambda: default.infer(scan),
        },
        args.rounds,
    )
    report(seconds)
    same = float((monai_window(exact, scan) == exact.infer(scan).labels).mean())
    info(f"voxels with the same label in MONAI's window and exact: {same:.6f}")


def memory(args: argparse.Namespace) -> None:
    gigabytes: dict[str, list[float]] = {"MONAI's window, GB": [], "exact, GB": [], "default, GB": []}
    for _ in range(args.rounds):
        idle = _child(args, "idle")
        for name, kind in zip(gigabytes, ("monai", "exact", "default")):
            gigabytes[name].append(_child(args, kind) - idle)
    report(gigabytes)


def _child(args: argparse.Namespace, kind: str) -> float:
    command = [
        sys.executable,
        __file__,
        "child",
        "--kind",
        kind,
        "--variant",
        args.variant,
        "--features",
        str(args.features),
        "--device",
        args.device,
    ]
    command += ["--classes", str(args.classes), "--shape", *map(str, args.shape), "--tile", str(args.tile)]
    command += ["--every", str(args.every), "--folder", str(args.folder)]
    command += ["--stand-in"] if args.stand_in else []
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def child(args: argparse.Namespace) -> None:
    """Print the peak memory of this process in GB: of the graphics card if one computes, else system memory (POSIX)."""
    import resource

    unit, before = 1 if sys.platform == "darwin" else 1024, 0
    if args.kind.startswith("tile "):
        device, run = choose_device(args.device), tile_through(args, args.kind[5:])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        run()
    elif args.kind == "whole":
        device, load = choose_device(args.device), Predictor.load

        def thinned(path: Path, **options: Any) -> Predictor:
            predictor = load(path, **options)
            predictor.network = EveryNthTile(predictor.network, args.every)  # type: ignore[assignment]
            return predictor

        Predictor.load = staticmethod(thinned)  # type: ignore[assignment]
        segment.run(config_of(args, Path(args.folder)))
    else:
        predictor, scan = predictor_of(args, exact=args.kind != "default"), scan_of(args.shape)
        device = predictor.device
        if args.kind == "monai":
            monai_window(predictor, scan)
        elif args.kind in ("exact", "default"):
            predictor.infer(scan)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before
    info(f"{(torch.cuda.max_memory_allocated() if device.type == 'cuda' else peak) / 1e9:.4f}")


def unetr(args: argparse.Namespace) -> None:
    kinds = {"MONAI's UNETR": "monai", "UNETR, plain": "plain", "UNETR, exact": "exact", "UNETR, default": "default"}
    # Memory first, because a child's peak begins with the memory of its parent.
    report({f"{name}, GB": [_child(args, f"tile {kind}") for _ in range(args.rounds)] for name, kind in kinds.items()})
    runs = {name: tile_through(args, kind) for name, kind in kinds.items()}
    report(alternate({f"{name}, s": run for name, run in runs.items()}, args.rounds))


def tile_through(args: argparse.Namespace, kind: str) -> Callable[[], object]:
    """Return a call that computes one tile with MONAI's UNETR, or HiEndMAE's: plain, or as `segment` does, exact or default."""
    arguments, device = arguments_of(args), choose_device(args.device)
    if arguments["patch_size"] != 16:
        raise SystemExit("MONAI's UNETR has patch 16: give --variant hi_end_mae_vit_base_16p")
    network: torch.nn.Module
    if kind != "monai":
        network = UNETR(**arguments)
    else:
        network = MonaiUNETR(
            1, args.classes, arguments["image_size"], arguments["feature_size"], arguments["encoder_dim"],
            4 * arguments["encoder_dim"], arguments["encoder_heads"], qkv_bias=True,
        )  # fmt: skip
    network = network.to(device).eval()
    tile = torch.rand(1, 1, *arguments["image_size"], device=device)

    @torch.inference_mode()
    def run() -> object:
        return network(tile) if kind in ("monai", "plain") else forward(network, tile, exact=kind == "exact")

    return run


def write_files(args: argparse.Namespace, folder: Path) -> None:
    """Write scan.nii.gz, a digital patient of at most 128 voxels an edge, enlarged, and an untrained model."""
    times = [-(-n // 128) for n in args.shape]
    small = [-(-n // t) for n, t in zip(args.shape, times)]
    scan, _ = make_patient(1, shape=small, spacing=[max(s * t for s, t in zip(args.spacing, times))] * 3)
    array = scan.array[0].astype(np.int16)
    if args.no_air:
        array = np.random.default_rng(0).normal(40, 20, small).astype(np.int16)
    for axis, (t, n) in enumerate(zip(times, args.shape)):
        array = array.repeat(t, axis).take(range(n), axis)
    nib.save(nib.Nifti1Image(array, np.diag([*args.spacing, 1.0])), folder / "scan.nii.gz")
    torch.manual_seed(0)
    write_model(folder / "model", describe(args), UNETR(**arguments_of(args)).state_dict())


def config_of(args: argparse.Namespace, folder: Path) -> segment.SegmentConfig:
    return segment.SegmentConfig(
        model=folder / "model", input=(str(folder / "scan.nii.gz"),), output=folder / "out", device=args.device
    )


def peak(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        args.folder = Path(temporary)
        write_files(args, args.folder)
        peaks = [_child(args, "whole") for _ in range(args.rounds)]
        record = json.loads((args.folder / "out" / "scan.json").read_text(encoding="utf-8"))
    info(f"peak of the whole process {statistics.median(peaks):.2f} GB ({min(peaks):.2f} to {max(peaks):.2f})")
    info(f"seconds, with the network on one of {args.every} tiles: {record['seconds_of_parts']}")


def whole(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = config_of(args, folder)
        write_files(args, folder)
        parts: dict[str, list[float]] = {}
        for _ in range(args.rounds):
            segment.run(config)
            record = json.loads((folder / "out" / "scan.json").read_text(encoding="utf-8"))
            for name, seconds in {"all": record["seconds"], **record["seconds_of_parts"]}.items():
                parts.setdefault(f"{name}, s", []).append(seconds)
        report(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = {"window": window, "memory": memory, "unetr": unetr, "whole": whole, "peak": peak, "child": child}
    parser.add_argument("what", choices=jobs)
    parser.add_argument("--variant", default="hi_end_mae_vit_tiny_8p")
    parser.add_argument("--shape", type=int, nargs=3, default=[96, 96, 96])
    parser.add_argument("--spacing", type=float, nargs=3, default=[3.0, 3.0, 3.0])
    parser.add_argument("--tile", type=int, default=0, help="edge, instead of the variant's")
    parser.add_argument("--classes", type=int, default=14)
    parser.add_argument("--features", type=int, default=0, help="of UNETR's decoder, instead of the variant's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--stand-in", action="store_true")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--no-air", action="store_true")
    parser.add_argument("--kind", default="")
    parser.add_argument("--folder", default="")
    args = parser.parse_args()
    info(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {choose_device(args.device)}: {vars(args)}")
    jobs[args.what](args)


if __name__ == "__main__":
    main()
