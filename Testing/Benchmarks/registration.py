"""Measure the registration of a labelled scan to other scans: Dice, processor time, folds.

    python Testing/Benchmarks/registration.py DATASET [--training-case NAME] [--cases NAME ...] [--set KEY=VALUE ...]

DATASET is a folder in nnU-Net's layout with splits.json; the cases are those of `tune` where none are named. Dice is
measured on the scans' own grids, after the largest component of each structure is retained. `--set` changes a number of
`RegistrationSettings`; `--coupling` that of every level of the search. `--atlas` registers from the atlas that
a model would keep of the labelled scan, and prints its size.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import torch

from HiEndMAECore.evaluation.metrics import dice
from HiEndMAECore.inference.postprocessing import keep_largest_component
from HiEndMAECore.io.readers import read_label_map, read_volume
from HiEndMAECore.io.volume import Volume
from HiEndMAECore.preprocessing.intensity import IntensityNormalization
from HiEndMAECore.preprocessing.pipeline import PreprocessingPlan, preprocess
from HiEndMAECore.registration.atlas import build_atlas
from HiEndMAECore.registration.features import Features, RegistrationImage
from HiEndMAECore.registration.grids import Grid
from HiEndMAECore.registration.registration import RegistrationSettings, register
from HiEndMAECore.registration.transform import Transform
from HiEndMAECore.reporting.reporter import Reporter


def main() -> None:
    """Print a line a case, and the means."""
    options = _parser().parse_args()
    splits = json.loads((options.dataset / "splits.json").read_text())
    description = json.loads((options.dataset / "dataset.json").read_text())
    modality = "ct" if description["channel_names"]["0"].upper().startswith("CT") else "mri"
    names = {value: name for name, value in description["labels"].items()}
    training_case = options.training_case or splits["train"][0]
    moving, labels = _load(options.dataset, training_case, modality, options.spacing)
    settings = _settings(options)
    source = _atlas_features(moving, labels, training_case, modality, settings) if options.atlas else moving
    table = []
    for case in options.cases or splits["tune"]:
        fixed, reference = _load(options.dataset, case, modality, options.spacing)
        start = time.process_time()
        with Reporter(quiet=True) as report:
            result = register(source, fixed, modality=modality, report=report, settings=settings)
        seconds = time.process_time() - start
        affine = _scores(result.affine, labels, reference)
        scores = _scores(result.transform, labels, reference)
        table.append((np.mean(list(scores.values())), np.mean(list(affine.values())), seconds))
        by_structure = ", ".join(f"{names[value]} {score:.2f}" for value, score in scores.items())
        print(
            f"{training_case} -> {case}: Dice {table[-1][0]:.3f} (affine {table[-1][1]:.3f}), {seconds:.1f} s, "
            f"folded {result.folded_share:.2%}, cost {result.cost:.2f}, bodies {result.body_overlap:.2f}; {by_structure}; "
            f"{' '.join(result.reasons) or 'usable'}",
            flush=True,
        )
    dice_mean, affine_mean, seconds_mean = np.mean(table, axis=0)
    print(f"mean of {len(table)}: Dice {dice_mean:.3f} (affine {affine_mean:.3f}), {seconds_mean:.1f} s")


def _parser() -> argparse.ArgumentParser:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--training-case")
    parser.add_argument("--cases", nargs="+")
    parser.add_argument("--spacing", type=float, default=2.0, help="of the preprocessed scans in mm")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--coupling", type=float)
    parser.add_argument("--atlas", action="store_true")
    return parser


def _settings(options: argparse.Namespace) -> RegistrationSettings:
    """Return the settings that the options ask for."""
    settings = RegistrationSettings()
    changes: dict[str, object] = {}
    for text in options.set:
        key, value = text.split("=")
        changes[key] = type(getattr(settings, key))(float(value))
    if options.coupling is not None:
        changes["start_level"] = dataclasses.replace(settings.start_level, coupling=options.coupling)
        changes["levels"] = tuple(dataclasses.replace(level, coupling=options.coupling) for level in settings.levels)
    return dataclasses.replace(settings, **changes)


def _atlas_features(
    image: RegistrationImage, labels: Volume, name: str, modality: str, settings: RegistrationSettings
) -> Features:
    """Return the features of the atlas of the labelled scan, and print the size of the atlas."""
    grid = Grid(labels.shape, labels.geometry.affine)
    classes = torch.from_numpy(labels.array[0].astype(np.int32))
    atlas = build_atlas(image, classes, grid, name=name, modality=modality, settings=settings)
    sizes = {key: round(tensor.nbytes / 1e6, 1) for key, tensor in atlas.to_tensors().items()}
    print(f"atlas of {name}: {sizes} MB, features {atlas.features.grid.shape}, labels {grid.shape}", flush=True)
    return atlas.features


def _load(dataset: Path, case: str, modality: str, spacing: float) -> tuple[RegistrationImage, Volume]:
    """Return the preprocessed scan of a case, and its label map."""
    volume = read_volume(dataset / "imagesTr" / f"{case}_0000.nii.gz")
    labels = read_label_map(dataset / "labelsTr" / f"{case}.nii.gz")
    normalization = IntensityNormalization() if modality == "ct" else IntensityNormalization.percentiles()
    scan = preprocess(volume, PreprocessingPlan((spacing,) * 3, normalization))
    return RegistrationImage(torch.from_numpy(scan.array[0]), scan.affine), labels


def _scores(transform: Transform, labels: Volume, reference: Volume) -> dict[int, float]:
    """Return the Dice of each structure of the reference."""
    source, target = (Grid(volume.shape, volume.geometry.affine) for volume in (labels, reference))
    moving = torch.from_numpy(labels.array[0].astype(np.int32))
    found = transform.warp_labels(moving, source, target).numpy()
    values = [int(value) for value in np.unique(reference.array[0]) if value]
    found, _ = keep_largest_component(found, values)
    return {value: dice(found == value, reference.array[0] == value) or 0.0 for value in values}


if __name__ == "__main__":
    main()
