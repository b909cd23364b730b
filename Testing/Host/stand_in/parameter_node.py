"""The decorator `slicer.parameterNodeWrapper`: a class of typed parameters that a vtkMRMLScriptedModuleNode stores.

The interface is that of the real one. These types are supported: str, int, float, bool, a MRML node class, and lists of str
or of node classes. These widgets can be connected by the dynamic property `SlicerParameterName`: QCheckBox, QLineEdit,
QSpinBox and qMRMLNodeComboBox. Anything else raises.
"""

from __future__ import annotations

import json
import typing
from typing import Any

import slicer

from .qt_module import qt


def parameterNodeWrapper(cls: type) -> type:
    """Turn the annotations of a class into parameters that the node given to its constructor stores."""
    kinds = typing.get_type_hints(cls, include_extras=True)
    defaults = {name: getattr(cls, name, None) for name in kinds}

    def __init__(self: Any, node: Any, prefix: str | None = None) -> None:
        object.__setattr__(self, "parameterNode", node)
        object.__setattr__(self, "_guis", {})

    def __setattr__(self: Any, name: str, value: Any) -> None:
        if name not in kinds:
            raise AttributeError(f"{cls.__name__} has no parameter {name!r}")
        getattr(type(self), name).__set__(self, value)

    members: dict[str, Any] = {name: _parameter(name, kind, defaults[name]) for name, kind in kinds.items()}
    members |= {"__init__": __init__, "__setattr__": __setattr__}
    members |= {"connectGui": _connect_gui, "disconnectGui": _disconnect_gui, "allParameters": kinds}
    members |= {"AddObserver": lambda self, *args: self.parameterNode.AddObserver(*args)}
    members |= {"RemoveObserver": lambda self, tag: self.parameterNode.RemoveObserver(tag)}
    others = {key: value for key, value in vars(cls).items() if key not in kinds and not key.startswith("__")}
    return type(cls.__name__, (), {**others, **members, "__doc__": cls.__doc__, "__module__": cls.__module__})


def _is_node(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, slicer.vtkMRMLNode)


def _parameter(name: str, kind: Any, default: Any) -> property:
    inner = typing.get_args(kind)[0] if typing.get_origin(kind) is list else None
    if _is_node(kind):
        return property(
            lambda self: self.parameterNode.GetNodeReference(name),
            lambda self, node: self.parameterNode.SetNodeReferenceID(name, node.GetID() if node else None),
        )
    if inner is not None and _is_node(inner):
        return property(
            lambda self: _nodes(self.parameterNode, name), lambda self, nodes: _set_nodes(self, name, nodes)
        )
    if kind not in (str, int, float, bool) and inner is not str:
        raise TypeError(f"the stand-in supports no parameter of type {kind!r} ({name})")
    start = [] if inner is str and default is None else (kind() if default is None else default)

    def read(self: Any) -> Any:
        text = self.parameterNode.GetParameter(name)
        return json.loads(text) if text else (list(start) if isinstance(start, list) else start)

    def write(self: Any, value: Any) -> None:
        expected = list if inner is str else kind
        if not isinstance(value, expected) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{name} must be {expected.__name__}, not {value!r}")
        self.parameterNode.SetParameter(name, json.dumps(value))

    return property(read, write)


# As in Slicer, a list of nodes is a length and one reference for each element, which is None after its node was deleted.
def _nodes(node: Any, role: str) -> list[Any]:
    return [node.GetNodeReference(f"{role}.{index}") for index in range(int(node.GetParameter(f"{role}.length") or 0))]


def _set_nodes(self: Any, role: str, nodes: Any) -> None:
    changing = self.parameterNode.StartModify()
    for index in range(int(self.parameterNode.GetParameter(f"{role}.length") or 0)):
        self.parameterNode.SetNodeReferenceID(f"{role}.{index}", None)
    for index, node in enumerate(nodes):
        self.parameterNode.SetNodeReferenceID(f"{role}.{index}", node.GetID() if node is not None else None)
    self.parameterNode.SetParameter(f"{role}.length", str(len(nodes)))
    self.parameterNode.EndModify(changing)


# (signal, read, write) of the widgets that have a connector
_CONNECTORS = {
    "QCheckBox": ("toggled(bool)", lambda w: w.checked, lambda w, value: w.setChecked(value)),
    "QLineEdit": ("textChanged(QString)", lambda w: w.text, lambda w, value: w.setText(value)),
    "QSpinBox": ("valueChanged(int)", lambda w: w.value, lambda w, value: w.setValue(value)),
    "qMRMLNodeComboBox": (
        "currentNodeChanged(vtkMRMLNode*)",
        lambda w: w.currentNode(),
        lambda w, node: w.setCurrentNode(node),
    ),
}


def _connect_gui(self: Any, gui: Any) -> int:
    """Connect every widget of `slicer.util.childWidgetVariables` that has a `SlicerParameterName` to its parameter.

    Returns:
        The tag for `disconnectGui`.
    """
    connected = []
    for child in [value for value in vars(gui).values() if isinstance(value, qt.QWidget)]:
        name = child.property("SlicerParameterName")
        if not name:
            continue
        if name not in self.allParameters:
            raise RuntimeError(f"{child.name} shows the parameter {name!r}, which does not exist")
        if child.className() not in _CONNECTORS:
            raise RuntimeError(f"there is no connector for a {child.className()} ({child.name})")
        connected.append((child, name, *_CONNECTORS[child.className()]))
    removers = []

    def show(*_: Any) -> None:
        for child, name, _signal, read, write in connected:
            value = getattr(self, name)
            if read(child) != value:
                write(child, value)

    show()
    for child, name, signal, read, _write in connected:

        def store(child: Any = child, name: str = name, read: Any = read) -> None:
            if getattr(self, name) != read(child):
                setattr(self, name, read(child))

        slot = _without_arguments(store)
        child.connect(signal, slot)
        removers.append((child, signal, slot))
        slot()
    tag = self.parameterNode.AddObserver("ModifiedEvent", show)
    self._guis[tag] = removers
    return tag


def _without_arguments(function: Any) -> Any:
    return lambda: function()


def _disconnect_gui(self: Any, tag: int | None) -> None:
    for observer in list(self._guis) if tag is None else [tag]:
        self.parameterNode.RemoveObserver(observer)
        for child, signal, slot in self._guis.pop(observer):
            child.disconnect(signal, slot)
