"""A description is checked value by value, and `model.schema.json` says the same as `models/schema.py`."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from HiEndMAECore.errors import InputError, UsageError
from HiEndMAECore.finetune import FinetuneConfig
from HiEndMAECore.io import bounded_json
from HiEndMAECore.models import catalogue, schema
from HiEndMAECore.prepare import PrepareConfig

MODEL = Path("somewhere") / "model"
SHA256 = "0123456789abcdef" * 4
REMOVED = object()
CODE = {"CodingSchemeDesignator": "SCT", "CodeValue": "10200004", "CodeMeaning": "Liver"}
FINGERPRINT = {"spacing_mm": [0.7, 0.7, 5], "extent_mm": [350.0, 280.5, 410], "intensities": [[0.0, 0.4, 0.71]]}
MINIMAL: dict[str, Any] = {
    "kind": "segmentation",
    "name": "",
    "architecture": {"network": "UNETR", "arguments": {"image_size": [8, 8, 8], "classes": 3}},
    "channels": ["CT"],
    "preparation": {"spacing": [1.5, 1.5, 3], "normalisation": {"kind": "window", "low": -175, "high": 250.0}},
    "labels": [{"value": 1, "name": "liver"}, {"value": 65535, "name": "spleen"}],
    "weights_sha256": SHA256,
    "format_version": 1,
}
WHOLE: dict[str, Any] = {
    **MINIMAL,
    "name": "Léber – test",
    "architecture": {
        "network": "UNETR", "variant": "",
        "arguments": {"image_size": [8, 8, 8], "in_channels": 1, "classes": 3, "patch_size": 4},
    },
    "preparation": {**MINIMAL["preparation"], "orientation": "RAS"},
    "labels": [
        {"value": 3, "name": "left kidney", "colour": [0, 128, 255], "terminology": {}},
        {"value": 7, "name": "right kidney", "colour": [1, 2, 3],
         "terminology": {"category": CODE, "type": CODE, "typeModifier": None}},
    ],
    "training": {
        "init": "none", "cases": 1, "steps": 4000, "seconds": 34.8, "losses": [[20, 2.07]],
        "mirroring": {"allowed": True, "swaps": [[3, 7]], "reason": "on"},
        "teaching": [FINGERPRINT],
        "self_check": {
            "calibrated": True, "error": 0.06, "copies": 4, "mean": 0.53,
            "structures": [{"value": 3, "name": "left kidney", "expected": None, "deformed": 1, "voxels": 9, "note": "x"}],
        },
        "ignored_voxels": [0.75], "unknown_structures": [[7]],
    },
    "engine_version": "0.1.0",
}  # fmt: skip
GRID = {"shape": [3, 4, 5], "affine": [[4.0, 0, 0, -10.5], [0, 4, 0, 0], [0, 0, 4, 1e5], [0, 0, 0, 1]]}
ATLAS: dict[str, Any] = {
    **WHOLE,
    "atlas": [{"modality": "ct", "features": GRID, "labels": copy.deepcopy(GRID)}],
    "atlas_sha256": SHA256,
    "format_version": 2,
}
PRETRAINING: dict[str, Any] = {
    **WHOLE,
    "kind": "pretraining",
    "architecture": {
        "network": "HiEndMAE",
        "variant": "x",
        "arguments": {"image_size": [48, 48, 48], "in_channels": 2},
    },
    "channels": ["channel 0", "channel 1"],
    "labels": [],
    "training": {"init": "none", "loss": None, "steps": 0},
}

VALID: dict[str, tuple[dict[str, Any], str, Any]] = {
    "minimal": (MINIMAL, "", None),
    "whole": (WHOLE, "", None),
    "pretraining": (PRETRAINING, "", None),
    "unknown keys": (WHOLE, "labels[0].note", {"deep": [1, None]}),
    "unknown key of the model": (WHOLE, "quality", [1]),
    "percentiles": (WHOLE, "preparation.normalisation", {"kind": "percentiles", "low": 0, "high": 100}),
    "no labels of pretraining": (PRETRAINING, "labels", REMOVED),
    "finest grid": (WHOLE, "preparation.spacing", [0.001, 0.001, 100]),
    "two dimensions": (WHOLE, "architecture.arguments.image_size", [64, 64]),
    "no mirroring": (WHOLE, "training.mirroring", {"allowed": False}),
    "atlas": (ATLAS, "", None),
    "two atlases": (ATLAS, "atlas[1]", {"modality": "mri", "features": GRID, "labels": GRID, "later": 1}),
    "format 2 without an atlas": (WHOLE, "format_version", 2),
    "no estimate": (WHOLE, "training.self_check", {"mean": None, "error": None, "structures": []}),
}

# (key path that is changed, value), and the key path of the message where it is another one
INVALID: list[tuple[str, Any] | tuple[str, Any, str]] = [
    ("kind", REMOVED), ("kind", "soup"), ("kind", None), ("kind", ["segmentation"]),
    ("name", REMOVED), ("name", 5), ("name", None),
    ("architecture", REMOVED), ("architecture", None), ("architecture", {}, "architecture.network"),
    ("architecture.network", REMOVED), ("architecture.network", ""), ("architecture.network", 3),
    ("architecture.variant", None),
    ("architecture.arguments", REMOVED), ("architecture.arguments", [8]),
    ("architecture.arguments.image_size", REMOVED), ("architecture.arguments.image_size", 8),
    ("architecture.arguments.image_size", [8]), ("architecture.arguments.image_size", [8, 8, 0]),
    ("architecture.arguments.image_size", [8, 8, 8.5]), ("architecture.arguments.in_channels", "1"),
    ("architecture.arguments.classes", True), ("architecture.arguments.classes", REMOVED),
    ("channels", REMOVED), ("channels", []), ("channels", "CT"), ("channels", [1]),
    ("preparation", REMOVED), ("preparation", [1.5]),
    ("preparation.spacing", None), ("preparation.spacing", [1.5, 1.5]), ("preparation.spacing", [1, 1, 0]),
    ("preparation.spacing", [1, 1, -1]), ("preparation.spacing", [1, 1, 101]), ("preparation.spacing", [1, 1, "1"]),
    ("preparation.spacing", [1, True, 1]), ("preparation.spacing", [1, 1, math.nan]), ("preparation.spacing", [1, 1, 10**400]),
    ("preparation.normalisation", REMOVED), ("preparation.normalisation", "window"),
    ("preparation.normalisation", {}, "preparation.normalisation.kind"),
    ("preparation.normalisation.kind", "z-score"), ("preparation.normalisation.low", REMOVED),
    ("preparation.normalisation.low", "dark"), ("preparation.normalisation.high", math.nan),
    ("preparation.normalisation.high", math.inf), ("preparation.normalisation.gamma", 2, "preparation.normalisation"),
    ("preparation.normalisation", {"kind": "percentiles", "low": 1, "high": 101}, "preparation.normalisation.high"),
    ("preparation.normalisation", {"kind": "percentiles", "low": -1, "high": 99}, "preparation.normalisation.low"),
    ("preparation.orientation", "LPS"), ("preparation.orientation", None),
    ("labels", None), ("labels", []), ("labels", {"liver": 1}), ("labels[1]", "liver"),
    ("labels[0].value", REMOVED), ("labels[0].value", 0), ("labels[0].value", -3), ("labels[0].value", 65536),
    ("labels[0].value", True), ("labels[0].value", 1.5), ("labels[0].value", 3.0), ("labels[0].value", "3"),
    ("labels[0].name", REMOVED), ("labels[0].name", ""), ("labels[0].name", 7),
    ("labels[1].colour", "red"), ("labels[1].colour", [1, 2]), ("labels[1].colour", [1, 2, 256]),
    ("labels[1].colour", [1, 2, -1]), ("labels[1].colour", [0.5, 0.5, 0.5]), ("labels[1].colour", None),
    ("labels[1].terminology", ["SCT"]), ("labels[1].terminology", None), ("labels[1].terminology.type", "Liver"),
    ("labels[1].terminology.contextName", None),
    ("training", None), ("training", [1]), ("training.steps", -1), ("training.cases", "1"), ("training.seconds", "long"),
    ("training.mirroring", None), ("training.mirroring", {"swaps": []}, "training.mirroring.allowed"),
    ("training.mirroring.allowed", 1), ("training.mirroring.swaps", {"3": 7}), ("training.mirroring.reason", 3),
    ("training.mirroring.swaps[0]", [3]), ("training.mirroring.swaps[0]", [3, 3]), ("training.mirroring.swaps[0]", ["3", "7"]),
    ("training.teaching", FINGERPRINT), ("training.teaching[0]", "scan"), ("training.teaching[0].spacing_mm", REMOVED),
    ("training.teaching[0].spacing_mm", [1, 1, -1]), ("training.teaching[0].extent_mm", [1, 1]),
    ("training.teaching[0].intensities", []), ("training.teaching[0].intensities[0]", [0.1, 0.2]),
    ("training.teaching[0].intensities[0]", [0.1, 0.2, None]),
    ("training.self_check", 0.5), ("training.self_check.mean", "good"), ("training.self_check.mean", 1.5),
    ("training.self_check.error", math.nan), ("training.self_check.structures", {}),
    ("training.self_check.structures[0]", 0.5), ("training.self_check.structures[0].name", REMOVED),
    ("training.self_check.structures[0].expected", -0.1),
    ("weights_sha256", REMOVED), ("weights_sha256", ""), ("weights_sha256", SHA256.upper()), ("weights_sha256", SHA256 + "\n"),
    ("weights_sha256", SHA256[1:]), ("format_version", REMOVED), ("format_version", "1"), ("format_version", True),
    ("format_version", 0), ("format_version", -3), ("format_version", 1.0), ("engine_version", None),
]  # fmt: skip

INVALID_ATLAS: list[tuple[str, Any] | tuple[str, Any, str]] = [
    ("atlas", []), ("atlas", {}), ("atlas", None), ("atlas[0]", "scan"), ("atlas", REMOVED), ("atlas_sha256", REMOVED),
    ("atlas_sha256", ""), ("format_version", 1), ("atlas[0].modality", "pet"), ("atlas[0].modality", REMOVED),
    ("atlas[0].features", REMOVED), ("atlas[0].labels", [3, 4, 5]), ("atlas[0].features.shape", REMOVED),
    ("atlas[0].features.shape", [3, 4]), ("atlas[0].features.shape", [3, 4, 0]), ("atlas[0].labels.shape", [3, 4, 4097]),
    ("atlas[0].labels.shape", [3, 4, 5.0]), ("atlas[0].labels.affine", REMOVED), ("atlas[0].labels.affine", GRID["affine"][:3]),
    ("atlas[0].labels.affine[3]", [0, 0, 0, 2]), ("atlas[0].labels.affine[0]", [4, 0, 0], "atlas[0].labels.affine"),
    ("atlas[0].labels.affine[0][1]", math.nan, "atlas[0].labels.affine"),
    ("atlas[0].labels.affine[0][3]", 100_001, "atlas[0].labels.affine"),
    ("atlas[0].labels.affine[0][3]", "0", "atlas[0].labels.affine"),
]  # fmt: skip

# Relations of several values, which JSON Schema cannot express
INVALID_RELATIONS: list[tuple[str, Any, str]] = [
    ("architecture.arguments.classes", 2, "architecture.arguments.classes"),
    ("architecture.arguments.in_channels", 2, "channels"),
    ("channels", ["CT", "PET"], "channels"),
    ("labels[2]", {"value": 9, "name": "spleen"}, "architecture.arguments.classes"),
    ("labels[1].value", 3, "labels[1].value"),
    ("preparation.normalisation.low", 250, "preparation.normalisation.high"),
    ("preparation.normalisation.low", 300, "preparation.normalisation.high"),
    ("preparation.normalisation", {"kind": "percentiles", "low": 99, "high": 1}, "preparation.normalisation.high"),
    ("training.mirroring.swaps[0]", [3, 8], "training.mirroring.swaps[0]"),
    ("training.mirroring.swaps", [[3, 7], [7, 3]], "training.mirroring.swaps[1]"),
]


def change(description: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a copy with `value` at a key path such as `labels[0].colour`, or without it."""
    changed = copy.deepcopy(description)
    keys = [int(part) if part.isdigit() else part for part in re.findall(r"\w+", path)]
    parent: Any = changed
    for key in keys[:-1]:
        parent = parent[key]
    if keys and value is REMOVED:
        del parent[keys[-1]]
    elif keys and isinstance(parent, list) and keys[-1] == len(parent):
        parent.append(value)
    elif keys:
        parent[keys[-1]] = value
    return changed


