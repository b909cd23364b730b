"""Mirroring of the training cases: whether their crops may be mirrored, and how `model.json` stores the decision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from HiEndMAECore.io.structure import Structure
from HiEndMAECore.preprocessing.laterality import Mirroring, decide_mirroring
from HiEndMAECore.reporting.reporter import Reporter

from .training_cases import TrainingCase


def decide_case_mirroring(
    cases: Sequence[TrainingCase], structures: Sequence[Structure], *, report: Reporter
) -> Mirroring:
    """Decide whether crops of the training cases may be mirrored, and report the decision.

    Args:
        cases: Training cases on the CPU.
        structures: Structures of the model; class i + 1 is `structures[i]`.
        report: Receives the metric `mirroring` and a message.
    """
    arrays = [(case.image[0].numpy(), case.classes.numpy()) for case in cases]
    mirroring = decide_mirroring([structure.name for structure in structures], arrays)
    report.info(f"Mirroring from right to left is {mirroring.reason}.")
    report.metric("mirroring", float(mirroring.allowed), reason=mirroring.reason)
    return mirroring


def mirroring_to_json(mirroring: Mirroring | None, structures: Sequence[Structure]) -> dict[str, Any]:
    """Return the entry of `model.json`, in which "swaps" are pairs of label values; empty without a decision."""
    if mirroring is None:
        return {}
    swaps = [[structures[one - 1].value, structures[other - 1].value] for one, other in mirroring.swaps]
    return {"mirroring": {"allowed": mirroring.allowed, "swaps": swaps, "reason": mirroring.reason}}
