"""The ctk and qMRML widgets that the panels use, with the names, properties and signals of the real ones."""

from __future__ import annotations

import sys
import types
from typing import Any

import shiboken6
import slicer
from PySide6.QtCore import Property, QRect, QSize, Qt, Signal
from PySide6.QtGui import QPainter

from .qt_module import QUiLoader, qt

ctk = types.ModuleType("ctk", __doc__)


def _value(name: str, kind: Any, default: Any, then: str = "") -> Any:
    """Return a Qt property that stores its value, and calls the method `then` after a change."""
    store = f"_value_{name}"

    def write(self: Any, value: Any) -> None:
        self.__dict__[store] = value
        if then:
            getattr(self, then)()

    return Property(kind, lambda self: self.__dict__.get(store, default), write)


class ctkCollapsibleButton(qt.QWidget):
    """A button that opens and closes the section below it."""

    toggled = Signal(bool)
    clicked = Signal(bool)
    contentsCollapsed = Signal(bool)
    HEAD = 26

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._text, self._collapsed = "", False
        self.setContentsMargins(0, self.HEAD, 0, 0)

    def _set_text(self, text: str) -> None:
        self._text = text
        self.update()

    def _set_collapsed(self, collapsed: bool) -> None:
        if collapsed == self._collapsed:
            return
        self._collapsed = collapsed
        for child in self.children():
            if isinstance(child, qt.QWidget):
                child.setVisible(not collapsed)
        self.setMaximumHeight(self.HEAD if collapsed else 16777215)
        self.toggled.emit(not collapsed)
        self.contentsCollapsed.emit(collapsed)

    text = Property(str, lambda self: self._text, _set_text)
    collapsed = Property(bool, lambda self: self._collapsed, _set_collapsed)
    checked = Property(bool, lambda self: not self._collapsed, lambda self, on: self._set_collapsed(not on))

    def click(self) -> None:
        self._set_collapsed(not self._collapsed)
        self.clicked.emit(not self._collapsed)

    def mousePressEvent(self, event: Any) -> None:
        if event.position().y() < self.HEAD:
            self.click()

    def sizeHint(self) -> QSize:
        return QSize(200, self.HEAD) if self._collapsed else super().sizeHint()

    def paintEvent(self, event: Any) -> None:
        painter = QPainter(self)
        head = QRect(0, 0, self.width, self.HEAD - 3)
        painter.setPen(self.palette.mid().color())
        painter.setBrush(self.palette.button())
        painter.drawRoundedRect(head.adjusted(0, 0, -1, 0), 3, 3)
        painter.setPen(self.palette.buttonText().color())
        arrow = "▸" if self._collapsed else "▾"
        painter.drawText(head.adjusted(8, 0, 0, 0), Qt.AlignmentFlag.AlignVCenter, f"{arrow}  {self._text}")
        painter.end()


class ctkMessageBox(qt.QMessageBox):
    """The message box of `slicer.util`."""


class qMRMLWidget(qt.QWidget):
    """A widget with a reference to the scene; the root of every .ui file."""

    mrmlSceneChanged = Signal(object)
    SIGNATURES = ("mrmlSceneChanged(vtkMRMLScene*)",)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._scene: Any = None

    def mrmlScene(self) -> Any:
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        self._scene = scene
        self.mrmlSceneChanged.emit(scene)


class qSlicerWidget(qMRMLWidget):
    """The parent of a module's widget; `isEntered` states whether the module is the one that is shown."""

    isEntered = _value("isEntered", bool, True)


