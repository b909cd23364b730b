"""Label tables: the values, names, colors and terminology of structures, and the ignore label.

They come from a dataset.json (nnU-Net or Decathlon), from a model.json, or from a file of names in one of their forms:

    {"labels": {"background": 0, "liver": 1, "tumor": [2, 3], "ignore": 4}}                     nnU-Net; a list is a region
    {"labels": {"0": "background", "1": "liver"}}                                               Decathlon
    {"labels": [{"value": 1, "name": "liver", "colour": [221, 130, 80], "terminology": {}}]}    model.json
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from HiEndMAECore.errors import InputError
from HiEndMAECore.io.bounded_json import parse_json_object
from HiEndMAECore.io.structure import DEFAULT_COLOR, Structure
from HiEndMAECore.models.description import ModelDescription
from HiEndMAECore.models.schema import check_terminology, parse_model_json

IGNORE = "ignore"  # nnU-Net's name for voxels that were not judged
_ADVICE = "Give a dataset.json or model.json with 'labels'."


@dataclass(frozen=True)
class LabelTable:
    """What the values of a label map mean.

    Attributes:
        structures: The structures by value, without the background.
        ignore: Value of voxels that were not judged, if there is one; it is none of the structures.
    """

    structures: tuple[Structure, ...] = ()
    ignore: int | None = None

    @property
    def names(self) -> dict[int, str]:
        """The name of each value."""
        return {structure.value: structure.name for structure in self.structures}


def parse_labels(labels: Any, *, skip_regions: bool = False) -> LabelTable:
    """Parse the value of `labels` in any form of this module's docstring.

    Args:
        labels: Parsed JSON.
        skip_regions: True leaves out regions of several values (nnU-Net); False refuses them.

    Returns:
        The table, sorted by value. Structures without a color get one of `label_colors`.

    Raises:
        ValueError: The labels are ill-formed; the message is a sentence part that names the label.
    """
    values: dict[int, str] = {}
    records: dict[int, Mapping[str, Any]] = {}
    for name, value, record in _entries(labels):
        if isinstance(value, list) and skip_regions:
            continue
        number = _parse_value(value, name)
        if number == 0:  # the background
            continue
        if number in values:
            raise ValueError(f"'labels' has the value {number} twice, for '{values[number]}' and '{name}'")
        if not name:
            raise ValueError(f"the label of value {number} has no name")
        values[number], records[number] = name, record
    ignore = next((value for value, name in values.items() if name == IGNORE), None)
    structures = sorted(value for value in values if value != ignore)
    colors = label_colors(len(structures))
    return LabelTable(
        tuple(
            _parse_structure(value, values[value], records[value], color) for value, color in zip(structures, colors)
        ),
        ignore,
    )


def read_label_table(file: Path) -> LabelTable:
    """Read the label table of a dataset.json, a model.json, or a file of names; regions of several values are left out.

    Raises:
        InputError: `labels_unreadable`; for a whole model.json also `model_unusable` and `model_newer`.
    """
    try:
        content = file.read_bytes()
        data = parse_json_object(content)
        if "weights_sha256" in data:  # a whole model.json, not only a list in its form
            parse_model_json(content, file)
        if "labels" not in data:
            raise ValueError("has no 'labels'")
        return parse_labels(data["labels"], skip_regions=True)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError("labels_unreadable", f"{file} names no structures: {reason}.", _ADVICE) from error


def find_label_table(labels: Path | None, reference: Path) -> LabelTable:
    """Return the label table for an evaluation.

    Args:
        labels: File with the label table; None: the dataset.json beside the reference or one folder above.
        reference: Label map, or folder of label maps.

    Returns:
        The table; empty without a file.

    Raises:
        InputError: As of `read_label_table`.
    """
    folder = reference if reference.is_dir() else reference.parent
    above = (file for file in (folder / "dataset.json", folder.parent / "dataset.json") if file.is_file())
    file = labels or next(above, None)
    return read_label_table(file) if file else LabelTable()


def model_structures(description: ModelDescription) -> tuple[Structure, ...]:
    """Return the structures of a model in the order of its classes."""
    return tuple(
        Structure(
            label["value"],
            label["name"],
            tuple(label.get("colour", DEFAULT_COLOR)),
            dict(label.get("terminology", {})),
        )
        for label in description.labels
    )


def _entries(labels: Any) -> Iterable[tuple[str, Any, Mapping[str, Any]]]:
    """Yield (name, value, record) of each label; the record is empty in the forms that have names and values alone."""
    if isinstance(labels, list):
        for index, record in enumerate(labels):
            if not isinstance(record, dict) or not {"name", "value"} <= set(record):
                raise ValueError(f"labels[{index}] is not an object with 'name' and 'value'")
            yield str(record["name"]), record["value"], record
    elif not isinstance(labels, dict):
        raise ValueError("'labels' is neither an object of names and values nor a list")
    elif all(key.isdecimal() for key in labels):
        yield from ((str(name), key, {}) for key, name in labels.items())
    else:
        yield from ((name, value, {}) for name, value in labels.items())


def _parse_value(value: Any, name: str) -> int:
    """Return a label value: a whole number of 0 or more, perhaps as text."""
    if isinstance(value, list):
        raise ValueError(f"label '{name}' is a region of several values, which is not supported")
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != value // 1:
        raise ValueError(f"label '{name}' has the value {value!r}, not a whole number of 0 or more")
    return int(value)


def _parse_structure(value: int, name: str, record: Mapping[str, Any], color: tuple[int, int, int]) -> Structure:
    """Return a structure with the color and terminology of its record; without a color of its own it gets `color`."""
    own, terminology = record.get("colour") or color, record.get("terminology") or {}
    if not isinstance(own, list | tuple) or len(own) != 3 or any(part not in range(256) for part in own):
        raise ValueError(f"the colour of '{name}' is {own!r}, not [red, green, blue] from 0 to 255")
    check_terminology(terminology, f"terminology of '{name}'")
    red, green, blue = (int(part) for part in own)
    return Structure(value, name, (red, green, blue), terminology)


_PALETTE = (
    *((230, 75, 60), (70, 150, 220), (245, 200, 60), (95, 190, 90), (165, 100, 210), (245, 140, 50), (60, 200, 195)),
    *((235, 120, 180), (160, 200, 70), (150, 105, 70), (110, 120, 235), (250, 175, 150), (40, 130, 110)),
    *((190, 170, 230), (200, 60, 120), (150, 160, 170)),
)  # distinct on gray scans, neighbors far apart in hue


def label_colors(n: int) -> list[tuple[int, int, int]]:
    """Return `n` distinct colors (red, green, blue, 0 to 255). The first ones do not depend on `n`."""
    colors = list(_PALETTE[:n])
    for index in range(len(colors), n):
        hue = (index * 0.618034) % 1.0  # golden ratio: each new hue falls into the largest gap
        saturation, value = (0.55, 0.95) if index % 2 else (0.85, 0.75)
        red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))
        colors.append((red, green, blue))
    return colors
