"""From labelled scans on disk to what the fine-tuning loop holds: structures, grid, and the presets for a machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from HiEndMAECore.io.structure import Structure
from HiEndMAECore.preprocessing.laterality import Mirroring, decide_mirroring
from HiEndMAECore.reporting.reporter import Reporter

from .training_cases import TrainingCase


def decide_case_mirroring(
    scans: Sequence[TrainingCase], structures: Sequence[Structure], *, report: Reporter
) -> Mirroring:
    """May crops of these scans be mirrored? Told in the log."""
    bodies = [(scan.image[0].numpy(), scan.classes.numpy()) for scan in scans]
    mirroring = decide_mirroring([structure.name for structure in structures], bodies)
    report.info(f"Mirroring from right to left is {mirroring.reason}.")
    report.metric("mirroring", float(mirroring.allowed), reason=mirroring.reason)
    return mirroring


def mirroring_to_json(mirroring: Mirroring | None, structures: Sequence[Structure]) -> dict[str, Any]:
    """As `model.json` keeps it: "swaps" are pairs of label values."""
    if mirroring is None:
        return {}
    swaps = [[structures[one - 1].value, structures[other - 1].value] for one, other in mirroring.swaps]
    return {"mirroring": {"allowed": mirroring.allowed, "swaps": swaps, "reason": mirroring.reason}}