class qMRMLNodeComboBox(qt.QWidget):
    """A combo box of nodes that follows the scene."""

    currentNodeChanged = Signal(object)
    currentNodeIDChanged = Signal(str)
    SIGNATURES = ("currentNodeChanged(vtkMRMLNode*)", "currentNodeChanged(bool)", "currentNodeIDChanged(QString)")
    nodeTypes = _value("nodeTypes", "QStringList", [], "_refill")
    noneEnabled = _value("noneEnabled", bool, False, "_refill")
    noneDisplay = _value("noneDisplay", str, "None", "_refill")
    showHidden = _value("showHidden", bool, False, "_refill")
    showChildNodeTypes = _value("showChildNodeTypes", bool, True, "_refill")
    addEnabled = _value("addEnabled", bool, True)
    removeEnabled = _value("removeEnabled", bool, True)
    renameEnabled = _value("renameEnabled", bool, False)
    editEnabled = _value("editEnabled", bool, False)
    selectNodeUponCreation = _value("selectNodeUponCreation", bool, True)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._scene: Any = None
        self._current: Any = None
        self._observed: list[tuple[Any, int]] = []
        self._items: list[Any] = []
        self._filling = False
        self._combo = qt.QComboBox()
        layout = qt.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._combo)
        self._combo.connect("currentIndexChanged(int)", self._picked)

    def mrmlScene(self) -> Any:
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        for caller, tag in self._observed:
            caller.RemoveObserver(tag)
        self._observed, self._scene = [], scene
        if scene:
            for event in (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndCloseEvent, scene.EndImportEvent):
                self._observed.append((scene, scene.AddObserver(event, self._scene_changed)))
        self._refill()

    def _scene_changed(self, *_: Any) -> None:
        if shiboken6.isValid(self):  # the C++ widget may have been deleted with its parent
            self._refill()

    def _nodes(self) -> list[Any]:
        if not self._scene:
            return []
        nodes = [self._scene.GetNthNode(index) for index in range(self._scene.GetNumberOfNodes())]

        def shown(node: Any) -> bool:
            fits = node.IsA if self.showChildNodeTypes else lambda kind: node.GetClassName() == kind
            return any(fits(kind) for kind in self.nodeTypes) and (self.showHidden or not node.GetHideFromEditors())

        return [node for node in nodes if shown(node)]

    def _refill(self) -> None:
        self._filling = True
        nodes = self._nodes()
        self._items = [None, *nodes] if self.noneEnabled else nodes
        self._combo.clear()
        for node in self._items:
            self._combo.addItem(self.noneDisplay if node is None else node.GetName())
        self._filling = False
        current = self._current if self._current in nodes else None
        if current is None and not self.noneEnabled and nodes:
            current = nodes[0]
        self.setCurrentNode(current)

    def _picked(self, index: int) -> None:
        if not self._filling and 0 <= index < len(self._items):
            self.setCurrentNode(self._items[index])

    def setCurrentNode(self, node: Any) -> None:
        if isinstance(node, str):
            node = self._scene.GetNodeByID(node) if self._scene else None
        if node is not None and node not in self._items:
            node = None
        self._filling = True
        self._combo.setCurrentIndex(self._items.index(node) if node in self._items else -1)
        self._filling = False
        if node is not self._current:
            self._current = node
            self.currentNodeChanged.emit(node)
            self.currentNodeIDChanged.emit(node.GetID() if node else "")

    def currentNode(self) -> Any:
        return self._current

    def setCurrentNodeID(self, node_id: str) -> None:
        self.setCurrentNode(node_id or None)

    currentNodeID = Property(
        str, lambda self: self._current.GetID() if self._current else "", lambda self, node: self.setCurrentNodeID(node)
    )

    def nodeCount(self) -> int:
        return len(self._nodes())


def install() -> None:
    """Make the widgets available as `ctk.X`, as `slicer.qX` and in .ui files."""
    for cls in (ctkCollapsibleButton, ctkMessageBox):
        setattr(ctk, cls.__name__, cls)
    for cls in (qMRMLWidget, qSlicerWidget, qMRMLNodeComboBox):
        setattr(slicer, cls.__name__, cls)
    for cls in (ctkCollapsibleButton, qMRMLWidget, qSlicerWidget, qMRMLNodeComboBox):
        QUiLoader.CUSTOM[cls.__name__] = cls
    sys.modules["ctk"] = ctk