def parse(description: Any) -> dict[str, Any]:
    return schema.parse_model_json(json.dumps(description).encode(), MODEL)


def is_valid_json_schema(description: dict[str, Any]) -> bool:
    """Return what `model.schema.json` says, with the types as this engine reads them: 1.0 is no integer, NaN no number."""
    content = json.loads(Path(schema.__file__).with_name("model.schema.json").read_text(encoding="utf-8"))
    base = jsonschema.Draft202012Validator
    base.check_schema(content)
    types = base.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    types = types.redefine("number", lambda _, value: type(value) in (int, float) and abs(value) < 1e300)
    return jsonschema.validators.extend(base, type_checker=types)(content).is_valid(description)


@pytest.mark.parametrize(("base", "path", "value"), VALID.values(), ids=VALID)
def test_valid_description_is_accepted_unchanged(base: dict[str, Any], path: str, value: Any) -> None:
    description = change(base, path, value)
    assert parse(description) == description
    assert is_valid_json_schema(description)


@pytest.mark.parametrize(
    ("base", "case"),
    [*((WHOLE, case) for case in INVALID), *((ATLAS, case) for case in INVALID_ATLAS)],
    ids=lambda item: "" if isinstance(item, dict) else f"{item[0]}={item[1]!r:.20}",
)
def test_invalid_value_is_refused_by_both_schemas_with_its_key_path(
    base: dict[str, Any], case: tuple[Any, ...]
) -> None:
    path, value, key = (*case, case[0])[:3]
    description = change(base, path, value)
    with pytest.raises(InputError) as caught:
        parse(description)
    assert caught.value.code == "model_unusable"
    assert f"'{key}' is" in caught.value.message
    assert str(MODEL) in caught.value.message
    assert caught.value.advice
    assert not is_valid_json_schema(description)
    if key == path:
        found = "is missing" if value is REMOVED else f"is {value!r:.80}"
        assert f"'{path}' {found}" in caught.value.message


