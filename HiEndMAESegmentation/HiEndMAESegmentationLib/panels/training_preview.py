"""Show a training run while it runs: its curves, and the labelled scan as the network segments it by now."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from HiEndMAECore.errors import HiEndMAEError
from HiEndMAESegmentationLib.scene import plots, results

_REDRAW_SECONDS = 1.0


class TrainingPreview:
    """Curves and preview of one training run.

    Args:
        volume: The scan that the engine segments for its previews.
        labels: The labels with value, name, colour and terminology.
    """

    def __init__(self, volume: Any, labels: Sequence[Mapping[str, Any]]) -> None:
        self._volume, self._labels = volume, labels
        self._curves: dict[str, list[tuple[float, float]]] = {"loss": []}
        self._draw_time = 0.0
        self._segmentation: Any = None

    def handle_event(self, event: dict[str, Any]) -> None:
        """Show the loss of a step, a metric that has a step, or a preview."""
        if event["event"] == "progress" and isinstance(event.get("loss"), int | float):
            self._curves["loss"].append((event["step"], event["loss"]))
            self._draw(immediately=event["step"] == event["total"])
        point = (event.get("step"), event.get("value"))
        if event["event"] == "metric" and all(isinstance(number, int | float) for number in point):
            self._curves.setdefault(event["name"], []).append(point)
            self._draw(immediately=True)
        if event["event"] == "preview" and str(event["path"]).endswith(".nii"):
            self._show(Path(event["path"]))

    def remove(self) -> None:
        """Remove the preview from the scene; the curves stay."""
        if self._segmentation is not None and slicer.mrmlScene.IsNodePresent(self._segmentation):
            slicer.mrmlScene.RemoveNode(self._segmentation)
        self._segmentation = None

    def _draw(self, *, immediately: bool) -> None:
        """Draw the curves, unless that was done less than `_REDRAW_SECONDS` ago."""
        if immediately or time.monotonic() - self._draw_time > _REDRAW_SECONDS:
            self._draw_time = time.monotonic()
            plots.show_curves(self._curves)

    def _show(self, path: Path) -> None:
        """Replace the preview by that of the label map at `path`."""
        self.remove()
        if slicer.mrmlScene.IsNodePresent(self._volume):
            try:
                self._segmentation = results.show_preview(path, self._volume, labels=self._labels, name=_("Preview"))
            except (HiEndMAEError, OSError, ValueError):
                return  # the engine is replacing the file; training goes on without this preview
