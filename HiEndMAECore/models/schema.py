"""Validation of `model.json`: the one place that knows the types, ranges and cross-checks of a model's description.

`model.schema.json` beside this file says the same as a JSON Schema for other programs. Some checks relate several values and
stand here alone, because JSON Schema cannot express them (`_check_relations`). `atlas_schema` checks the entry `atlas`.

Keys that are not known are accepted and kept, so that later versions can add some. Only the standard library is needed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from HiEndMAECore.errors import InputError, UsageError
from HiEndMAECore.io.bounded_json import parse_json_object

from .atlas_schema import check_atlases
from .json_values import MISSING, SchemaError, is_list, is_number, is_whole, require, shown

FORMAT_VERSION = 1  # of models without an atlas
ATLAS_FORMAT_VERSION = 2  # of models with an atlas, and the newest format
KINDS = ("segmentation", "pretraining")
MAX_LABEL = 65535  # label maps are stored with 16 bits
SPACING_MM = (0.001, 100.0)  # the smallest and the largest voxel edge of a network's grid
TERMINOLOGY_CODES = ("category", "type", "typeModifier", "anatomicRegion", "anatomicRegionModifier")
TERMINOLOGY_CONTEXTS = ("contextName", "anatomicContextName")

_ADVICE = "Choose another model, or get this one again from where it came."


def unusable_model(path: Path, reason: str) -> InputError:
    """Return the error for a model that cannot be used; `reason` is a sentence part."""
    return InputError("model_unusable", f"The model {path} cannot be used: {reason}.", _ADVICE)


def parse_model_json(content: bytes, path: Path) -> dict[str, Any]:
    """Parse and validate the content of `model.json`.

    Args:
        content: The file's bytes.
        path: The model, for messages.

    Raises:
        InputError: `model_newer` for a later format, otherwise `model_unusable`, with the key path and the value.
    """
    try:
        data = parse_json_object(content)
    except ValueError as error:
        raise unusable_model(path, f"its model.json {error}") from error
    try:
        _check_format_version(data, path)
        check_description(data)
    except SchemaError as error:
        raise unusable_model(path, str(error)) from error
    return data


def check_description(data: Mapping[str, Any]) -> None:
    """Check a description of format 1 or 2, as it stands in `model.json`, against the schema.

    Raises:
        SchemaError: A value is missing or does not follow the schema.
    """
    require(data.get("kind") in KINDS, "kind", data.get("kind", MISSING), " or ".join(map(repr, KINDS)))
    for key, requirement in (("name", "a text"), ("engine_version", "a text")):
        if key in data or key == "name":
            require(isinstance(data.get(key), str), key, data.get(key, MISSING), requirement)
    _check_architecture(data.get("architecture", MISSING))
    _check_channels(data.get("channels", MISSING))
    check_preparation(data.get("preparation", MISSING))
    _check_labels(data.get("labels", []))
    _check_training(data.get("training", {}))
    _check_sha256(data, "weights_sha256")
    _check_atlas(data)
    _check_relations(data)


def check_label(label: Any, key: str) -> None:
    """Check one structure of `labels`: {"value", "name", "colour", "terminology"}, of which the last two may be absent.

    Args:
        label: The value to check.
        key: Its key path, for the message.

    Raises:
        SchemaError: The label does not follow the schema.
    """
    require(isinstance(label, dict), key, label, "an object")
    value, name = label.get("value", MISSING), label.get("name", MISSING)
    require(_is_label_value(value), f"{key}.value", value, f"a whole number from 1 to {MAX_LABEL}")
    require(isinstance(name, str) and name != "", f"{key}.name", name, "a text that is not empty")
    if "colour" in label:
        color = label["colour"]
        valid = is_list(color, 3) and all(is_whole(part, 0, 255) for part in color)
        require(valid, f"{key}.colour", color, "three whole numbers from 0 to 255")
    if "terminology" in label:
        check_terminology(label["terminology"], f"{key}.terminology")


def check_spacing_option(spacing: Sequence[float] | None) -> None:
    """Check `--spacing` before a run whose model could not be read again.

    Args:
        spacing: Voxel edges in mm, or None.

    Raises:
        UsageError: `spacing_out_of_range`.
    """
    low, high = SPACING_MM
    if spacing is not None and not all(low <= edge <= high for edge in spacing):
        text = " ".join(f"{edge:g}" for edge in spacing)
        message = f"--spacing is {text}; a model's grid has voxel edges from {low:g} to {high:g} mm."
        raise UsageError("spacing_out_of_range", message, "Give millimeters along right, anterior and superior.")


def check_terminology(entry: Any, key: str) -> None:
    """Check a terminology entry of 3D Slicer: its codes are objects or null, its contexts are texts.

    Args:
        entry: The value to check.
        key: Its key path, for the message.

    Raises:
        SchemaError: The entry does not follow the schema.
    """
    require(isinstance(entry, dict), key, entry, "an object")
    for name in TERMINOLOGY_CODES:
        code = entry.get(name)
        require(code is None or isinstance(code, dict), f"{key}.{name}", code, "an object or null")
    for name in TERMINOLOGY_CONTEXTS:
        require(isinstance(entry.get(name, ""), str), f"{key}.{name}", entry.get(name), "a text")


# -- parts of the description --------------------------------------------------------------------------------------------


def _check_format_version(data: Mapping[str, Any], path: Path) -> None:
    version = data.get("format_version", MISSING)
    require(is_whole(version, 1), "format_version", version, "a whole number of 1 or more")
    if version > ATLAS_FORMAT_VERSION:  # type: ignore[operator]
        raise InputError(
            "model_newer",
            f"The model {path} has format {shown(version)}; this HiEndMAE reads formats up to {ATLAS_FORMAT_VERSION}.",
            "Update HiEndMAE, or ask for the model in an older format.",
        )


def _check_architecture(architecture: Any) -> None:
    require(isinstance(architecture, dict), "architecture", architecture, "an object")
    network, variant = architecture.get("network", MISSING), architecture.get("variant", "")
    require(isinstance(network, str) and network != "", "architecture.network", network, "the name of a network")
    require(isinstance(variant, str), "architecture.variant", variant, "a text")
    key = "architecture.arguments"
    arguments = architecture.get("arguments", MISSING)
    require(isinstance(arguments, dict), key, arguments, "an object")
    size = arguments.get("image_size", MISSING)
    valid = (is_list(size, 2) or is_list(size, 3)) and all(is_whole(edge, 1) for edge in size)
    require(valid, f"{key}.image_size", size, "two or three whole numbers of 1 or more (voxels)")
    for name in ("in_channels", "classes"):
        if name in arguments:
            require(is_whole(arguments[name], 1), f"{key}.{name}", arguments[name], "a whole number of 1 or more")


def _check_channels(channels: Any) -> None:
    valid = isinstance(channels, list) and len(channels) > 0 and all(isinstance(name, str) for name in channels)
    require(valid, "channels", channels, "a list of names, one for each channel")


def check_preparation(preparation: Any) -> None:
    """Check how scans were preprocessed: the entry `preparation` of `model.json` and of a store's manifest.

    Args:
        preparation: The entry, as read from JSON.

    Raises:
        SchemaError: A value is missing or wrong; the message names its key.
    """
    require(isinstance(preparation, dict), "preparation", preparation, "an object")
    spacing = preparation.get("spacing", MISSING)
    low, high = SPACING_MM
    valid = is_list(spacing, 3) and all(is_number(edge, low, high) for edge in spacing)
    require(valid, "preparation.spacing", spacing, f"three numbers from {low:g} to {high:g} (mm along R, A, S)")
    orientation = preparation.get("orientation", "RAS")
    require(orientation == "RAS", "preparation.orientation", orientation, "'RAS'")
    key = "preparation.normalisation"
    normalization = preparation.get("normalisation", MISSING)
    require(isinstance(normalization, dict), key, normalization, "an object")
    kind = normalization.get("kind", MISSING)
    require(kind in ("window", "percentiles"), f"{key}.kind", kind, "'window' (HU) or 'percentiles'")
    limits = (0.0, 100.0) if kind == "percentiles" else (-math.inf, math.inf)
    requirement = "a number from 0 to 100 (percent)" if kind == "percentiles" else "a number (HU)"
    for name in ("low", "high"):
        value = normalization.get(name, MISSING)
        require(is_number(value, *limits), f"{key}.{name}", value, requirement)
    # A key that is not known could change what the limits mean.
    unknown = sorted(set(normalization) - {"kind", "low", "high"})
    require(not unknown, key, normalization, "an object of 'kind', 'low' and 'high' alone")


def _check_labels(labels: Any) -> None:
    require(isinstance(labels, list), "labels", labels, "a list")
    for index, label in enumerate(labels):
        check_label(label, f"labels[{index}]")


def _check_training(training: Any) -> None:
    require(isinstance(training, dict), "training", training, "an object")
    for name in ("steps", "cases"):
        if name in training:
            require(is_whole(training[name], 0), f"training.{name}", training[name], "a whole number of 0 or more")
    if "seconds" in training:
        require(is_number(training["seconds"], 0), "training.seconds", training["seconds"], "a number of 0 or more")
    if "mirroring" in training:
        _check_mirroring(training["mirroring"])
    fingerprints = training.get("teaching", [])
    require(isinstance(fingerprints, list), "training.teaching", fingerprints, "a list")
    for index, fingerprint in enumerate(fingerprints):
        _check_fingerprint(fingerprint, f"training.teaching[{index}]")
    if "self_check" in training:
        _check_performance_estimate(training["self_check"])
    for name, is_valid, requirement in (
        ("ignored_voxels", lambda value: is_number(value, 0, 1), "a list of numbers from 0 to 1, one for each case"),
        ("unknown_structures", _is_value_list, "a list of lists of label values, one for each case"),
    ):
        value = training.get(name, [])
        require(isinstance(value, list) and all(map(is_valid, value)), f"training.{name}", value, requirement)


def _check_mirroring(mirroring: Any) -> None:
    key = "training.mirroring"
    require(isinstance(mirroring, dict), key, mirroring, "an object")
    allowed, swaps = mirroring.get("allowed", MISSING), mirroring.get("swaps", [])
    require(isinstance(allowed, bool), f"{key}.allowed", allowed, "true or false")
    require(isinstance(mirroring.get("reason", ""), str), f"{key}.reason", mirroring.get("reason"), "a text")
    require(isinstance(swaps, list), f"{key}.swaps", swaps, "a list of pairs of label values")
    for index, pair in enumerate(swaps):
        valid = is_list(pair, 2) and all(_is_label_value(value) for value in pair) and pair[0] != pair[1]
        require(valid, f"{key}.swaps[{index}]", pair, "two different label values")


def _check_fingerprint(fingerprint: Any, key: str) -> None:
    require(isinstance(fingerprint, dict), key, fingerprint, "an object")
    for name in ("spacing_mm", "extent_mm"):
        lengths = fingerprint.get(name, MISSING)
        valid = is_list(lengths, 3) and all(is_number(length, 0) for length in lengths)
        require(valid, f"{key}.{name}", lengths, "three numbers of 0 or more (mm along R, A, S)")
    intensities = fingerprint.get("intensities", MISSING)
    valid = isinstance(intensities, list) and len(intensities) > 0
    require(valid, f"{key}.intensities", intensities, "a list with an entry for each channel")
    for index, percentiles in enumerate(intensities):
        valid = is_list(percentiles, 3) and all(is_number(value) for value in percentiles)
        require(valid, f"{key}.intensities[{index}]", percentiles, "three numbers (5th, 50th and 95th percentile)")


def _check_performance_estimate(estimate: Any) -> None:
    key = "training.self_check"
    require(isinstance(estimate, dict), key, estimate, "an object")
    for name in ("mean", "error"):
        _check_dice(estimate.get(name), f"{key}.{name}")
    structures = estimate.get("structures", [])
    require(isinstance(structures, list), f"{key}.structures", structures, "a list")
    for index, structure in enumerate(structures):
        item = f"{key}.structures[{index}]"
        require(isinstance(structure, dict), item, structure, "an object")
        name = structure.get("name", MISSING)
        require(isinstance(name, str), f"{item}.name", name, "a text")
        for score in ("expected", "deformed"):
            _check_dice(structure.get(score), f"{item}.{score}")


def _check_sha256(data: Mapping[str, Any], key: str) -> None:
    sha256 = data.get(key, MISSING)
    is_sha256 = isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256) is not None
    require(is_sha256, key, sha256, "64 hexadecimal digits")


def _check_atlas(data: Mapping[str, Any]) -> None:
    if "atlas" not in data:
        require("atlas_sha256" not in data, "atlas", MISSING, "given where there is 'atlas_sha256'")
        return
    require(data["kind"] == "segmentation", "atlas", data["atlas"], "absent from a model for pretraining")
    check_atlases(data["atlas"], "atlas")
    _check_sha256(data, "atlas_sha256")
    version = data.get("format_version", MISSING)
    newest = ATLAS_FORMAT_VERSION
    require(version == newest, "format_version", version, f"{newest} where there is an atlas")


def _check_dice(value: Any, key: str) -> None:
    require(value is None or is_number(value, 0, 1), key, value, "a number from 0 to 1, or null")


def _check_relations(data: Mapping[str, Any]) -> None:
    """Check what relates several values. JSON Schema cannot express these, see the module's docstring."""
    arguments, channels, labels = data["architecture"]["arguments"], data["channels"], data.get("labels", [])
    require(
        arguments.get("in_channels", len(channels)) == len(channels),
        "channels", channels, f"as many names as architecture.arguments.in_channels, {shown(arguments.get('in_channels'))}",
    )  # fmt: skip
    normalization = data["preparation"]["normalisation"]
    low, high = normalization["low"], normalization["high"]
    require(low < high, "preparation.normalisation.high", high, f"larger than 'low', {shown(low)}")
    values = [label["value"] for label in labels]
    for index, value in enumerate(values):
        require(value not in values[:index], f"labels[{index}].value", value, "a value that no other label has")
    if data["kind"] == "segmentation":
        require(len(labels) > 0, "labels", labels, "a list of one structure or more")
        classes = arguments.get("classes", MISSING)
        requirement = f"{len(labels) + 1}, one more than there are labels"
        require(classes == len(labels) + 1, "architecture.arguments.classes", classes, requirement)
    swapped: list[int] = []
    for index, pair in enumerate(data.get("training", {}).get("mirroring", {}).get("swaps", [])):
        valid = all(value in values and value not in swapped for value in pair)
        require(valid, f"training.mirroring.swaps[{index}]", pair, "two values of labels that are in no other pair")
        swapped += pair


def _is_label_value(value: Any) -> bool:
    return is_whole(value, 1, MAX_LABEL)


def _is_value_list(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_label_value, value))
