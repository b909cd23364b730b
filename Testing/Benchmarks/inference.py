"""Ours beside MONAI's, alternating in one run: ratios of medians with their spread.

python Testing/Benchmarks/inference.py window [--variant NAME --shape H W D --classes N --rounds N]
python Testing/Benchmarks/inference.py memory [--shape 273 273 200 --stand-in]     # one child process each
python Testing/Benchmarks/inference.py unetr [--variant hi_end_mae_vit_base_16p]   # patch 16, as MONAI; it wants einops
python Testing/Benchmarks/inference.py whole [--shape X Y Z --spacing X Y Z]       # read to written file, in its parts
python Testing/Benchmarks/inference.py peak --shape 512 512 800 --spacing 0.8 0.8 1 --classes 61   # its memory

`window` runs the same network of ours under MONAI's `sliding_window_inference` (overlap 0.5, Gaussian, no autocast), under
ours exact, and under ours as it comes (bf16 where the processor has it). `memory` is the peak resident memory of a
process that does one scan, less that of a process that only builds the network; --stand-in puts one convolution in the
network's place, so that a large scan takes seconds: what is compared then is the window alone. --every N has the real
network on every N-th tile and its last answer in between: the same peak in less time. `peak` is the whole path in a
process of its own, from the file of a digital patient enlarged to the shape asked for to the written result;
--no-air: of tissue alone, so that there is nothing to crop and no tile to skip.
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
from HiEndMAECore.inference.predictor import Predictor
from HiEndMAECore.inference.sliding_window import forward
from HiEndMAECore.io.volume import Geometry
from HiEndMAECore.models.description import ModelDescription
from HiEndMAECore.models.folder import write_model
from HiEndMAECore.networks import UNETR, segmentation_architecture
from HiEndMAECore.preprocessing.pipeline import PreprocessedScan
from HiEndMAECore.runtime.devices import choose_device


def info(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def alternate(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, taken in turn; the first round warms up and does not count."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                taken[name].append(time.perf_counter() - start)
    return taken


def tell(taken: dict[str, list[float]]) -> None:
    """Medians, spread, and the ratio to the first, of times or of bytes."""
    first = statistics.median(next(iter(taken.values())))
    for name, values in taken.items():
        middle = statistics.median(values)
        info(f"{name:<24} {middle:8.3f}  ({min(values):.3f} to {max(values):.3f})  {middle / first:5.2f} of the first")


class Sometimes(torch.nn.Module):
    """`network` on every N-th call; in between a copy of its last answer, as large."""

    def __init__(self, network: torch.nn.Module, every: int) -> None:
        super().__init__()
        self.network, self.every, self.calls = network, every, 0

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
        predictor.network = Sometimes(predictor.network, args.every)  # type: ignore[assignment]
    return predictor


def scan_of(shape: list[int]) -> PreprocessedScan:
    """A prepared scan without air: every tile counts, on both sides."""
    array = np.random.default_rng(0).random((1, *shape), dtype=np.float32)
    return PreprocessedScan(np.eye(4), Geometry(tuple(shape), np.eye(4)), array)  # type: ignore[arg-type]


def monai_window(predictor: Predictor, scan: PreprocessedScan) -> np.ndarray:
    with torch.inference_mode():
        image = torch.from_numpy(scan.array)[None].to(predictor.device)
        logits = sliding_window_inference(image, predictor.tile, 1, predictor.network, overlap=0.5, mode="gaussian")
        return logits.argmax(1)[0].byte().cpu().numpy()


def window(args: argparse.Namespace) -> None:
    exact, quick, scan = predictor_of(args, exact=True), predictor_of(args, exact=False), scan_of(args.shape)
    taken = alternate(
        {
            "MONAI's window, s": lambda: monai_window(exact, scan),
            "ours exact, s": lambda: exact.infer(scan),
            "ours, s": lambda: quick.infer(scan),
        },
        args.rounds,
    )
    tell(taken)
    same = float((monai_window(exact, scan) == exact.infer(scan).labels).mean())
    info(f"voxels with the same label, MONAI's and ours exact: {same:.6f}")


def memory(args: argparse.Namespace) -> None:
    taken: dict[str, list[float]] = {"MONAI's window, GB": [], "ours exact, GB": [], "ours, GB": []}
    for _ in range(args.rounds):
        idle = _child(args, "idle")
        for name, kind in zip(taken, ("monai", "ours", "quick")):
            taken[name].append(_child(args, kind) - idle)
    tell(taken)


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
    """The peak of this process in GB, system memory (POSIX), or the device's where there is one."""
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
            predictor.network = Sometimes(predictor.network, args.every)  # type: ignore[assignment]
            return predictor

        Predictor.load = staticmethod(thinned)  # type: ignore[assignment]
        segment.run(config_of(args, Path(args.folder)))
    else:
        predictor, scan = predictor_of(args, exact=args.kind != "quick"), scan_of(args.shape)
        device = predictor.device
        if args.kind == "monai":
            monai_window(predictor, scan)
        elif args.kind in ("ours", "quick"):
            predictor.infer(scan)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before
    info(f"{(torch.cuda.max_memory_allocated() if device.type == 'cuda' else peak) / 1e9:.4f}")


