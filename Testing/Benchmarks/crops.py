"""Speed of crops from the store against crops from whole preprocessed volumes, and bytes of a scan in several formats.

python Testing/Benchmarks/crops.py formats [--scan FILE]      # every format: bytes of a scan, error, crops/s
python Testing/Benchmarks/crops.py speed [--volumes 3]        # the store against whole volumes: ratios, warm and cold

The volumes have the size of a body, (330, 300, 400) voxels at 1.5 mm. They are made of a scan (default: the 1.5 mm chest CT of
HIENDMAE_DATA) that is preprocessed as `prepare` does and mirrored up to that size, so that its noise, which does not compress,
is real. Every volume is shifted, so that no two files are the same. Cold: the files are removed from the page cache (Linux).
The whole volumes of `speed` have the same voxels; they are read and cropped in memory, with 8 crops of a volume, as the
authors draw them, or 1. The store is opened again for every crop, as its readers do. The arms alternate in one process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import blosc2
import nibabel as nib
import numpy as np
import torch
import zarr
from zarr.codecs import BloscCodec

from HiEndMAECore.data import crop_store
from HiEndMAECore.data.store_writer import write_manifest, write_scan
from HiEndMAECore.io.readers import read_volume
from HiEndMAECore.preprocessing.pipeline import PreprocessingPlan, preprocess

BODY = (330, 300, 400)
CROP = (96, 96, 96)
WINDOW_HU = 425.0  # width of the window [-175, 250], which becomes [0, 1]
SCANS = 10_000  # for which the disk space is printed
Slices = tuple[slice, slice, slice]
Format = tuple[Callable[[Path, np.ndarray], object], Callable[[Path, Slices], np.ndarray]]


def info(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def to_bytes(array: np.ndarray) -> np.ndarray:
    return np.round(array * 255.0).astype(np.uint8)


def to_words(array: np.ndarray) -> np.ndarray:
    return np.round(array * 1023.0).astype(np.uint16)  # ten bits


def to_half(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float16)


def as_float(array: np.ndarray) -> np.ndarray:
    levels = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 1023.0}.get(array.dtype)
    result = array.astype(np.float32)
    return result if levels is None else np.multiply(result, np.float32(1 / levels), out=result)


def blosc(quantize: Callable, chunk: int, block: int, codec: str, filters: str) -> Format:
    def write(path: Path, array: np.ndarray) -> None:
        parameters = blosc2.CParams(
            codec=blosc2.Codec[codec], clevel=5, filters=[blosc2.Filter[filters]], filters_meta=[0], nthreads=1
        )
        blosc2.asarray(quantize(array), urlpath=str(path), chunks=(chunk,) * 3, blocks=(block,) * 3, cparams=parameters)

    def crop(path: Path, where: Slices) -> np.ndarray:
        return as_float(blosc2.open(str(path), mode="r", dparams=blosc2.DParams(nthreads=1))[where])

    return write, crop


def zarr_format(quantize: Callable, chunk: int, shard: int | None) -> Format:
    def write(path: Path, array: np.ndarray) -> None:
        created = zarr.create_array(
            store=str(path),
            data=quantize(array),
            chunks=(chunk,) * 3,
            shards=None if shard is None else (shard,) * 3,
            compressors=BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle"),
        )
        assert created.shape == array.shape

    def crop(path: Path, where: Slices) -> np.ndarray:
        return as_float(np.asarray(zarr.open_array(str(path), mode="r")[where]))

    return write, crop


def memory_mapped(quantize: Callable) -> Format:
    def write(path: Path, array: np.ndarray) -> None:
        with path.open("wb") as file:
            np.save(file, quantize(array))

    def crop(path: Path, where: Slices) -> np.ndarray:
        return as_float(np.load(path, mmap_mode="r")[where])

    return write, crop


FORMATS: dict[str, Format] = {
    "npy float16, memory-mapped": memory_mapped(to_half),
    "npy uint8, memory-mapped": memory_mapped(to_bytes),
    "blosc2 float16 zstd 64/32": blosc(to_half, 64, 32, "ZSTD", "BITSHUFFLE"),
    "blosc2 uint16 (10 bits) zstd 64/32": blosc(to_words, 64, 32, "ZSTD", "BITSHUFFLE"),
    "blosc2 uint8 zstd 64/32": blosc(to_bytes, 64, 32, "ZSTD", "BITSHUFFLE"),
    "blosc2 uint8 zstd 64/32, no filter": blosc(to_bytes, 64, 32, "ZSTD", "NOFILTER"),
    "blosc2 uint8 lz4 64/32": blosc(to_bytes, 64, 32, "LZ4", "BITSHUFFLE"),
    "blosc2 uint8 zstd 64/16": blosc(to_bytes, 64, 16, "ZSTD", "BITSHUFFLE"),
    "blosc2 uint8 zstd 32/16": blosc(to_bytes, 32, 16, "ZSTD", "BITSHUFFLE"),
    "blosc2 uint8 zstd 128/32": blosc(to_bytes, 128, 32, "ZSTD", "BITSHUFFLE"),
    "blosc2 uint8 zstd 64/16, no filter": blosc(to_bytes, 64, 16, "ZSTD", "NOFILTER"),
    "blosc2 uint8 lz4 64/32, no filter": blosc(to_bytes, 64, 32, "LZ4", "NOFILTER"),
    "blosc2 uint8 lz4hc 64/16, no filter": blosc(to_bytes, 64, 16, "LZ4HC", "NOFILTER"),
    "blosc2 uint8 lz4hc 64/32, no filter": blosc(to_bytes, 64, 32, "LZ4HC", "NOFILTER"),
    "blosc2 uint8 lz4hc 128/32, no filter": blosc(to_bytes, 128, 32, "LZ4HC", "NOFILTER"),
    "zarr 3 uint8 zstd 32": zarr_format(to_bytes, 32, None),
    "zarr 3 uint8 zstd 64": zarr_format(to_bytes, 64, None),
    "zarr 3 uint8 zstd 32, shards of 128": zarr_format(to_bytes, 32, 128),
}


def bodies(scan: Path, count: int) -> list[np.ndarray]:
    """Return `count` volumes of BODY voxels in [0, 1]."""
    array = preprocess(read_volume([scan]), PreprocessingPlan()).array[0]
    return [
        np.pad(
            np.roll(array, 17 * index, axis=2), [(0, max(n - m, 0)) for m, n in zip(array.shape, BODY)], "symmetric"
        )[tuple(slice(n) for n in BODY)]
        for index in range(count)
    ]


def draw_start(rng: np.random.Generator, shape: tuple[int, ...]) -> list[int]:
    return [int(rng.integers(n - m + 1)) for n, m in zip(shape, CROP)]


def slices(start: list[int]) -> Slices:
    a, b, c = (slice(first, first + n) for first, n in zip(start, CROP))
    return a, b, c


def files_below(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]


def drop_from_page_cache(path: Path) -> None:
    """Remove the files from the page cache (on Linux clean pages are removed at once)."""
    for file in files_below(path):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds(run: Callable[[], object]) -> np.ndarray:
    """Return the wall time and the processor time of a call (2,). On a shared machine the wall time is unreliable."""
    clock, processor = time.perf_counter(), time.process_time()
    run()
    return np.array([time.perf_counter() - clock, time.process_time() - processor])


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def formats(folder: Path, scan: Path, rounds: int) -> None:
    (volume,) = bodies(scan, 1)
    info(f"{volume.shape}, {np.mean(volume > 0):.0%} of the voxels above 0")
    for index, (name, (write, _)) in enumerate(FORMATS.items()):
        path = folder / f"{index}.b2nd"
        write_seconds = seconds(lambda write=write, path=path: write(path, volume))[1]  # type: ignore[misc]
        size = sum(file.stat().st_size for file in files_below(path))
        info(f"{name:<36} {size / 1e6:6.1f} MB, {size * SCANS / 1e12:.3f} TB for {SCANS}, {len(files_below(path))} files; "
            f"written in {write_seconds:.1f} s of processor time")  # fmt: skip
    rng = np.random.default_rng(0)
    rates: dict[tuple[str, bool], list[float]] = {}
    errors: dict[str, float] = {}
    for _ in range(rounds):
        regions = [slices(draw_start(rng, volume.shape)) for _ in range(8)]
        for index, (name, (_, crop)) in enumerate(FORMATS.items()):
            path = folder / f"{index}.b2nd"
            for cold in (True, False):
                if cold:
                    drop_from_page_cache(path)

                def run(crop: Callable = crop, path: Path = path, regions: list = regions) -> object:
                    return [crop(path, where) for where in regions]

                rates.setdefault((name, cold), []).append(len(regions) / seconds(run)[0 if cold else 1])
            squared = np.square(crop(path, regions[0]) - volume[regions[0]])
            errors[name] = WINDOW_HU * float(np.sqrt(squared.mean()))
    for name in FORMATS:
        info(f"{name:<36} error {errors[name]:.2f} HU rms; crops per second of processor time {spread(rates[name, False])}, "
            f"cold, of wall time {spread(rates[name, True])}")  # fmt: skip


def whole_nifti(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)  # type: ignore[attr-defined]


def whole_archive(path: Path) -> np.ndarray:
    with np.load(path) as archive:
        return archive["scan"]


def whole_tensor(path: Path) -> np.ndarray:
    return torch.load(path, weights_only=True).numpy()


def write_tensor(path: Path, array: np.ndarray) -> None:
    torch.save(torch.from_numpy(np.ascontiguousarray(array)), path)


WHOLE_FORMATS: dict[str, tuple[str, Callable[[Path, np.ndarray], object], Callable[[Path], np.ndarray]]] = {
    "uint8 .nii.gz (nibabel)": (
        ".nii.gz",
        lambda path, array: nib.save(nib.Nifti1Image(to_bytes(array), np.eye(4)), path),  # type: ignore[attr-defined]
        whole_nifti,
    ),
    "uint8 .npz (np.savez_compressed)": (
        ".npz",
        lambda path, array: np.savez_compressed(path, scan=to_bytes(array)),
        whole_archive,
    ),
    "float32 .pt (as MONAI's PersistentDataset stores it)": (".f32.pt", write_tensor, whole_tensor),
    "uint8 .pt (the same, in bytes)": (".u8.pt", lambda path, array: write_tensor(path, to_bytes(array)), whole_tensor),
}


def speed(folder: Path, scan: Path, rounds: int, volumes: int) -> None:
    entries = []
    sizes = dict.fromkeys(WHOLE_FORMATS, 0)
    for index, volume in enumerate(bodies(scan, volumes)):
        entries.append(write_scan(folder / "store", f"scan{index}", volume[None]))
        for name, (suffix, write, _) in WHOLE_FORMATS.items():
            path = folder / f"scan{index}{suffix}"
            write(path, volume)
            sizes[name] += path.stat().st_size
    preparation = {"spacing": [1.5, 1.5, 1.5], "normalisation": {"kind": "window", "low": -175.0, "high": 250.0}}
    write_manifest(folder / "store", {"scans": entries, "channels": 1, "preparation": preparation})
    store = crop_store.CropStore.open(folder / "store")
    stored = sum(entry["bytes"] for entry in entries) / volumes
    info(f"store: {stored / 1e6:.1f} MB a scan, {stored * SCANS / 1e12:.3f} TB for {SCANS}")
    rng = np.random.default_rng(0)
    for name in WHOLE_FORMATS:
        info(f"whole {name}: {sizes[name] / volumes / 1e6:.1f} MB a scan")
        for cold in (False, True):
            for crops in (8, 1):
                rates = compare_with_whole_volumes(store, name, rng=rng, cold=cold, crops=crops, rounds=rounds)
                for column, clock in enumerate(("wall time", "processor time")):
                    if cold and clock == "processor time":
                        continue  # the processor does not wait for the disk
                    from_store, from_whole = ([rate[column] for rate in arm] for arm in rates)
                    ratios = [one / other for one, other in zip(from_store, from_whole)]
                    info(
                        f"  {'cold' if cold else 'warm'}, {crops} of a volume, {clock}: ratio {spread(ratios)}; "
                        f"crops/s {spread(from_store)} against {spread(from_whole)}"
                    )


def compare_with_whole_volumes(
    store: crop_store.CropStore, name: str, *, rng: np.random.Generator, cold: bool, crops: int, rounds: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return crops per second of wall and processor time (2,) in each round, from the store and from whole volumes."""
    suffix, _, read = WHOLE_FORMATS[name]
    store_rates, whole_rates = [], []
    for number in range(rounds + 1):
        index = number % len(store)
        whole_file = store.path.parent / f"scan{index}{suffix}"
        starts = [draw_start(rng, BODY) for _ in range(crops)]
        if cold:
            drop_from_page_cache(whole_file)
            drop_from_page_cache(store.path / f"scan{index}.{store.manifest['scans'][index]['format']}")

        def from_store(index: int = index, starts: list = starts) -> object:
            return [store.crop(index, start=start, size=CROP) for start in starts]

        def from_whole(file: Path = whole_file, starts: list = starts) -> object:
            array = read(file)
            return [as_float(array[slices(start)]) for start in starts]

        arms = (from_store, from_whole) if number % 2 else (from_whole, from_store)
        times = {arm: seconds(arm) for arm in arms}
        if number:  # the first round warms up
            store_rates.append(crops / times[from_store])
            whole_rates.append(crops / times[from_whole])
    return store_rates, whole_rates


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("formats", "speed"))
    data = os.environ.get("HIENDMAE_DATA", "")
    parser.add_argument("--scan", type=Path, default=Path(data, "abdomen/ct_chest_B/ct.nii.gz"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--volumes", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if options.what == "formats":
            formats(Path(temporary), options.scan, options.rounds)
        else:
            speed(Path(temporary), options.scan, options.rounds, options.volumes)
