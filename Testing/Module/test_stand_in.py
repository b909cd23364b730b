"""The stand-in refuses what Slicer would silently ignore, so that a typing error in the module is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("app")


def test_properties_are_attributes_and_have_setters() -> None:
    import qt

    button = qt.QPushButton("Train")
    assert (button.text, button.enabled, button.isEnabled()) == ("Train", True, True)
    button.text = "Apply"
    button.setEnabled(False)
    assert (button.text, button.enabled, button.name, button.className()) == ("Apply", False, "", "QPushButton")


def test_signals_are_connected_by_their_cpp_signature() -> None:
    import qt

    values: list[Any] = []
    button = qt.QPushButton("x")
    button.checkable = True
    button.connect("clicked()", lambda: values.append("no argument"))
    button.connect("clicked(bool)", values.append)
    button.click()
    assert values == ["no argument", True]
    assert button.disconnect("clicked(bool)", values.append)
    button.click()
    assert values == ["no argument", True, "no argument"]


@pytest.mark.parametrize("signature", ["clickd()", "clicked(int)", "clicked"])
def test_unknown_signal_is_refused(signature: str) -> None:
    import qt

    with pytest.raises(RuntimeError, match="signal"):
        qt.QPushButton("x").connect(signature, lambda: None)


@pytest.mark.parametrize(("name", "value"), [("txt", "x"), ("setText", "x")])
def test_unknown_property_is_refused(name: str, value: str) -> None:
    import qt
    import slicer

    for widget in (qt.QPushButton("x"), slicer.qMRMLWidget()):
        with pytest.raises(AttributeError):
            setattr(widget, name if isinstance(widget, qt.QPushButton) else "scene", value)


def test_unknown_classes_and_functions_are_refused() -> None:
    import ctk
    import qt
    import slicer

    for module, name in ((qt, "QPushButon"), (qt, "Signal"), (ctk, "ctkNothing"), (slicer, "qMRMLNothing")):
        assert not hasattr(module, name)
    assert not hasattr(slicer.app, "mainWindow")


UI = """<ui version="4.0"><class>A</class><widget class="qMRMLWidget" name="A"><layout class="QVBoxLayout" name="l">
<item><widget class="{cls}" name="b"><property name="{name}"><bool>true</bool></property></widget></item></layout></widget>
<connections><connection><sender>A</sender><signal>{signal}</signal><receiver>b</receiver>
<slot>setFocus()</slot></connection></connections></ui>"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, ""),
        ({"cls": "ctkUnknown"}, "ctkUnknown"),
        ({"cls": "QPushButon"}, "QPushButon"),
        ({"name": "chekable"}, "chekable"),
        ({"signal": "mrmlSceneChange(vtkMRMLScene*)"}, "no signal"),
    ],
)
def test_ui_file_with_unknown_names_is_refused(change: dict[str, str], message: str, tmp_path: Path) -> None:
    import slicer.util

    words = {"cls": "QPushButton", "name": "checkable", "signal": "mrmlSceneChanged(vtkMRMLScene*)", **change}
    file = tmp_path / "a.ui"
    file.write_text(UI.format(**words), encoding="utf-8")
    if not message:
        assert slicer.util.childWidgetVariables(slicer.util.loadUI(str(file))).b.checkable
        return
    with pytest.raises(RuntimeError, match=message):
        slicer.util.loadUI(str(file))


def test_node_combo_box_follows_the_scene(empty_scene: Any) -> None:
    import slicer

    chooser, values = slicer.qMRMLNodeComboBox(), []
    chooser.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    chooser.showChildNodeTypes = False
    chooser.connect("currentNodeChanged(vtkMRMLNode*)", values.append)
    chooser.setMRMLScene(empty_scene)
    empty_scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "no scan")
    assert chooser.currentNode() is None
    node = empty_scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "scan")
    assert chooser.currentNode() is node
    empty_scene.Clear(0)
    assert values == [node, None]


def test_parameter_of_unknown_type_is_refused() -> None:
    from slicer.parameterNodeWrapper import parameterNodeWrapper

    with pytest.raises(TypeError, match="complex"):

        @parameterNodeWrapper
        class Wrong:
            value: complex = 1j


def test_parameter_wrapper_refuses_unknown_names_and_wrong_types(empty_scene: Any) -> None:
    from HiEndMAESegmentationLib.parameters import Parameters

    parameters = Parameters(empty_scene.AddNewNodeByClass("vtkMRMLScriptedModuleNode"))
    with pytest.raises(AttributeError, match="budgett"):
        parameters.budgett = "1min"
    with pytest.raises(ValueError, match="show3D"):
        parameters.show3D = "yes"
