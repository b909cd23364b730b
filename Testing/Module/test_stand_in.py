"""The stand-in is strict: a typing error in the module cannot pass here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("app")


def test_properties_are_attributes_and_setters_can_be_called() -> None:
    import qt

    button = qt.QPushButton("Teach")
    assert (button.text, button.enabled, button.isEnabled()) == ("Teach", True, True)
    button.text = "Apply"
    button.setEnabled(False)
    assert (button.text, button.enabled, button.name, button.className()) == ("Apply", False, "", "QPushButton")


def test_signals_are_connected_by_their_cpp_signature() -> None:
    import qt

    heard: list[Any] = []
    button = qt.QPushButton("x")
    button.checkable = True
    button.connect("clicked()", lambda: heard.append("no argument"))
    button.connect("clicked(bool)", heard.append)
    button.click()
    assert heard == ["no argument", True]
    assert button.disconnect("clicked(bool)", heard.append)
    button.click()
    assert heard == ["no argument", True, "no argument"]


@pytest.mark.parametrize("signature", ["clickd()", "clicked(int)", "clicked"])
def test_an_unknown_signal_is_refused(signature: str) -> None:
    import qt

    with pytest.raises(RuntimeError, match="signal"):
        qt.QPushButton("x").connect(signature, lambda: None)


@pytest.mark.parametrize(("name", "value"), [("txt", "x"), ("setText", "x")])
def test_an_unknown_property_is_refused(name: str, value: str) -> None:
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
    ("change", "told"),
    [
        ({}, ""),
        ({"cls": "ctkUnknown"}, "ctkUnknown"),
        ({"cls": "QPushButon"}, "QPushButon"),
        ({"name": "chekable"}, "chekable"),
        ({"signal": "mrmlSceneChange(vtkMRMLScene*)"}, "no signal"),
    ],
)
def test_a_ui_file_is_checked(change: dict[str, str], told: str, tmp_path: Path) -> None:
    import slicer.util

    words = {"cls": "QPushButton", "name": "checkable", "signal": "mrmlSceneChanged(vtkMRMLScene*)", **change}
    file = tmp_path / "a.ui"
    file.write_text(UI.format(**words), encoding="utf-8")
    if not told:
        assert slicer.util.childWidgetVariables(slicer.util.loadUI(str(file))).b.checkable
        return
    with pytest.raises(RuntimeError, match=told):
        slicer.util.loadUI(str(file))


def test_a_node_chooser_follows_the_scene(empty_scene: Any) -> None:
    import slicer

    chooser, heard = slicer.qMRMLNodeComboBox(), []
    chooser.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    chooser.showChildNodeTypes = False
    chooser.connect("currentNodeChanged(vtkMRMLNode*)", heard.append)
    chooser.setMRMLScene(empty_scene)
    empty_scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "no scan")
    assert chooser.currentNode() is None
    node = empty_scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "scan")
    assert chooser.currentNode() is node
    empty_scene.Clear(0)
    assert heard == [node, None]


def test_a_parameter_of_unknown_type_is_refused() -> None:
    from slicer.parameterNodeWrapper import parameterNodeWrapper

    with pytest.raises(TypeError, match="complex"):

        @parameterNodeWrapper
        class Wrong:
            value: complex = 1j


def test_the_wrapper_refuses_what_it_does_not_hold(empty_scene: Any) -> None:
    from HiEndMAESegmentationLib.parameters import Parameters

    parameters = Parameters(empty_scene.AddNewNodeByClass("vtkMRMLScriptedModuleNode"))
    with pytest.raises(AttributeError, match="budgett"):
        parameters.budgett = "1min"
    with pytest.raises(ValueError, match="show3D"):
        parameters.show3D = "yes"
