"""Training cases as files: geometry, names and codes survive; unusable segmentations are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from module_help import BOX, LIVER, NOTHING, OTHER, ids_of, segmentation_of

pytestmark = pytest.mark.usefixtures("empty_scene")


def test_training_case_shown_as_result_is_voxel_exact(oblique: Any, tmp_path: Path) -> None:
    import numpy as np
    import slicer
    from HiEndMAESegmentationLib.scene import export, results

    segmentation = segmentation_of(oblique, {"Leber ß": BOX, "leer": NOTHING, "Milz": OTHER})
    segmentation.GetSegmentation().GetNthSegment(0).SetTag("TerminologyEntry", LIVER)
    before = slicer.mrmlScene.GetNumberOfNodes()
    files = export.write_training_case(oblique, segmentation, tmp_path / "Ordner mit Ä", segments=ids_of(segmentation))
    assert slicer.mrmlScene.GetNumberOfNodes() == before
    records = json.loads(files.names.read_text(encoding="utf-8"))["labels"]
    assert [(record["value"], record["name"]) for record in records] == [(1, "Leber ß"), (3, "Milz")]
    assert records[0]["terminology"]["type"]["CodeMeaning"] == "Liver"
    assert [path.name for path in sorted(files.image.parent.iterdir())] == ["labels.nii", "names.json", "scan.nii"]

    result = results.show_result(files.label, oblique, labels=records, name="Ergebnis", surfaces=True)
    for index, region in enumerate((BOX, OTHER)):
        mask = np.zeros((10, 12, 14), bool)
        mask[region] = True
        voxels = slicer.util.arrayFromSegmentBinaryLabelmap(result, ids_of(result)[index], oblique)
        np.testing.assert_array_equal(voxels > 0, mask)


@pytest.mark.parametrize(
    ("masks", "code", "message"),
    [
        ({"a": BOX, "b": (slice(4, 7),) * 3}, "segments_overlap", "'a' and 'b' overlap"),
        ({"a": BOX, "a ": OTHER, "c": NOTHING}, None, ""),
        ({"a": BOX}, None, ""),
        ({}, "nothing_chosen", "no segment"),
        ({"a": NOTHING}, "nothing_labelled", "No segment has a voxel"),
    ],
)
def test_training_case_without_usable_segments_is_refused(
    masks: dict[str, Any], code: str | None, message: str, oblique: Any, tmp_path: Path
) -> None:
    from HiEndMAESegmentationLib.scene import export

    from HiEndMAECore.errors import InputError

    segmentation = segmentation_of(oblique, masks)
    if code is None:
        export.write_training_case(oblique, segmentation, tmp_path, segments=ids_of(segmentation))
        return
    with pytest.raises(InputError, match=message) as raised:
        export.write_training_case(oblique, segmentation, tmp_path, segments=ids_of(segmentation))
    assert raised.value.code == code


def test_training_case_with_duplicate_or_unknown_names_is_refused(oblique: Any, tmp_path: Path) -> None:
    from HiEndMAESegmentationLib.scene import export

    from HiEndMAECore.errors import InputError

    segmentation = segmentation_of(oblique, {"a": BOX, "b": OTHER})
    with pytest.raises(InputError, match="no structure called 'b'"):
        export.write_training_case(oblique, segmentation, tmp_path, segments=ids_of(segmentation), values={"a": 1})
    segmentation.GetSegmentation().GetNthSegment(1).SetName("a")
    with pytest.raises(InputError, match="Two segments"):
        export.write_training_case(oblique, segmentation, tmp_path, segments=ids_of(segmentation))
