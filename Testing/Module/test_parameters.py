"""Choices of the panels in saved scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from module_help import BOX, OTHER, ids_of, segmentation_of


def test_scan_chosen_by_hand_is_restored_from_a_saved_scene(module: Any, oblique: Any, tmp_path: Path) -> None:
    """The segmentation was segmentation on another scan, which must not be chosen again when the scene is loaded."""
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
    module.session.parameters.teachSegmentation = another  # the user chooses it: its scan is chosen too
    assert module.session.parameters.teachVolume.GetName() == oblique.GetName()


def test_saved_scene_restores_every_choice(module: Any, oblique: Any, tmp_path: Path) -> None:
    """The scene is an .mrb, with names that are not ASCII. A new parameter has to be added to this test."""
    import slicer

    segmentation = segmentation_of(oblique, {"Leber ß": BOX, "Milz": OTHER})
    module.session.parameters.teachSegmentation = segmentation
    ui, apply = module.train.ui, module.apply.ui
    ui.segmentsList.item(1).setCheckState(_unchecked())
    ui.budgetCombo.setCurrentIndex(ui.budgetCombo.findData("20min"))
    ui.startCombo.setCurrentIndex(ui.startCombo.findData("none"))
    ui.startCombo.activated.emit(ui.startCombo.currentIndex)
    ui.deviceCombo.setCurrentIndex(ui.deviceCombo.findData("cpu"))
    ui.nameEdit.text = "Modell Ä"
    ui.atlasCheck.checked = False
    apply.casesTable.item(0, 0).setCheckState(_checked())
    apply.show3DCheck.checked = False
    apply.largestCheck.checked = True
    apply.uncertaintyCheck.checked = False
    module.refine.ui.correctedSelector.setCurrentNode(segmentation)
    other_values = {"model": "a-model", "offered": ["/Fälle/1.nii", "dicom:1.2"], "sources": ["dicom:1.2"]}
    for name, value in other_values.items():
        setattr(module.session.parameters, name, value)
    expected = {
        "teachVolume": oblique.GetName(),
        "teachSegmentation": segmentation.GetName(),
        "leftOut": ids_of(segmentation)[1:],
        "budget": "20min",
        "start": "none",
        "modelName": "Modell Ä",
        "keepAtlas": False,
        "targets": [oblique.GetName()],
        "show3D": False,
        "keepLargest": True,
        "uncertainty": False,
        "corrected": segmentation.GetName(),
        "device": "cpu",
        **other_values,
    }
    file = tmp_path / "Szene Ä.mrb"
    assert slicer.mrmlScene.WriteToMRB(str(file), None)
    slicer.mrmlScene.Clear(0)
    assert module.session.parameters.modelName == ""
    assert slicer.mrmlScene.ReadFromMRB(str(file), True, None)
    module.initializeParameterNode()
    restored = module.session.parameters

    def plain(value: Any) -> Any:
        return (
            [plain(part) for part in value] if isinstance(value, list) else getattr(value, "GetName", lambda: value)()
        )

    assert {name: plain(getattr(restored, name)) for name in restored.allParameters} == expected
    assert ui.segmentsList.item(1).checkState() == _unchecked()
    assert (ui.budgetCombo.currentData, ui.nameEdit.text, ui.deviceCombo.currentData) == ("20min", "Modell Ä", "cpu")
    checks = (apply.show3DCheck, apply.largestCheck, apply.uncertaintyCheck, ui.atlasCheck)
    assert [check.checked for check in checks] == [False, True, False, False]
    assert apply.casesTable.item(0, 0).checkState() == _checked()


def _checked() -> Any:
    import qt

    return qt.Qt.Checked


def _unchecked() -> Any:
    import qt

    return qt.Qt.Unchecked
