"""What is to be seen of a job that learns: the curves, and the labelled scan as the network sees it by now."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from HiEndMAECore.errors import HiEndMAEError
from HiEndMAESegmentationLib.scene import nodes as scene

_CURVE_EVERY = 1.0  # seconds


class Watching:
    """Hears the events of one job. volume: the scan that the engine looks at; labels: names and colours by value."""

    def __init__(self, volume: Any, labels: Sequence[Mapping[str, Any]]) -> None:
        self._volume, self._labels = volume, labels
        self._curves: dict[str, list[tuple[float, float]]] = {"loss": []}
        self._drawn = 0.0
        self._preview: Any = None

    def hear(self, event: dict[str, Any]) -> None:
        """A step's loss, a number that the engine took at a step (its agreement with the labels, say), a preview."""
        if event["event"] == "progress" and isinstance(event.get("loss"), int | float):
            self._curves["loss"].append((event["step"], event["loss"]))
            self._draw(at_once=event["step"] == event["total"])
        point = (event.get("step"), event.get("value"))
        if event["event"] == "metric" and all(isinstance(number, int | float) for number in point):
            self._curves.setdefault(event["name"], []).append(point)
            self._draw(at_once=True)
        if event["event"] == "preview" and str(event["path"]).endswith(".nii"):
            self._show(Path(event["path"]))

    def end(self) -> None:
        """The job has ended: the preview goes, the curves stay."""
        if self._preview is not None and slicer.mrmlScene.IsNodePresent(self._preview):
            slicer.mrmlScene.RemoveNode(self._preview)
        self._preview = None

    def _draw(self, *, at_once: bool) -> None:
        if at_once or time.monotonic() - self._drawn > _CURVE_EVERY:
            self._drawn = time.monotonic()
            scene.show_curves(self._curves)

    def _show(self, path: Path) -> None:
        self.end()
        if slicer.mrmlScene.IsNodePresent(self._volume):
            try:
                self._preview = scene.show_preview(path, self._volume, labels=self._labels, name=_("Preview"))
            except (HiEndMAEError, OSError, ValueError):
                return  # the engine is writing the next one; learning goes on without this one