def unetr(args: argparse.Namespace) -> None:
    kinds = {"MONAI's UNETR": "theirs", "ours, plain": "plain", "ours exact": "exact", "ours": "as it comes"}
    # Memory first: a child's peak begins at what its parent holds.
    tell({f"{name}, GB": [_child(args, f"tile {kind}") for _ in range(args.rounds)] for name, kind in kinds.items()})
    runs = {name: tile_through(args, kind) for name, kind in kinds.items()}
    tell(alternate({f"{name}, s": run for name, run in runs.items()}, args.rounds))


def tile_through(args: argparse.Namespace, kind: str) -> Callable[[], object]:
    """One tile through MONAI's UNETR or through ours: plain, or as `segment` runs it, exact or as it comes."""
    arguments, device = arguments_of(args), choose_device(args.device)
    if arguments["patch_size"] != 16:
        raise SystemExit("MONAI's UNETR has patch 16: give --variant hi_end_mae_vit_base_16p")
    network: torch.nn.Module
    if kind != "theirs":
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
        return network(tile) if kind in ("theirs", "plain") else forward(network, tile, exact=kind == "exact")

    return run


def write_files(args: argparse.Namespace, folder: Path) -> None:
    """scan.nii.gz, a digital patient drawn on at most 128 voxels an edge and enlarged, and a model that knows nothing."""
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
    with tempfile.TemporaryDirectory() as place:
        args.folder = Path(place)
        write_files(args, args.folder)
        taken = [_child(args, "whole") for _ in range(args.rounds)]
        record = json.loads((args.folder / "out" / "scan.json").read_text(encoding="utf-8"))
    info(f"peak of the whole process {statistics.median(taken):.2f} GB ({min(taken):.2f} to {max(taken):.2f})")
    info(f"seconds, with the network on every {args.every}. tile: {record['seconds_of_parts']}")


def whole(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        config = config_of(args, folder)
        write_files(args, folder)
        parts: dict[str, list[float]] = {}
        for _ in range(args.rounds):
            segment.run(config)
            record = json.loads((folder / "out" / "scan.json").read_text(encoding="utf-8"))
            for name, seconds in {"all": record["seconds"], **record["seconds_of_parts"]}.items():
                parts.setdefault(f"{name}, s", []).append(seconds)
        tell(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = {"window": window, "memory": memory, "unetr": unetr, "whole": whole, "peak": peak, "child": child}
    parser.add_argument("what", choices=jobs)
    parser.add_argument("--variant", default="hi_end_mae_vit_tiny_8p")
    parser.add_argument("--shape", type=int, nargs=3, default=[96, 96, 96])
    parser.add_argument("--spacing", type=float, nargs=3, default=[3.0, 3.0, 3.0])
    parser.add_argument("--tile", type=int, default=0, help="edge, where not the variant's")
    parser.add_argument("--classes", type=int, default=14)
    parser.add_argument("--features", type=int, default=0, help="of UNETR's decoder, where not the variant's")
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
