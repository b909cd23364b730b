"""The interface of the scripts that register a labelled scan to others and propagate its labels.

    python Testing/Benchmarks/propagate_NAME.py --image SCAN --label LABELS --targets SCAN … --output FOLDER
        [--modality ct|mri] [--seed N] [--threads N] [--clean]

The label map of a target SCAN_0000.nii.gz is written as FOLDER/SCAN.nii.gz, on its own grid. Of scans with several channels,
joined by commas, the first one is registered. `compare` runs these scripts as arms without a model.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from HiEndMAECore.inference.postprocessing import keep_largest_component
from HiEndMAECore.io.alignment import align_label_map
from HiEndMAECore.io.file_names import case_name, split_channels
from HiEndMAECore.io.readers import read_label_map, read_volume
from HiEndMAECore.io.volume import Volume
from HiEndMAECore.io.writers import write_label_map

CT_RANGE_HU = (-1024.0, 1000.0)

# (labelled scan, its label map, target, options) -> label map (X, Y, Z) on the target's grid
Propagate = Callable[[Volume, Volume, Volume, argparse.Namespace], np.ndarray]


def run(propagate: Propagate, description: str | None) -> None:
    """Parse the options, and write the label map of each target."""
    options = _parser(description).parse_args()
    scan = read_volume(split_channels(options.image)[0])
    labels = align_label_map(scan, read_label_map(options.label))
    values = [int(value) for value in np.unique(labels.array) if value]
    for text in options.targets:
        target = read_volume(split_channels(text)[0])
        found = propagate(scan, labels, target, options)
        if options.clean:
            found, _ = keep_largest_component(found, values)
        write_label_map(options.output / f"{case_name(split_channels(text)[0])}.nii.gz", found, target.geometry)


def without_air(scan: Volume, modality: str) -> Volume:
    """Return a scan whose air is 0, so that it has no weight in a center of mass: CT is clipped and lifted."""
    low, high = CT_RANGE_HU if modality == "ct" else (float(scan.array.min()), float(scan.array.max()))
    return Volume(np.clip(scan.array, low, high) - low, scan.geometry, scan.name)


def _parser(description: str | None) -> argparse.ArgumentParser:
    """Return the options of all scripts."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", required=True, help="labelled scan")
    parser.add_argument("--label", required=True, type=Path, help="its label map")
    parser.add_argument("--targets", required=True, nargs="+", help="scans to segment")
    parser.add_argument("--output", required=True, type=Path, help="folder for the label maps")
    parser.add_argument("--modality", choices=("ct", "mri"), default="ct")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clean", action="store_true", help="keep the largest component of each structure")
    return parser
