"""Nodes to files and back: places, names and codes survive; what cannot be meant is refused in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from module_help import LIVER

pytestmark = pytest.mark.usefixtures("empty_scene")


@pytest.fixture
def oblique() -> Any:
    """An oblique, anisotropic, left-handed volume with a name that no file system likes."""
    import numpy as np
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", 'Prüfung: "CT/1" <Ä>')
    voxels = np.random.default_rng(0).integers(-1000, 1000, (10, 12, 14)).astype(np.int16)
    slicer.util.updateVolumeFromArray(node, voxels)
    c, s = np.cos(0.3), np.sin(0.3)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, -1]]) @ np.diag([-0.7, -1.1, 2.5])
    affine[:3, 3] = (3, 4, 5)
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(affine))
    return node


def segmentation_of(volume: Any, masks: dict[str, Any]) -> Any:
    import numpy as np
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Segmentation")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    for number, (name, place) in enumerate(masks.items()):
        mask = np.zeros((10, 12, 14), np.uint8)
        mask[place] = 1
        segment_id = node.GetSegmentation().AddEmptySegment("", name, [0.1 * number, 0.5, 1.0])
        if mask.any():
            slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, segment_id, volume)
    return node


BOX, OTHER = (slice(2, 5),) * 3, (slice(6, 9),) * 3
NOTHING = (slice(0, 0),) * 3


def ids_of(segmentation: Any) -> list[str]:
    from HiEndMAESegmentationLib.scene import nodes as scene

    return [segment.id for segment in scene.segments_of(segmentation)]


def test_there_and_back_is_voxel_exact(oblique: Any, tmp_path: Path) -> None:
    import numpy as np
    import slicer
    from HiEndMAESegmentationLib.scene import nodes as scene

    drawn = segmentation_of(oblique, {"Leber ß": BOX, "leer": NOTHING, "Milz": OTHER})
    drawn.GetSegmentation().GetNthSegment(0).SetTag("TerminologyEntry", LIVER)
    before = slicer.mrmlScene.GetNumberOfNodes()
    files = scene.write_teaching(oblique, drawn, tmp_path / "Ordner mit Ä", segments=ids_of(drawn))
    assert slicer.mrmlScene.GetNumberOfNodes() == before
    records = json.loads(files.names.read_text(encoding="utf-8"))["labels"]
    assert [(one["value"], one["name"]) for one in records] == [(1, "Leber ß"), (3, "Milz")]
    assert records[0]["terminology"]["type"]["CodeMeaning"] == "Liver"
    assert [path.name for path in sorted(files.image.parent.iterdir())] == ["labels.nii", "names.json", "scan.nii"]

    result = scene.show_result(files.label, oblique, labels=records, name="Ergebnis", surfaces=True)
    for index, place in enumerate((BOX, OTHER)):
        mask = np.zeros((10, 12, 14), bool)
        mask[place] = True
        found = slicer.util.arrayFromSegmentBinaryLabelmap(result, ids_of(result)[index], oblique)
        np.testing.assert_array_equal(found > 0, mask)


def test_values_far_apart_and_structures_that_were_not_found(oblique: Any, tmp_path: Path) -> None:
    """Slicer counts labels anew; names must not slip. A structure without a voxel is there, and empty."""
    import numpy as np
    import slicer
    from HiEndMAESegmentationLib.scene import nodes as scene

    array = np.zeros((10, 12, 14), np.int16)
    array[BOX], array[OTHER] = 9, 4
    with scene._temporary_label_map(oblique, array) as node:
        scene.write_scan(node, tmp_path / "labels.nii")
    labels = [{"value": v, "name": f"s{v}", "colour": [v, 0, 0]} for v in (9, 7, 4)]
    result = scene.show_result(tmp_path / "labels.nii", oblique, labels=labels, name="R")
    counts = {}
    for segment in scene.segments_of(result):
        assert segment.colour == (int(segment.name[1:]), 0, 0)
        array = slicer.util.arrayFromSegmentBinaryLabelmap(result, segment.id, oblique)
        counts[segment.name] = int((array > 0).sum())
    assert counts == {"s9": 27, "s7": 0, "s4": 27}


def test_a_result_moves_with_its_scan(oblique: Any, tmp_path: Path) -> None:
    import numpy as np
    import slicer
    from HiEndMAESegmentationLib.scene import nodes as scene

    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    matrix = np.eye(4)
    matrix[:3, 3] = (100, 0, 0)
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    oblique.SetAndObserveTransformNodeID(transform.GetID())
    array = np.zeros((10, 12, 14), np.int16)
    array[BOX] = 1
    with scene._temporary_label_map(oblique, array) as node:
        scene.write_scan(node, tmp_path / "labels.nii")
    labels = [{"value": 1, "name": "a", "colour": [1, 2, 3]}]
    result = scene.show_result(tmp_path / "labels.nii", oblique, labels=labels, name="R")
    found = slicer.util.arrayFromSegmentBinaryLabelmap(result, ids_of(result)[0], oblique)
    np.testing.assert_array_equal(found > 0, array > 0)


@pytest.mark.parametrize(
    ("masks", "code", "told"),
    [
        ({"a": BOX, "b": (slice(4, 7),) * 3}, "segments_overlap", "'a' and 'b' overlap"),
        ({"a": BOX, "a ": OTHER, "c": NOTHING}, None, ""),
        ({"a": BOX}, None, ""),
        ({}, "nothing_chosen", "no segment"),
        ({"a": NOTHING}, "nothing_labelled", "No segment has a voxel"),
    ],
)
def test_what_cannot_be_learned_is_refused(
    masks: dict[str, Any], code: str | None, told: str, oblique: Any, tmp_path: Path
) -> None:
    from HiEndMAESegmentationLib.scene import nodes as scene

    from HiEndMAECore.errors import InputError

    drawn = segmentation_of(oblique, masks)
    if code is None:
        scene.write_teaching(oblique, drawn, tmp_path, segments=ids_of(drawn))
        return
    with pytest.raises(InputError, match=told) as raised:
        scene.write_teaching(oblique, drawn, tmp_path, segments=ids_of(drawn))
    assert raised.value.code == code


def test_two_segments_of_one_name_and_unknown_ones_are_refused(oblique: Any, tmp_path: Path) -> None:
    from HiEndMAESegmentationLib.scene import nodes as scene

    from HiEndMAECore.errors import InputError

    drawn = segmentation_of(oblique, {"a": BOX, "b": OTHER})
    with pytest.raises(InputError, match="no structure called 'b'"):
        scene.write_teaching(oblique, drawn, tmp_path, segments=ids_of(drawn), values={"a": 1})
    drawn.GetSegmentation().GetNthSegment(1).SetName("a")
    with pytest.raises(InputError, match="Two segments"):
        scene.write_teaching(oblique, drawn, tmp_path, segments=ids_of(drawn))


def test_nothing_half_made_stays_in_the_scene(oblique: Any, tmp_path: Path) -> None:
    import numpy as np
    import slicer
    from HiEndMAESegmentationLib.scene import nodes as scene

    from HiEndMAECore.errors import InputError

    array = np.ones((10, 12, 14), np.int16)
    with scene._temporary_label_map(oblique, array) as node:
        scene.write_scan(node, tmp_path / "labels.nii")
    before = slicer.mrmlScene.GetNumberOfNodes()
    with pytest.raises(InputError, match="could not be read"):
        scene.show_result(tmp_path / "absent.nii", oblique, labels=[], name="R")
    slicer.util.updateVolumeFromArray(oblique, np.zeros((3, 3, 3), np.int16))
    with pytest.raises(InputError, match="grid"):
        scene.show_result(tmp_path / "labels.nii", oblique, labels=[], name="R")
    slicer.util.updateVolumeFromArray(oblique, array)
    with pytest.raises(KeyError):
        scene.show_result(tmp_path / "labels.nii", oblique, labels=[{"nonsense": 1}], name="R")
    assert slicer.mrmlScene.GetNumberOfNodes() == before


def test_terminology_goes_round() -> None:
    from HiEndMAESegmentationLib.scene import terminology

    entry = terminology.from_tag(LIVER)
    assert entry["type"] == {"CodingSchemeDesignator": "SCT", "CodeValue": "10200004", "CodeMeaning": "Liver"}
    assert "typeModifier" not in entry
    assert terminology.to_tag(entry) == LIVER
    assert terminology.to_tag({}) == "" == terminology.to_tag(terminology.from_tag("no~entry"))


def test_a_scan_chosen_by_hand_stays_chosen_in_a_saved_scene(module: Any, oblique: Any, tmp_path: Path) -> None:
    """Drawn on one scan, taught on another: on loading, the segmentation's own scan does not push in again."""
    import slicer

    module.session.parameters.teachSegmentation = segmentation_of(oblique, {"Leber": BOX})
    assert module.session.parameters.teachVolume is oblique
    other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT B")
    other.SetAndObserveImageData(oblique.GetImageData())
    module.session.parameters.teachVolume = other
    file = tmp_path / "scene.mrb"
    assert slicer.mrmlScene.WriteToMRB(str(file), None)
    slicer.mrmlScene.Clear(0)
    assert slicer.mrmlScene.ReadFromMRB(str(file), True, None)
    module.initializeParameterNode()
    assert module.session.parameters.teachVolume.GetName() == "CT B"
    another = segmentation_of(slicer.util.getNode(oblique.GetName()), {"Leber": BOX})
    module.session.parameters.teachSegmentation = another  # chosen by the user: its scan comes along
    assert module.session.parameters.teachVolume.GetName() == oblique.GetName()


