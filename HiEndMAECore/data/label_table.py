"""A trained model, ready to segment scans.

Usage:

    predictor = Predictor.load(Path("my-model"), device=choose_device())
    result = predictor.segment(read_volume(Path("scan.nii.gz")))
    write_labels(Path("labels.nii.gz"), result.labels, volume.geometry, structures=predictor.structures)
"""

from __future__ import annotations

import colorsys
import json
from pathlib import Path

from HiEndMAECore.errors import InputError
from HiEndMAECore.io.structure import Structure
from HiEndMAECore.models.description import ModelDescription


def model_structures(description: ModelDescription) -> tuple[Structure, ...]:
    """The structures that a model knows, in the order of its classes."""
    return tuple(
        Structure(
            label["value"],
            label["name"],
            tuple(label.get("colour", (128, 174, 128))),  # type: ignore[arg-type]
            dict(label.get("terminology", {})),
        )
        for label in description.labels
    )


def structure_names(labels: Path | None, reference: Path) -> dict[int, str]:
    """{value: name} out of `labels` (dataset.json or model.json), else of the dataset.json beside or above `reference`.

    Understands name -> value, value -> name, and a list of {"name", "value"}; the background (0), regions of several
    values and nnU-Net's `ignore` are no structures. Raises `InputError` `labels_unreadable`.
    """
    folder = reference if reference.is_dir() else reference.parent
    above = (file for file in (folder / "dataset.json", folder.parent / "dataset.json") if file.is_file())
    file = labels or next(above, None)
    if file is None:
        return {}
    try:
        message = json.loads(file.read_text(encoding="utf-8"))["labels"]
        if isinstance(message, list):
            named = {int(label["value"]): str(label["name"]) for label in message}
        elif all(str(key).isdecimal() for key in message):
            named = {int(key): str(name) for key, name in message.items()}
        else:
            named = {int(value): str(name) for name, value in message.items() if not isinstance(value, list)}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        advice = "Give a dataset.json or model.json with 'labels'."
        raise InputError("labels_unreadable", f"{file} names no structures.", advice) from error
    return {value: name for value, name in named.items() if value > 0 and name != "ignore"}


def read_structures(file: Path) -> tuple[Structure, ...]:
    """The structures that a dataset.json or model.json names, with the colours and terminology of a model.json's list of
    {"value", "name", "colour", "terminology"}; raises `InputError`."""
    names = structure_names(file, file)
    message = json.loads(file.read_text(encoding="utf-8"))["labels"]
    records = {int(label["value"]): label for label in message} if isinstance(message, list) else {}
    structures = []
    for value, drawn in zip(sorted(names), label_colors(len(names))):
        record = records.get(value, {})
        color, terminology = record.get("colour") or drawn, record.get("terminology") or {}
        if len(color) != 3 or any(part not in range(256) for part in color) or not isinstance(terminology, dict):
            advice = "A colour is [red, green, blue] from 0 to 255, terminology an object."
            raise InputError("labels_unreadable", f"{file} describes '{names[value]}' in an unknown way.", advice)
        structures.append(Structure(value, names[value], tuple(color), terminology))
    return tuple(structures)


_PALETTE = (
    *((230, 75, 60), (70, 150, 220), (245, 200, 60), (95, 190, 90), (165, 100, 210), (245, 140, 50), (60, 200, 195)),
    *((235, 120, 180), (160, 200, 70), (150, 105, 70), (110, 120, 235), (250, 175, 150), (40, 130, 110)),
    *((190, 170, 230), (200, 60, 120), (150, 160, 170)),
)  # told apart on grey scans, neighbours far apart in hue


def label_colors(n: int) -> list[tuple[int, int, int]]:
    """`n` colours (red, green, blue, 0 to 255) that can be told apart; the first ones never change with `n`."""
    colors = list(_PALETTE[:n])
    for index in range(len(colors), n):
        hue = (index * 0.618034) % 1.0  # golden ratio: each new hue falls into the largest gap
        saturation, value = (0.55, 0.95) if index % 2 else (0.85, 0.75)
        red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))
        colors.append((red, green, blue))
    return colors
