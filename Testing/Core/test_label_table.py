"""Structures read from a file of names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from HiEndMAECore.data.label_table import read_structures
from HiEndMAECore.errors import InputError


def test_read_structures_takes_colors_and_terminology_of_a_model(tmp_path: Path) -> None:
    liver = {"type": {"CodingSchemeDesignator": "SCT", "CodeValue": "10200004", "CodeMeaning": "Liver"}}
    records = [
        {"value": 4, "name": "Milz", "colour": [255, 0, 7]},
        {"value": 2, "name": "Leber", "colour": [1, 2, 3], "terminology": liver},
    ]
    file = tmp_path / "names.json"
    file.write_text(json.dumps({"labels": records}), encoding="utf-8")
    first, second = read_structures(file)
    assert (first.value, first.name, first.color, first.terminology) == (2, "Leber", (1, 2, 3), liver)
    assert (second.value, second.name, second.color, second.terminology) == (4, "Milz", (255, 0, 7), {})


def test_read_structures_takes_names_of_a_data_set(tmp_path: Path) -> None:
    file = tmp_path / "names.json"
    file.write_text(json.dumps({"labels": {"Leber": 2}}), encoding="utf-8")
    assert read_structures(file)[0].name == "Leber"


@pytest.mark.parametrize("wrong", [{"colour": [1, 2]}, {"colour": [1, 2, 300]}, {"terminology": "liver"}])
def test_read_structures_with_a_wrong_entry_names_the_structure(tmp_path: Path, wrong: dict[str, object]) -> None:
    file = tmp_path / "names.json"
    file.write_text(json.dumps({"labels": [{"value": 1, "name": "x", **wrong}]}), encoding="utf-8")
    with pytest.raises(InputError, match="'x'"):
        read_structures(file)