@pytest.mark.parametrize(("path", "value", "key"), INVALID_RELATIONS)
def test_invalid_relation_of_values_is_refused_with_its_key_path(path: str, value: Any, key: str) -> None:
    description = change(WHOLE, path, value)
    with pytest.raises(InputError, match=re.escape(f"'{key}' is")) as caught:
        parse(description)
    assert caught.value.code == "model_unusable"
    assert is_valid_json_schema(description), "this case belongs into the table of both schemas"


@pytest.mark.parametrize("shape", [[4096, 4096, 1], [1, 1025, 4096]])
def test_atlas_whose_features_are_too_large_is_refused(shape: list[int]) -> None:
    with pytest.raises(InputError, match=r"'atlas\[0\]\.features\.shape' is .* at most 4194304 voxels"):
        parse(change(ATLAS, "atlas[0].features.shape", shape))


def test_atlas_of_a_model_for_pretraining_is_refused_by_both_schemas() -> None:
    description = {**PRETRAINING, **{key: ATLAS[key] for key in ("atlas", "atlas_sha256", "format_version")}}
    with pytest.raises(InputError, match="'atlas' is"):
        parse(description)
    assert not is_valid_json_schema(description)


@pytest.mark.parametrize("version", [3, 99, 10**30])
def test_description_of_a_newer_format_asks_for_an_update(version: int) -> None:
    with pytest.raises(InputError) as caught:
        parse({"format_version": version, "kind": "something new"})
    assert caught.value.code == "model_newer"
    assert str(version) in caught.value.message
    assert not is_valid_json_schema({**WHOLE, "format_version": version})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"[" * 100_000, "levels deep"),
        (b'{"a":' * 100_000, "levels deep"),
        (b'{"a\\\\": "\\"", "b": ' + b"[" * 100_000, "levels deep"),
        (b'{"a": "' + b"[" * 100_000 + b'"}', "'format_version' is missing"),  # brackets in a text are no nesting
        (b'{"a": ' + b"1" * 100_000 + b"}", "."),  # so many digits are refused by newer versions of Python alone
        (b" " * (bounded_json.MAX_BYTES + 1), "more than"),
        (b'"' + b"\\" * 3_000_000 + b'"' * 3_000_000, "not JSON"),
    ],
    ids=range(12),
)
def test_content_that_is_no_description_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        schema.parse_model_json(content, MODEL)
    assert caught.value.code == "model_unusable"


