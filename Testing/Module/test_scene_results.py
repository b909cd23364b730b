"""Label maps as segmentation nodes: values, transforms, failures, previews of large scans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from module_help import BOX, OTHER, ids_of

pytestmark = pytest.mark.usefixtures("empty_scene")


def test_preview_of_a_large_scan_is_subsampled_and_fast(
    empty_scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 79 million voxels every third along each axis is shown, in place. The file is not kept open meanwhile."""
    import time

    import numpy as np
    import slicer
    from HiEndMAESegmentationLib.scene import export, nodes, results

    volume = empty_scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
    slicer.util.updateVolumeFromArray(volume, np.zeros((300, 512, 512), np.int8))
    volume.SetSpacing(0.8, 0.8, 1.0)
    array = np.zeros((300, 512, 512), np.int16)
    array[90:210, 100:401, 150:301] = 1
    with nodes.temporary_label_map(volume, array) as node:
        export.write_scan(node, tmp_path / "preview.nii")
    labels = [{"value": 1, "name": "a", "colour": [1, 2, 3]}]
    start = time.thread_time()
    preview = results.show_preview(tmp_path / "preview.nii", volume, labels=labels, name="Preview")
    assert time.thread_time() - start < 0.1
    bounds = [0.0] * 6
    preview.GetRASBounds(bounds)
    expected = [150 * 0.8, 300 * 0.8, 100 * 0.8, 400 * 0.8, 90.0, 209.0]
    np.testing.assert_allclose(bounds, expected, atol=3)

    maps, make_segmentation, mapped = Path("/proc/self/maps"), results._make_segmentation, []

    def note_mapping(*arguments: Any, **options: Any) -> Any:
        mapped.append(maps.is_file() and str(tmp_path / "preview.nii") in maps.read_text())
        return make_segmentation(*arguments, **options)

    monkeypatch.setattr(results, "_make_segmentation", note_mapping)
    results.show_preview(tmp_path / "preview.nii", volume, labels=labels, name="Preview")
    assert mapped == [False]


def test_result_matches_structures_by_value_and_keeps_empty_ones(oblique: Any, tmp_path: Path) -> None:
    """Slicer renumbers labels, so names are matched by value. A structure without a voxel gets an empty segment."""
    import numpy as np
    import slicer
    from HiEndMAESegmentationLib.scene import export, nodes, results

    array = np.zeros((10, 12, 14), np.int16)
    array[BOX], array[OTHER] = 9, 4
    with nodes.temporary_label_map(oblique, array) as node:
        export.write_scan(node, tmp_path / "labels.nii")
    labels = [{"value": v, "name": f"s{v}", "colour": [v, 0, 0]} for v in (9, 7, 4)]
    result = results.show_result(tmp_path / "labels.nii", oblique, labels=labels, name="R")
    counts = {}
    for segment in nodes.segments_of(result):
        assert segment.color == (int(segment.name[1:]), 0, 0)
        array = slicer.util.arrayFromSegmentBinaryLabelmap(result, segment.id, oblique)
        counts[segment.name] = int((array > 0).sum())
    assert counts == {"s9": 27, "s7": 0, "s4": 27}


def test_result_is_put_under_the_transform_of_its_scan(oblique: Any, tmp_path: Path) -> None:
    import numpy as np
    import slicer
    from HiEndMAESegmentationLib.scene import export, nodes, results

    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    matrix = np.eye(4)
    matrix[:3, 3] = (100, 0, 0)
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    oblique.SetAndObserveTransformNodeID(transform.GetID())
    array = np.zeros((10, 12, 14), np.int16)
    array[BOX] = 1
    with nodes.temporary_label_map(oblique, array) as node:
        export.write_scan(node, tmp_path / "labels.nii")
    labels = [{"value": 1, "name": "a", "colour": [1, 2, 3]}]
    result = results.show_result(tmp_path / "labels.nii", oblique, labels=labels, name="R")
    voxels = slicer.util.arrayFromSegmentBinaryLabelmap(result, ids_of(result)[0], oblique)
    np.testing.assert_array_equal(voxels > 0, array > 0)


def test_failed_result_leaves_no_node(oblique: Any, tmp_path: Path) -> None:
    import numpy as np
    import slicer
    from HiEndMAESegmentationLib.scene import export, nodes, results

    from HiEndMAECore.errors import InputError

    array = np.ones((10, 12, 14), np.int16)
    with nodes.temporary_label_map(oblique, array) as node:
        export.write_scan(node, tmp_path / "labels.nii")
    before = slicer.mrmlScene.GetNumberOfNodes()
    with pytest.raises(InputError, match="could not be read"):
        results.show_result(tmp_path / "absent.nii", oblique, labels=[], name="R")
    slicer.util.updateVolumeFromArray(oblique, np.zeros((3, 3, 3), np.int16))
    with pytest.raises(InputError, match="grid"):
        results.show_result(tmp_path / "labels.nii", oblique, labels=[], name="R")
    slicer.util.updateVolumeFromArray(oblique, array)
    with pytest.raises(KeyError):
        results.show_result(tmp_path / "labels.nii", oblique, labels=[{"nonsense": 1}], name="R")
    assert slicer.mrmlScene.GetNumberOfNodes() == before
