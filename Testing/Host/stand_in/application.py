"""Start the stand-in: a real MRML scene with its logics, a Qt application, and what modules need of `slicer`."""

from __future__ import annotations

import importlib.util
import logging
import os
import stat
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import slicer
import slicer.util
import vtk
from PySide6 import QtCore, QtWidgets

from . import dicom, parameter_node, scripted_module, widgets
from .qt_module import qt

_LOGICS = {
    "Colors": "vtkMRMLColorLogic",
    "Volumes": "vtkSlicerVolumesLogic",
    "Terminologies": "vtkSlicerTerminologiesModuleLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Tables": "vtkSlicerTablesLogic",
    "Plots": "vtkSlicerPlotsLogic",
    "CropVolume": "vtkSlicerCropVolumeLogic",
}
# PythonSlicer is a launcher: it starts the real interpreter and turns its crash into exit code 1. If the launcher is killed,
# its child goes on running.
_LAUNCHER = """#!{own}
import subprocess, sys
code = subprocess.run([*{command!r}, *sys.argv[1:]]).returncode
sys.exit(code if code >= 0 else 1)
"""


class Application(QtWidgets.QApplication):
    """The application object `slicer.app`."""

    startupCompleted = QtCore.Signal()

    def __init__(self, folder: Path) -> None:
        super().__init__(["Slicer"])
        self._folder = folder
        self.setApplicationName("Slicer")
        self.setOrganizationName("StandIn")
        QtCore.QSettings.setDefaultFormat(QtCore.QSettings.Format.IniFormat)
        QtCore.QSettings.setPath(
            QtCore.QSettings.Format.IniFormat, QtCore.QSettings.Scope.UserScope, str(folder / "settings")
        )

    temporaryPath = property(lambda self: str(self._folder / "temporary"))
    slicerUserSettingsFilePath = property(lambda self: str(self._folder / "settings" / "Slicer.ini"))

    def testingEnabled(self) -> bool:
        return True

    def layoutManager(self) -> None:
        return None

    def applicationLogic(self) -> Any:
        return slicer._application_logic

    def userSettings(self) -> Any:
        return qt.QSettings()


class Module:
    """A module as in `slicer.modules.x`, with path and logic."""

    def __init__(self, *, logic: Any = None, path: str = "") -> None:
        self._logic, self.path = logic, path

    def logic(self) -> Any:
        return self._logic


def start(*, engine_python: str | None = None) -> Application:
    """Start the application once, and return it; later calls return the same one.

    Args:
        engine_python: Interpreter with the engine's packages, which the launcher `PythonSlicer` on PATH starts.
    """
    if getattr(slicer, "app", None) is not None:
        return slicer.app
    folder = Path(tempfile.mkdtemp(prefix="slicer_stand_in_"))
    (folder / "temporary").mkdir()
    slicer.app = Application(folder)
    _start_scene()
    slicer.modules = types.ModuleType("slicer.modules")
    sys.modules["slicer.modules"] = slicer.modules
    for name, cls in _LOGICS.items():
        logic = getattr(slicer, cls)()
        logic.SetMRMLApplicationLogic(slicer._application_logic)
        quiet = vtk.vtkObject.GetGlobalWarningDisplay()
        if name == "Terminologies":  # before the scene: else imported segments get random names
            logic.SetModuleShareDirectory(str(folder / "temporary"))
            vtk.vtkObject.GlobalWarningDisplayOff()  # slicer-core ships no terminology files, and prints many warnings
        logic.SetMRMLScene(slicer.mrmlScene)
        vtk.vtkObject.SetGlobalWarningDisplay(quiet)
        slicer._application_logic.SetModuleLogic(name, logic)
        setattr(slicer.modules, name.lower(), Module(logic=logic))
    widgets.install()
    dicom.install()
    _provide("ScriptedLoadableModule", {name: getattr(scripted_module, name) for name in scripted_module.__all__})
    _provide("parameterNodeWrapper", {"parameterNodeWrapper": parameter_node.parameterNodeWrapper})
    _provide("i18n", {"tr": lambda text: text, "translate": lambda context, text: text})
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    os.environ["PATH"] = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    slicer._launcher = bin_folder / "PythonSlicer"
    if engine_python:
        use_engine(engine_python)
    return slicer.app


def use_engine(*command: str) -> None:
    """Let `PythonSlicer` start `command` with its arguments appended; without a command, remove `PythonSlicer`."""
    if not command:
        slicer._launcher.unlink(missing_ok=True)
        return
    slicer._launcher.write_text(_LAUNCHER.format(own=sys.executable, command=list(command)), encoding="utf-8")
    slicer._launcher.chmod(slicer._launcher.stat().st_mode | stat.S_IXUSR)


def _start_scene() -> None:
    """Make and connect the scene as qSlicerCoreApplication does; the data manager is needed to read .mrb files."""
    scene = slicer.mrmlScene = slicer.vtkMRMLScene()
    logic = slicer._application_logic = slicer.vtkSlicerApplicationLogic()
    logic.SetMRMLScene(scene)
    logic.SetTemporaryPath(slicer.app.temporaryPath)
    remote = slicer.vtkMRMLRemoteIOLogic()
    remote.GetCacheManager().SetRemoteCacheDirectory(slicer.app.temporaryPath)
    data = slicer.vtkDataIOManagerLogic()
    data.SetMRMLApplicationLogic(logic)
    data.SetAndObserveDataIOManager(remote.GetDataIOManager())
    logic.SetMRMLSceneDataIO(scene, remote, data)
    slicer._references = (remote, data)
    scene.AddObserver(scene.NodeAddedEvent, _add_to_hierarchy)
    scene.AddObserver(scene.NodeAboutToBeRemovedEvent, _remove_from_hierarchy)


@vtk.calldata_type(vtk.VTK_OBJECT)
def _add_to_hierarchy(scene: Any, _event: str, node: Any) -> None:
    """Add a data node to the subject hierarchy, as qSlicerSubjectHierarchyPluginLogic does."""
    shown = node.IsA("vtkMRMLDisplayableNode") or node.IsA("vtkMRMLTableNode")
    if shown and not node.GetHideFromEditors() and not scene.IsImporting():
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
        hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)


@vtk.calldata_type(vtk.VTK_OBJECT)
def _remove_from_hierarchy(scene: Any, _event: str, node: Any) -> None:
    """Remove a data node from the subject hierarchy."""
    if node.IsA("vtkMRMLDisplayableNode") or node.IsA("vtkMRMLTableNode"):
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
        item = hierarchy.GetItemByDataNode(node)
        if item and not scene.IsClosing():
            hierarchy.RemoveItem(item, False)


def _provide(name: str, content: dict[str, Any]) -> None:
    """Make a module `slicer.NAME` with this content."""
    module = types.ModuleType(f"slicer.{name}")
    for key, value in content.items():
        setattr(module, key, value)
    module.__all__ = list(content)  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    setattr(slicer, name, module)


def load_module(path: Path) -> tuple[Any, Any]:
    """Load a scripted module as Slicer does; return its widget object and the Qt widget that it fills."""
    name = path.stem
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    setattr(slicer.modules, name.lower(), Module(path=str(path)))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    description = scripted_module.Parent(str(path))
    setattr(slicer.modules, f"{name}Instance", getattr(module, name)(description))
    parent = slicer.qSlicerWidget()
    parent.setLayout(qt.QVBoxLayout())
    parent.setMRMLScene(slicer.mrmlScene)
    widget = getattr(module, f"{name}Widget")(parent)
    widget.setup()
    setattr(slicer.modules, f"{name}Widget", widget)
    logging.info("loaded %s", path)
    return widget, parent