def test_description_that_is_nested_as_deep_as_allowed_is_accepted() -> None:
    deep: Any = 0
    for _ in range(bounded_json.MAX_DEPTH - 1):
        deep = [deep]
    assert parse({**WHOLE, "more": deep})["more"] == deep


def test_description_with_a_byte_order_mark_is_accepted() -> None:
    assert schema.parse_model_json(b"\xef\xbb\xbf" + json.dumps(WHOLE).encode(), MODEL) == WHOLE


def test_long_value_is_shortened_in_the_message() -> None:
    with pytest.raises(InputError) as caught:
        parse({**WHOLE, "labels": "x" * 10_000})
    assert len(caught.value.message) < 300


def test_packaged_weights_have_a_valid_description() -> None:
    packaged = catalogue.packaged_weights(catalogue.find_entry(catalogue.DEFAULT_WEIGHTS))
    assert packaged is not None
    content = (packaged / "model.json").read_bytes()
    schema.parse_model_json(content, packaged)
    assert is_valid_json_schema(json.loads(content))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 101.0), (0.0005, 1.0, 1.0)])
def test_spacing_that_no_model_may_have_is_refused_before_a_run(spacing: tuple[float, float, float]) -> None:
    common: dict[str, Any] = {"output": Path("out"), "spacing": spacing}
    with pytest.raises(UsageError, match="--spacing is"):
        FinetuneConfig(image=("scan.nii",), label=(Path("labels.nii"),), **common)
    with pytest.raises(UsageError, match="--spacing is"):
        PrepareConfig(input=(Path("scans"),), **common)
