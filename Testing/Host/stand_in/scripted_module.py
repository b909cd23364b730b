"""The module `slicer.ScriptedLoadableModule`: the four base classes of a scripted module, as far as modules use them."""

from __future__ import annotations

import logging
import os
import unittest
from typing import Any

import slicer

from .qt_module import qt

__all__ = [
    "ScriptedLoadableModule",
    "ScriptedLoadableModuleLogic",
    "ScriptedLoadableModuleTest",
    "ScriptedLoadableModuleWidget",
]


class Parent:
    """The object that Slicer gives to a module's constructor; an unknown attribute is refused."""

    __slots__ = (
        "acknowledgementText",
        "associatedNodeTypes",
        "categories",
        "contributors",
        "dependencies",
        "helpText",
        "hidden",
        "icon",
        "path",
        "title",
    )

    def __init__(self, path: str) -> None:
        self.path = path


class ScriptedLoadableModule:
    """Title, category and help of a module."""

    def __init__(self, parent: Parent) -> None:
        self.parent = parent
        self.moduleName = type(self).__name__
        parent.title, parent.categories, parent.dependencies, parent.contributors = "", [], [], []
        parent.helpText, parent.acknowledgementText, parent.hidden = "", "", False

    def resourcePath(self, filename: str) -> str:
        return os.path.join(os.path.dirname(self.parent.path), "Resources", filename)


class ScriptedLoadableModuleWidget:
    """The module's panel."""

    def __init__(self, parent: Any = None) -> None:
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = False
        self.parent = parent
        self.layout = parent.layout()
        self.logic: Any = None

    def resourcePath(self, filename: str) -> str:
        return os.path.join(os.path.dirname(slicer.util.modulePath(self.moduleName)), "Resources", filename)

    def setup(self) -> None:
        """Make the panel; modules override it."""

    def cleanup(self) -> None:
        """Called when the application ends or the module is reloaded."""

    def enter(self) -> None:
        """Called when the user opens the module."""

    def exit(self) -> None:
        """Called when the user leaves the module."""


class ScriptedLoadableModuleLogic:
    """The module's logic, with one parameter node for each scene."""

    def __init__(self, parent: Any = None) -> None:
        self.moduleName = type(self).__name__.removesuffix("Logic")
        self.isSingletonParameterNode = True

    def getParameterNode(self) -> Any:
        scene = slicer.mrmlScene
        node = scene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
        if node is None:
            node = scene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
            node.UnRegister(None)
            node.SetSingletonTag(self.moduleName)
            node.SetAttribute("ModuleName", self.moduleName)
            node.SetName(self.moduleName)
            node = scene.AddNode(node)
        return node


class ScriptedLoadableModuleTest(unittest.TestCase):
    """The test of a module, which the application runs."""

    def delayDisplay(self, message: str, *_: Any, **__: Any) -> None:
        logging.info(message)
        qt.QApplication.processEvents()
