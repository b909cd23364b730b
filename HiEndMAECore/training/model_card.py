"""Model card: the description of a trained model, which `model.json` stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from HiEndMAECore.data.fingerprint import scan_fingerprint
from HiEndMAECore.io.structure import Structure
from HiEndMAECore.models.description import ModelDescription
from HiEndMAECore.preprocessing.pipeline import PreprocessingPlan
from HiEndMAECore.reporting.run_record import versions

from .finetuning import FinetuningResult
from .performance_estimate import PerformanceEstimate
from .training_cases import TrainingCase


def describe_model(
    name: str,
    *,
    architecture: Mapping[str, Any],
    plan: PreprocessingPlan,
    structures: Sequence[Structure],
    cases: Sequence[TrainingCase],
    result: FinetuningResult,
    estimate: PerformanceEstimate,
    origin: Mapping[str, Any],
    seed: int,
    device: torch.device,
) -> ModelDescription:
    """Describe a trained segmentation model. The keys of `training` are stored names.

    Of the labelled scans the description holds fingerprints alone. What else a model may keep of them is a coarse atlas (label
    map, edges and tissue classes, no intensities), which `models.folder.write_model` adds and `--no-atlas` leaves out.

    Args:
        name: Name of the model.
        architecture: Network, variant and arguments.
        plan: Spacing and intensities of the network's grid.
        structures: Structures of the model.
        cases: Training cases on the CPU, of which fingerprints are stored, but no intensities.
        result: Result of the training.
        estimate: Expected Dice of the model.
        origin: Further entries of `training`: the initial weights, the preset, and mirroring.
        seed: Seed of the run.
        device: Device that the model was trained on.
    """
    return ModelDescription(
        kind="segmentation",
        name=name,
        architecture=architecture,
        channels=[f"channel {index}" for index in range(len(cases[0].image))],
        preparation={**plan.to_json(), "orientation": "RAS"},
        labels=[
            {"value": s.value, "name": s.name, "colour": list(s.color), "terminology": s.terminology}
            for s in structures
        ],
        training={
            **origin,
            "cases": len(cases),
            "teaching": [
                scan_fingerprint(case.grid.original, case.image.numpy(), plan.spacing) for case in cases if case.grid
            ],
            "steps": result.steps,
            "steps_planned": result.planned,
            "seconds": round(result.seconds, 1),
            "seed": seed,
            "device": str(device),
            "versions": versions(),
            "losses": result.curve(),
            "self_check": estimate.to_json(),
            **describe_partial_labels(cases, structures),
        },
    )


def describe_partial_labels(cases: Sequence[TrainingCase], structures: Sequence[Structure]) -> dict[str, Any]:
    """Return the entries of `training` about cases that are labelled in part; empty where there are none.

    `ignored_voxels` is the share of ignored voxels of each case, and `unknown_structures` are the label values of the
    structures that each case does not label although another one does.
    """
    ignored = [round(case.ignored_share, 4) for case in cases]
    unknown = [[structures[index - 1].value for index in case.unknown] for case in cases]
    return {
        **({"ignored_voxels": ignored} if any(ignored) else {}),
        **({"unknown_structures": unknown} if any(unknown) else {}),
    }
