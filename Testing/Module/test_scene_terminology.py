"""Terminology tags."""

from __future__ import annotations

import pytest
from module_help import LIVER

pytestmark = pytest.mark.usefixtures("empty_scene")


def test_terminology_tag_round_trip() -> None:
    from HiEndMAESegmentationLib.scene import terminology

    entry = terminology.from_tag(LIVER)
    assert entry["type"] == {"CodingSchemeDesignator": "SCT", "CodeValue": "10200004", "CodeMeaning": "Liver"}
    assert "typeModifier" not in entry
    assert terminology.to_tag(entry) == LIVER
    assert terminology.to_tag({}) == "" == terminology.to_tag(terminology.from_tag("no~entry"))
