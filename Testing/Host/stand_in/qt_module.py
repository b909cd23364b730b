"""The module `qt`: PySide6 with the interface of PythonQt, and stricter than PythonQt.

Like Slicer's PythonQt:
    a Qt property is a plain attribute to read and write     label.text = "a"; button.enabled; combo.currentIndex = 1
    its setter and `isX()` getter can be called as well      button.setEnabled(True); button.isEnabled()
    signals are connected by their C++ signature             button.connect("clicked()", f); button.disconnect("clicked()", f)
    `name` is the object name, `className()` the C++ class

Where PythonQt stays silent, this module raises: an attribute that the class does not have (`AttributeError`), a signal
that the class does not have (`RuntimeError`), and in a .ui file an unknown class, property or signal (`RuntimeError`).
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import sys
import types
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any, ClassVar

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import shiboken6
from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

_VIRTUAL = {"sizeHint", "minimumSizeHint"}  # C++ calls these, and needs a method, not a property
_NOT_IN_PYTHONQT = {"Signal", "SignalInstance", "Slot", "Property", "ClassInfo", "QUiLoader"}
_SIGNATURE = re.compile(r"^\s*(\w+)\s*\((.*)\)\s*$")

qt = types.ModuleType("qt", __doc__)


def _add_properties(cls: type) -> None:
    """Turn the Qt properties that `cls` itself declares into Python properties."""
    meta = cls.staticMetaObject  # type: ignore[attr-defined]
    for index in range(meta.propertyOffset(), meta.propertyCount()):
        declared = meta.property(index)
        name = declared.name()
        if name in _VIRTUAL:
            continue
        capital = name[0].upper() + name[1:]
        getters = (getattr(cls, candidate, None) for candidate in (f"is{capital}", name, f"has{capital}"))
        getter = next((one for one in getters if callable(one)), None)
        setter = getattr(cls, f"set{capital}", None)
        setattr(cls, name, _property(name, getter, setter, writable=declared.isWritable()))


def _property(name: str, getter: Any, setter: Any, *, writable: bool) -> property:
    static = types.BuiltinFunctionType

    def read(self: Any) -> Any:
        if getter is None:
            return _find(self, "property")(name)
        return getter() if isinstance(getter, static) else getter(self)

    def write(self: Any, value: Any) -> None:
        if setter is None:
            _find(self, "setProperty")(name, value)
        elif isinstance(setter, static):
            setter(value)
        else:
            setter(self, value)

    return property(read, write if writable else None)


def parse_signature(signature: str) -> tuple[str, int]:
    """Return ('currentIndexChanged', 1) for 'currentIndexChanged(int)'; raise `RuntimeError` for anything else."""
    match = _SIGNATURE.match(signature)
    if not match:
        raise RuntimeError(f"{signature!r} is no signal signature such as 'clicked()'")
    return match[1], len([part for part in match[2].split(",") if part.strip()])


def _require_signal(self: Any, signature: str) -> tuple[str, int]:
    """Return name and number of arguments of the signal with exactly this C++ signature.

    Stand-ins declare their C++ signatures in `SIGNATURES`, because a Python signal cannot name `vtkMRMLNode*`.
    """
    name, count = parse_signature(signature)
    plain = "".join(signature.split())
    known = plain in getattr(type(self), "SIGNATURES", ()) or type(self).staticMetaObject.indexOfSignal(plain) >= 0
    if not known:
        raise RuntimeError(f"{class_name(self)} has no signal {signature}")
    return name, count


def _accepted(function: Callable[..., Any], offered: int) -> int:
    """Return how many of the `offered` arguments the function accepts."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return offered
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return offered
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return min(offered, sum(parameter.kind in kinds for parameter in parameters))


def _connect(self: Any, signature: Any, *target: Any) -> Any:
    if not isinstance(signature, str) or signature[:1].isdigit():  # PySide calls it from SignalInstance.connect
        return _find(self, "connect")(signature, *target)
    name, count = _require_signal(self, signature)
    function = target[0] if len(target) == 1 else getattr(target[0], parse_signature(target[1])[0])
    if not callable(function):
        raise RuntimeError(f"{function!r} cannot be called by {signature}")
    taken = _accepted(function, count)
    # PySide chooses the overload by the number of the slot's parameters: a lambda with exactly that number.
    names = ", ".join(f"a{index}" for index in range(count))
    slot = eval(
        f"lambda {names}: function(*({names}{',' if count else ''})[:taken])", {"function": function, "taken": taken}
    )
    self.__dict__.setdefault("_connections", []).append((name, function, slot))
    _find(self, name).connect(slot)
    return True