def test_every_choice_comes_back_with_a_saved_scene(module: Any, oblique: Any, tmp_path: Path) -> None:
    """As .mrb, with names that are not ASCII. A choice that is not in this test fails it."""
    import slicer

    drawn = segmentation_of(oblique, {"Leber ß": BOX, "Milz": OTHER})
    module.session.parameters.teachSegmentation = drawn
    ui, apply = module.teach.ui, module.apply.ui
    ui.segmentsList.item(1).setCheckState(_unchecked())
    ui.budgetCombo.setCurrentIndex(ui.budgetCombo.findData("20min"))
    ui.startCombo.setCurrentIndex(ui.startCombo.findData("none"))
    ui.startCombo.activated.emit(ui.startCombo.currentIndex)
    ui.deviceCombo.setCurrentIndex(ui.deviceCombo.findData("cpu"))
    ui.nameEdit.text = "Modell Ä"
    apply.casesTable.item(0, 0).setCheckState(_checked())
    apply.show3DCheck.checked = False
    apply.largestCheck.checked = True
    apply.uncertaintyCheck.checked = False
    module.improve.ui.correctedSelector.setCurrentNode(drawn)
    set_by_hand = {"model": "a-model", "offered": ["/Fälle/1.nii", "dicom:1.2"], "sources": ["dicom:1.2"]}
    for name, value in set_by_hand.items():
        setattr(module.session.parameters, name, value)
    wanted = {
        "teachVolume": oblique.GetName(),
        "teachSegmentation": drawn.GetName(),
        "leftOut": ids_of(drawn)[1:],
        "budget": "20min",
        "start": "none",
        "modelName": "Modell Ä",
        "targets": [oblique.GetName()],
        "show3D": False,
        "keepLargest": True,
        "uncertainty": False,
        "corrected": drawn.GetName(),
        "device": "cpu",
        **set_by_hand,
    }
    file = tmp_path / "Szene Ä.mrb"
    assert slicer.mrmlScene.WriteToMRB(str(file), None)
    slicer.mrmlScene.Clear(0)
    assert module.session.parameters.modelName == ""
    assert slicer.mrmlScene.ReadFromMRB(str(file), True, None)
    module.initializeParameterNode()
    kept = module.session.parameters

    def plain(value: Any) -> Any:
        return [plain(one) for one in value] if isinstance(value, list) else getattr(value, "GetName", lambda: value)()

    assert {name: plain(getattr(kept, name)) for name in kept.allParameters} == wanted
    assert ui.segmentsList.item(1).checkState() == _unchecked()
    assert (ui.budgetCombo.currentData, ui.nameEdit.text, ui.deviceCombo.currentData) == ("20min", "Modell Ä", "cpu")
    assert (apply.show3DCheck.checked, apply.largestCheck.checked, apply.uncertaintyCheck.checked) == (
        False,
        True,
        False,
    )
    assert apply.casesTable.item(0, 0).checkState() == _checked()


def _checked() -> Any:
    import qt

    return qt.Qt.Checked


def _unchecked() -> Any:
    import qt

    return qt.Qt.Unchecked
