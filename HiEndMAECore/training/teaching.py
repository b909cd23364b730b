"""From labelled scans on disk to what the fine-tuning loop holds: structures, grid, and the presets for a machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from HiEndMAECore.checkpoints.transfer import InitialWeights
from HiEndMAECore.errors import InputError
from HiEndMAECore.metrics.pairs import structure_names
from HiEndMAECore.networks.registry import find_variant, segmentation_architecture
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.volumes.datasets import Case, Dataset, label_colours, nested_share, read_dataset
from HiEndMAECore.volumes.files import case_name, files_of, on_grid_of, read_labels, read_volume
from HiEndMAECore.volumes.intake import looks_like_labels
from HiEndMAECore.volumes.preparation import PreparationPlan, body_box, prepare, prepare_labels, suggest_normalisation
from HiEndMAECore.volumes.sides import Mirroring, decide_mirroring
from HiEndMAECore.volumes.volume import Structure, Volume

from .finetuning import TeachingScan

_MANY = 64  # different labels, from which on a label map is looked at more closely
FEW_VOXELS = 20  # on the network's grid: fewer are too little to learn from


@dataclass(frozen=True)
class Preset:
    """What suits a machine: the variant where no starting weights decide it, crops a batch, and how many voxels a body
    may have on the network's grid; or its spacing (mm along R, A, S) whatever the body. paper: the paper's recipe instead
    of ours, see `training.paper`. On two cores, twice the steps of one crop beat steps of two crops.
    """

    variant: str
    batch_size: int
    voxels: float
    spacing: tuple[float, float, float] | None = None
    paper: bool = False


PRESETS = {
    "cpu": Preset("hi_end_mae_vit_tiny_8p", 1, 1.5e6),
    "gpu": Preset("hi_end_mae_vit_small_8p", 4, 12e6),
    "paper-one-shot": Preset("hi_end_mae_vit_large_12p", 4, float("inf"), spacing=(1.5, 1.5, 1.5), paper=True),
}


def choose_preset(name: str, device: torch.device) -> Preset:
    """The preset called `name`; 'auto' chooses by the device."""
    if name == "auto":
        name = "gpu" if device.type == "cuda" else "cpu"
    return PRESETS[name]


def cases_from(images: Sequence[str], labels: Sequence[Path]) -> list[Case]:
    """Loose files: the channels of one case joined by commas, and its label map."""
    files = [files_of(image) for image in images]
    return [Case(case_name(f[0]), f, label) for f, label in zip(files, labels)]


def cases_of(folder: Path, names: Sequence[str] = (), *, share: int | None = None, seed: int = 0) -> Dataset:
    """The data set in `folder` with the labelled cases called `names`, or all; of them `share` percent. Raises
    `InputError`."""
    dataset = read_dataset(folder)
    found = {case.name: case for case in dataset.cases}
    absent = [name for name in names if name not in found]
    if absent:
        raise InputError("case_absent", f"{folder} has no labelled case {', '.join(absent)}.", "Check --cases.")
    cases = [found[name] for name in names or found]
    return replace(dataset, cases=tuple(cases if share is None else nested_share(cases, share, seed=seed)))


@dataclass(frozen=True)
class LabelledCase:
    """One case in memory: the scan and its label map on the same grid."""

    scan: Volume
    labels: Volume


def read_case(case: Case, *, report: Reporter) -> LabelledCase:
    """Read and check one labelled case; tells what was corrected on reading. Raises `InputError`."""
    if case.label is None:
        raise InputError("label_absent", f"The case {case.name} has no label map.", "Give one with --label.")
    scan = read_volume(case.channels, name=case.name)
    labels = on_grid_of(scan, read_labels(case.label))
    for note in (*scan.notes, *labels.notes):
        report.warning(**note)
    if labels.array.max() > 65535:
        told = f"The label map {case.label} has values up to {labels.array.max()}."
        raise InputError("labels_too_large", told, "Renumber them: 65535 at most.")
    values = len(np.unique(labels.array)) - 1
    if values > _MANY and not looks_like_labels(labels):
        told = f"{case.label} has {values} different values, mixed like those of a scan."
        raise InputError("labels_look_like_a_scan", told, "Give the label map that belongs to the scan.")
    return LabelledCase(scan, labels)


def check_together(cases: Sequence[LabelledCase], *, ignore: int | None = None) -> None:
    """Raise `InputError` where the cases cannot teach one network: other channels than the first has, or voxels labelled
    `ignore`, which learning cannot leave out."""
    first = cases[0].scan
    for case in cases:
        if case.scan.channels != first.channels:
            told = f"{case.scan.name} has {case.scan.channels} channel(s), {first.name} has {first.channels}."
            raise InputError("channels_do_not_fit", told, "Give every scan the same channels, in the same order.")
        if ignore is not None and (case.labels.array == ignore).any():
            told = f"The label map of {case.scan.name} has voxels of the label 'ignore' ({ignore})."
            advice = "Learning cannot leave them out: choose cases without, or label them."
            raise InputError("ignore_not_supported", told, advice)


def choose_plan(
    cases: Sequence[LabelledCase],
    *,
    preset: Preset,
    spacing: Sequence[float] | None = None,
    initial: InitialWeights | None = None,
) -> PreparationPlan:
    """Spacing and intensities for these scans.

    spacing, mm along R, A, S: what is given; else that of the weights, where they have learned to segment, or were
    pretrained on scans of this kind and it suits these (`_suits`); else isotropic, as fine as the scans themselves allow
    (geometric mean of the voxel edges), but so coarse that no body has more voxels than the preset's.
    """
    normalisation = suggest_normalisation(cases[0].scan)
    finest = float(np.median([np.prod(case.scan.spacing) ** (1 / 3) for case in cases]))
    bodies = []
    for case in cases:
        box = body_box(case.scan, hounsfield=normalisation.kind == "window")
        bodies.append(float(np.prod([end - first for first, end in box])) * case.scan.geometry.voxel_ml * 1000)
    if initial and initial.description:
        known = PreparationPlan.from_json(
            {key: initial.description.preparation[key] for key in ("spacing", "normalisation")}
        )
        if initial.is_segmentation:
            return known if spacing is None else replace(known, spacing=_three(spacing))
        crop = float(np.prod(initial.description.architecture["arguments"]["image_size"]))
        same_kind = known.normalisation.kind == normalisation.kind
        if spacing is None and same_kind and _suits(known.spacing, cases, finest=finest, body=min(bodies), crop=crop):
            return known
    if spacing is None:
        spacing = preset.spacing
    if spacing is None:
        edge = round(max(finest, (max(bodies) / preset.voxels) ** (1 / 3)), 2)
        spacing = (edge, edge, edge)
    return PreparationPlan(_three(spacing), normalisation)


def _suits(spacing: Sequence[float], cases: Sequence[LabelledCase], *, finest: float, body: float, crop: float) -> bool:
    """May scans be seen at the `spacing` an encoder was pretrained at? Not where they are far coarser themselves (finest,
    mm), where their body (mm3) fills less than a quarter of a crop (voxels), or where a structure would all but vanish."""
    voxel = float(np.prod(spacing))
    smallest = float("inf")
    for case in cases:
        counts = np.bincount(case.labels.array.ravel())[1:]
        smallest = min([smallest, *(float(count) * case.scan.geometry.voxel_ml * 1000 for count in counts[counts > 0])])
    return finest <= 1.5 * voxel ** (1 / 3) and 4 * body > crop * voxel and smallest >= FEW_VOXELS * voxel


def _three(spacing: Sequence[float]) -> tuple[float, float, float]:
    r, a, s = spacing
    return r, a, s


def named_structures(file: Path) -> tuple[Structure, ...]:
    """The structures that a dataset.json or model.json names, with the colours and terminology of a model.json's list of
    {"value", "name", "colour", "terminology"}; raises `InputError`."""
    names = structure_names(file, file)
    told = json.loads(file.read_text(encoding="utf-8"))["labels"]
    records = {int(label["value"]): label for label in told} if isinstance(told, list) else {}
    structures = []
    for value, drawn in zip(sorted(names), label_colours(len(names))):
        record = records.get(value, {})
        colour, terminology = record.get("colour") or drawn, record.get("terminology") or {}
        if len(colour) != 3 or any(part not in range(256) for part in colour) or not isinstance(terminology, dict):
            advice = "A colour is [red, green, blue] from 0 to 255, terminology an object."
            raise InputError("labels_unreadable", f"{file} describes '{names[value]}' in an unknown way.", advice)
        structures.append(Structure(value, names[value], tuple(colour), terminology))
    return tuple(structures)


def collect_structures(cases: Sequence[LabelledCase], known: Sequence[Structure] = ()) -> tuple[Structure, ...]:
    """The structures to learn: every value that any label map holds, named by `known` where it names them."""
    values = sorted({int(value) for case in cases for value in np.unique(case.labels.array)} - {0})
    named = {structure.value: structure for structure in known}
    colours = label_colours(len(values))
    return tuple(
        named.get(value, Structure(value, f"structure {value}", colour)) for value, colour in zip(values, colours)
    )


def prepare_teaching(
    cases: Sequence[LabelledCase], plan: PreparationPlan, structures: Sequence[Structure], *, report: Reporter
) -> list[TeachingScan]:
    """The cases on the network's grid, label values turned into classes 1 to K in the order of `structures`.

    Warns of structures with next to no voxel left at this spacing, outside of the body, or missing from one of the scans;
    raises `InputError` when none is left at all.
    """
    scans = []
    counts = np.zeros(len(structures), dtype=int)
    values = [structure.value for structure in structures]
    for case in cases:
        prepared = prepare(case.scan, plan)
        labels = prepare_labels(case.labels, prepared, values=values)
        drawn = {int(value) for value in np.unique(case.labels.array)}
        if unknown := sorted(drawn - {0, *values}):
            report.warning(
                "labels_unknown",
                f"{case.scan.name} labels {', '.join(map(str, unknown))}, which the model does not know: left out.",
                "To learn new structures, start from the model with --init instead of --improve.",
            )
        if absent := [structure.name for structure in structures if structure.value not in drawn]:
            report.warning(
                "structures_not_drawn",
                f"{case.scan.name} has no {', '.join(absent)}: where it shows them, it teaches that they are background.",
                "Label them there, or leave the scan out.",
            )
        if lost := _outside_the_body(case, structures, plan):
            report.warning(
                "labels_outside_body",
                f"In {case.scan.name} more than a tenth of {', '.join(lost)} lies outside of what was taken for the body.",
                "A part that lies apart, such as an arm, is not learned: crop the scan to it.",
            )
        classes = np.zeros(labels.shape, dtype=np.int16)
        for index, value in enumerate(values):
            found = labels == value
            classes[found] = index + 1
            counts[index] += int(found.sum())
        scans.append(
            TeachingScan(case.scan.name, torch.from_numpy(prepared.array), torch.from_numpy(classes), prepared)
        )
    if not counts.any():
        raise InputError(
            "labels_too_small",
            f"No labelled structure is left at a spacing of {plan.spacing} mm.",
            "Use a finer --spacing.",
        )
    for structure, count in zip(structures, counts):
        if count < FEW_VOXELS:
            report.warning(
                "too_little_to_learn",
                f"'{structure.name}' has only {count} voxels at a spacing of {plan.spacing[0]:g} mm: too little to learn from.",
                "Use a finer --spacing, or expect nothing of this structure.",
            )
    return scans


def _outside_the_body(case: LabelledCase, structures: Sequence[Structure], plan: PreparationPlan) -> list[str]:
    """Names of structures of which more than a tenth lies outside of the box that is learned from."""
    labels = case.labels.array[0]
    if labels.shape != case.scan.shape:
        return []
    box = tuple(slice(*ends) for ends in body_box(case.scan, hounsfield=plan.normalisation.kind == "window"))
    size = max(structure.value for structure in structures) + 1
    whole, kept = (np.bincount(part.ravel(), minlength=size) for part in (labels, labels[box]))
    return [s.name for s in structures if kept[s.value] < 0.9 * whole[s.value]]


def mirroring_of(scans: Sequence[TeachingScan], structures: Sequence[Structure], *, report: Reporter) -> Mirroring:
    """May crops of these scans be mirrored? Told in the log."""
    bodies = [(scan.image[0].numpy(), scan.classes.numpy()) for scan in scans]
    mirroring = decide_mirroring([structure.name for structure in structures], bodies)
    report.say(f"Mirroring from right to left is {mirroring.reason}.")
    report.metric("mirroring", float(mirroring.allowed), reason=mirroring.reason)
    return mirroring


def told_mirroring(mirroring: Mirroring | None, structures: Sequence[Structure]) -> dict[str, Any]:
    """As `model.json` keeps it: "swaps" are pairs of label values."""
    if mirroring is None:
        return {}
    swaps = [[structures[one - 1].value, structures[other - 1].value] for one, other in mirroring.swaps]
    return {"mirroring": {"allowed": mirroring.allowed, "swaps": swaps, "reason": mirroring.reason}}


def architecture_for(preset: Preset, initial: InitialWeights | None, *, classes: int, channels: int) -> dict[str, Any]:
    """The network that learns, as `registry.segmentation_architecture` tells it: that of a segmentation model to start
    from; else the one for the starting weights' encoder; else the preset's. The paper's preset learns with UNETR."""
    if initial and initial.is_segmentation:
        assert initial.description is not None
        known = dict(initial.description.architecture)
        return {**known, "arguments": {**known["arguments"], "classes": classes, "in_channels": channels}}
    try:
        variant = find_variant(initial.variant if initial else preset.variant)
    except ValueError as error:
        raise InputError("weights_unknown", f"The starting weights cannot be used: {error}.") from error
    if preset.paper:
        variant = replace(variant, segmentation="UNETR")
    return segmentation_architecture(variant, classes=classes, in_channels=channels)
