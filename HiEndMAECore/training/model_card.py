"""What `model.json` tells of a model that has learned from labelled scans."""

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
    scans: Sequence[TrainingCase],
    result: FinetuningResult,
    checked: PerformanceEstimate,
    origin: Mapping[str, Any],
    seed: int,
    device: torch.device,
) -> ModelDescription:
    """The description of `result.network`. origin: of its starting weights, and what else is to be told of its training."""
    return ModelDescription(
        kind="segmentation",
        name=name,
        architecture=architecture,
        channels=[f"channel {index}" for index in range(len(scans[0].image))],
        preparation={**plan.to_json(), "orientation": "RAS"},
        labels=[
            {"value": s.value, "name": s.name, "colour": list(s.color), "terminology": s.terminology}
            for s in structures
        ],
        training={
            **origin,
            "cases": len(scans),
            "teaching": [
                scan_fingerprint(scan.grid.original, scan.image.numpy(), plan.spacing) for scan in scans if scan.grid
            ],
            "steps": result.steps,
            "steps_planned": result.planned,
            "seconds": round(result.seconds, 1),
            "seed": seed,
            "device": str(device),
            "versions": versions(),
            "losses": result.curve(),
            "self_check": checked.to_json(),
        },
    )
