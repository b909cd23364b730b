"""Label tables of nnU-Net, of the Decathlon and of models are read alike, or refused with the label that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_files import describe

from HiEndMAECore.data.label_table import (
    find_label_table,
    label_colors,
    model_structures,
    parse_labels,
    read_label_table,
)
from HiEndMAECore.errors import InputError
from HiEndMAECore.io.structure import DEFAULT_COLOR, Structure

LIVER = {"type": {"CodingSchemeDesignator": "SCT", "CodeValue": "10200004", "CodeMeaning": "Liver"}}
NAMES = {1: "spleen", 2: "liver"}
FORMS: dict[str, Any] = {
    "nnU-Net": {"background": 0, "liver": 2, "spleen": 1, "ignore": 3},
    "nnU-Net, text": {"background": "0", "liver": "2", "spleen": "1", "ignore": 3.0},
    "Decathlon": {"0": "background", "2": "liver", "1": "spleen", "3": "ignore"},
    "list": [{"value": 2, "name": "liver"}, {"value": 1, "name": "spleen", "note": ""}, {"value": 3, "name": "ignore"}],
}
ILL_FORMED: list[tuple[Any, str]] = [
    (None, "neither an object"),
    ("liver", "neither an object"),
    ({"liver": "one"}, "'liver' has the value 'one'"),
    ({"liver": -1}, "'liver' has the value -1"),
    ({"liver": 1.5}, "'liver' has the value 1.5"),
    ({"liver": True}, "'liver' has the value True"),
    ({"liver": None}, "'liver' has the value None"),
    ({"liver": float("nan")}, "'liver' has the value nan"),
    ({"liver": 1, "spleen": 1}, "the value 1 twice, for 'liver' and 'spleen'"),
    ({"liver": 1, "ignore": 1}, "the value 1 twice"),
    ({"": 1}, "the label of value 1 has no name"),
    (["liver"], r"labels\[0\] is not an object"),
    ([{"name": "liver"}], r"labels\[0\] is not an object with 'name' and 'value'"),
    ([{"value": 1, "name": "x", "colour": [1, 2]}], "the colour of 'x'"),
    ([{"value": 1, "name": "x", "colour": [1, 2, 300]}], "the colour of 'x'"),
    ([{"value": 1, "name": "x", "colour": "red"}], "the colour of 'x'"),
    ([{"value": 1, "name": "x", "colour": 7}], "the colour of 'x'"),
    ([{"value": 1, "name": "x", "terminology": "liver"}], "terminology of 'x'"),
    ([{"value": 1, "name": "x", "terminology": {"type": "liver"}}], "terminology of 'x'.type"),
]


def write_json(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


@pytest.mark.parametrize("labels", FORMS.values(), ids=FORMS)
def test_labels_of_every_form_give_the_same_table(labels: Any) -> None:
    table = parse_labels(labels)
    assert table.names == NAMES
    assert list(table.names) == [1, 2], "sorted by value"
    assert table.ignore == 3
    assert [structure.color for structure in table.structures] == label_colors(2)


@pytest.mark.parametrize(("labels", "reason"), ILL_FORMED)
def test_ill_formed_labels_are_refused_with_the_label(labels: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_labels(labels)
    with pytest.raises(InputError, match=reason) as caught:
        read_label_table(write_json(tmp_path / "names.json", {"labels": labels}))
    assert caught.value.code == "labels_unreadable"
    assert "names.json" in caught.value.message


def test_region_of_several_values_is_refused_or_skipped() -> None:
    labels = {"background": 0, "whole tumor": [1, 2], "core": 2}
    with pytest.raises(ValueError, match="'whole tumor' is a region"):
        parse_labels(labels)
    assert parse_labels(labels, skip_regions=True).names == {2: "core"}


def test_colors_and_terminology_of_a_list_are_kept(tmp_path: Path) -> None:
    records = [
        {"value": 4, "name": "Milz", "colour": [255, 0, 7.0]},
        {"value": 2, "name": "Leber", "colour": [1, 2, 3], "terminology": LIVER},
        {"value": 9, "name": "Niere", "colour": None, "terminology": None},
    ]
    first, second, third = read_label_table(write_json(tmp_path / "names.json", {"labels": records})).structures
    assert first == Structure(2, "Leber", (1, 2, 3), LIVER)
    assert second == Structure(4, "Milz", (255, 0, 7), {})
    assert [type(part) for part in second.color] == [int] * 3, "as model.json requires"
    assert third == Structure(9, "Niere", label_colors(3)[2], {})


def test_structures_of_a_model_are_in_the_order_of_its_classes() -> None:
    labels = [{"value": 7, "name": "b", "colour": [1, 2, 3], "terminology": LIVER}, {"value": 5, "name": "a"}]
    structures = model_structures(describe(labels=labels))
    assert structures == (Structure(7, "b", (1, 2, 3), LIVER), Structure(5, "a", DEFAULT_COLOR, {}))


def test_whole_model_json_as_file_of_names_is_validated(tmp_path: Path) -> None:
    data = json.loads(json.dumps(describe(weights_sha256="0" * 64).to_json()))
    assert read_label_table(write_json(tmp_path / "model.json", data)).names == {2: "liver", 5: "spleen"}
    with pytest.raises(InputError) as caught:
        read_label_table(write_json(tmp_path / "model.json", {**data, "format_version": 99}))
    assert caught.value.code == "model_newer"


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"labels": ' + b"[" * 100_000])
def test_file_without_labels_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "names.json").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_label_table(tmp_path / "names.json")
    assert caught.value.code == "labels_unreadable"


def test_names_for_an_evaluation_come_from_the_given_file_or_from_above_the_reference(tmp_path: Path) -> None:
    reference = tmp_path / "labelsTr" / "a.nii.gz"
    reference.parent.mkdir()
    reference.write_bytes(b"")
    assert find_label_table(None, reference).names == {}
    write_json(tmp_path / "dataset.json", {"labels": {"liver": 1}})
    assert find_label_table(None, reference).names == find_label_table(None, reference.parent).names == {1: "liver"}
    write_json(tmp_path / "labelsTr" / "dataset.json", {"labels": {"spleen": 1}})
    assert find_label_table(None, reference).names == find_label_table(None, reference.parent).names == {1: "spleen"}
    given = write_json(tmp_path / "names.json", {"labels": {"1": "Leber"}})
    assert find_label_table(given, reference).names == {1: "Leber"}
    with pytest.raises(InputError, match=r"absent\.json"):
        find_label_table(tmp_path / "absent.json", reference)


def test_label_colors_are_distinct_and_stable() -> None:
    many = label_colors(120)
    assert len(set(many)) == 120
    assert many[:10] == label_colors(10)
    assert all(0 <= part <= 255 for color in many for part in color)
    assert all(max(color) > 100 for color in many), "a color is lost on black"
    first = np.array(many[:16], float)
    assert min(np.linalg.norm(a - b) for i, a in enumerate(first) for b in first[:i]) > 30