def _disconnect(self: Any, signature: Any, *target: Any) -> Any:
    if not isinstance(signature, str) or signature[:1].isdigit():
        return _find(self, "disconnect")(signature, *target)
    name, _ = _require_signal(self, signature)
    connections = self.__dict__.setdefault("_connections", [])
    for connection in [entry for entry in connections if entry[0] == name and (not target or entry[1] == target[0])]:
        _find(self, name).disconnect(connection[2])
        connections.remove(connection)
    return True


_find = QtCore.QObject.__getattribute__


def _get_attribute(self: Any, name: str) -> Any:
    if name == "connect":  # PySide's attribute access does not allow to replace these two
        return functools.partial(_connect, self)
    if name == "disconnect":
        return functools.partial(_disconnect, self)
    return _find(self, name)


def _set_attribute(self: Any, name: str, value: Any) -> None:
    cls = type(self)
    attribute = inspect.getattr_static(cls, name, None)
    if isinstance(value, QtCore.SignalInstance):  # PySide stores it in the object on first use
        self.__dict__[name] = value
    elif isinstance(attribute, property):
        if attribute.fset is None:
            raise AttributeError(f"{name!r} of {class_name(self)} is read-only")
        attribute.fset(self, value)
    elif isinstance(attribute, QtCore.Property):
        _find(self, "setProperty")(name, value)
    elif attribute is None and (cls.__module__.partition(".")[0] == "PySide6" or not name.startswith("_")):
        raise AttributeError(f"{class_name(self)} has no property {name!r}")
    elif callable(attribute):
        raise AttributeError(f"{name!r} is a method of {class_name(self)}, not a property")
    else:
        self.__dict__[name] = value


def class_name(self: Any) -> str:
    """Return the name of the C++ class, such as 'QPushButton'."""
    return type(self).__name__


def _first(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)[0]


def _build() -> None:
    classes = []
    for module in (QtCore, QtGui, QtWidgets):
        for name in dir(module):
            if name.startswith("_") or name in _NOT_IN_PYTHONQT:
                continue
            value = getattr(module, name)
            setattr(qt, name, value)
            if isinstance(value, type) and issubclass(value, QtCore.QObject):
                classes.append(value)
    for cls in sorted(classes, key=lambda cls: len(cls.__mro__)):
        _add_properties(cls)
    for name in ("getOpenFileName", "getSaveFileName"):  # PythonQt returns the name alone
        dialog = getattr(QtWidgets.QFileDialog, name)
        setattr(QtWidgets.QFileDialog, name, staticmethod(functools.partial(_first, dialog)))
    base: Any = QtCore.QObject
    base.name = base.objectName
    base.className = class_name
    base.delete = lambda self: shiboken6.delete(self)
    base.__getattribute__ = _get_attribute
    for cls in classes:  # Shiboken's types do not inherit this one
        cls.__setattr__ = _set_attribute


class QUiLoader(QtUiTools.QUiLoader):
    """A loader of .ui files with the stand-ins of `CUSTOM`; it raises `RuntimeError` for anything unknown."""

    CUSTOM: ClassVar[dict[str, type]] = {}

    def createWidget(self, cls: str, parent: Any = None, name: str = "") -> Any:
        custom = self.CUSTOM.get(cls)
        if custom is None:
            return super().createWidget(cls, parent, name)
        widget = custom(parent)
        widget.setObjectName(name)
        return widget

    def load(self, device: Any, parent: Any = None) -> Any:
        root = ElementTree.fromstring(bytes(device.readAll().data()))
        self._check(root)
        connection_list = root.find("connections")
        connections = []
        if connection_list is not None:  # Python classes have no C++ slots, so they are connected below
            connections = [{part.tag: part.text or "" for part in entry} for entry in connection_list]
            connection_list.clear()
        buffer = QtCore.QBuffer()
        buffer.setData(ElementTree.tostring(root))
        buffer.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
        widget = super().load(buffer, parent)
        named = {child.name: child for child in (widget, *widget.findChildren(QtCore.QObject))}
        for entry in connections:
            slot, _ = parse_signature(entry["slot"])
            named[entry["sender"]].connect(entry["signal"], getattr(named[entry["receiver"]], slot))
        return widget

    def _check(self, root: ElementTree.Element) -> None:
        for element in root.iter("widget"):
            cls, name = element.get("class", ""), element.get("name", "")
            known = self.CUSTOM.get(cls) or (getattr(QtWidgets, cls, None) if cls.startswith("Q") else None)
            if known is None:
                raise RuntimeError(f"The .ui file uses {cls} ({name}), which this stand-in does not support")
            for given in element.findall("property"):
                if given.get("stdset") == "0" and (given.get("name") or "").startswith("Slicer"):
                    continue
                if known.staticMetaObject.indexOfProperty(given.get("name", "")) < 0:
                    raise RuntimeError(f"{cls} ({name}) in the .ui file has no property {given.get('name')!r}")


_build()
qt.QUiLoader = QUiLoader  # type: ignore[attr-defined]
sys.modules["qt"] = qt
