"""Describe a model in rich text and sentences."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from slicer.i18n import tr as _

from HiEndMAECore.io.structure import DEFAULT_COLOR
from HiEndMAESegmentationLib.engine.model_library import Model


def model_card(model: Model) -> str:
    """Return what a user should know before using the model, as rich text."""
    description = model.description
    training, preparation = description.training, description.preparation
    structures = []
    for label in description.labels:
        red, green, blue = label.get("colour", DEFAULT_COLOR)
        name = html.escape(label["name"])
        structures.append(f'<span style="color: rgb({red},{green},{blue})">■</span>&nbsp;{name}')
    network = description.architecture.get("variant") or description.architecture.get("network")
    rows = [
        (_("Structures"), "&ensp; ".join(structures)),
        (_("Trained on"), html.escape(_training_text(training))),
        (_("Working grid"), html.escape(" × ".join(f"{edge:g}" for edge in preparation["spacing"]) + " mm")),
        (_("Intensities"), html.escape(_intensities_text(preparation["normalisation"]))),
        (_("Network"), html.escape(str(network))),
    ]
    if description.atlas:
        rows.append((_("Atlas"), html.escape(_atlas_text(len(description.atlas)))))
    expected = expected_dice_text(training)
    if expected:
        rows.insert(2, (_("Performance estimate"), html.escape(expected)))
    lines = "".join(f'<tr><td style="color: gray; padding-right: 12px">{k}</td><td>{v}</td></tr>' for k, v in rows)
    return f"<table>{lines}</table>"


def _training_text(training: Mapping[str, Any]) -> str:
    """Return number of scans, steps and time of the training."""
    cases, steps = training.get("cases", 0), training.get("steps", 0)
    scans = _("1 scan") if cases == 1 else _("{cases} scans").format(cases=cases)
    text = _("{scans}, {steps} steps").format(scans=scans, steps=steps)
    seconds = training.get("seconds")
    return f"{text}, {seconds:.0f} s" if isinstance(seconds, int | float) else text


def _atlas_text(count: int) -> str:
    """Return of how many scans the model keeps an atlas, and what is in it."""
    scans = _("the labelled scan") if count == 1 else _("{count} labelled scans").format(count=count)
    return _("label map, edges and tissue classes of {scans}, no intensities").format(scans=scans)


def _intensities_text(normalization: Mapping[str, Any]) -> str:
    """Return the intensity normalization in words."""
    low, high = normalization.get("low"), normalization.get("high")
    if normalization.get("kind") == "window":
        return _("CT, {low:g} to {high:g} HU").format(low=low, high=high)
    return _("MRI, percentiles {low:g} to {high:g}").format(low=low, high=high)


def expected_dice_text(training: Mapping[str, Any]) -> str:
    """Return the performance estimate of a training record in words, or "" if there is none.

    It gives the Dice to expect on other scans: the mean, its error and that of each structure.
    """
    estimate = training.get("self_check")
    if not isinstance(estimate, dict) or not isinstance(estimate.get("mean"), int | float):
        return ""
    text = _("expect a Dice of about {dice:.2f} on other scans").format(dice=estimate["mean"])
    if isinstance(estimate.get("error"), int | float):
        text += " " + _("(± {error:.2f} for a structure, as measured on head-and-neck CT)").format(
            error=estimate["error"]
        )
    else:
        text += " " + _("(an estimate that was not tested on patients)")
    structures = estimate.get("structures")
    parts = [
        f"{structure['name']} {structure['expected']:.2f}"
        for structure in (structures if isinstance(structures, list) else ())
        if isinstance(structure, dict) and isinstance(structure.get("expected"), int | float) and "name" in structure
    ]
    return f"{text}: {', '.join(parts)}" if parts else text
