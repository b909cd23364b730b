"""Helpers of the module's tests: names and colors, drawing segments, waiting for Qt, listing processes."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = {1: "Leber", 2: "Milz (ü)", 3: "right kidney"}
COLORS = {1: (221, 130, 80), 2: (176, 112, 204), 3: (112, 196, 108)}
LIVER = (
    "Segmentation category and type - 3D Slicer General Anatomy list~SCT^123037004^Anatomical Structure~"
    "SCT^10200004^Liver~^^~Anatomic codes - DICOM master list~^^~^^"
)
# Index ranges (k, j, i) on the grid of the fixture `oblique`
BOX, OTHER = (slice(2, 5),) * 3, (slice(6, 9),) * 3
NOTHING = (slice(0, 0),) * 3
# Parts of a model.json, by test name, that cannot be used: (path, value)
BAD_VALUES = {
    "name": ("name", 5),
    "training null": ("training", None),
    "training list": ("training", [1]),
    "labels null": ("labels", None),
    "label text": ("labels", ["liver"]),
    "color text": ("labels[0].colour", "red"),
    "color short": ("labels[0].colour", [1, 2]),
    "color large": ("labels[0].colour", [1, 2, 256]),
    "terminology list": ("labels[0].terminology", ["SCT", "10200004"]),
    "terminology code": ("labels[0].terminology.type", "Liver"),
    "normalization": ("preparation.normalisation.low", "dark"),
    "architecture null": ("architecture", None),
    "spacing null": ("preparation.spacing", None),
    "newer format": ("format_version", 99),
}


def draw_segments(volume: Any, labels: Any, names: dict[int, str] = NAMES) -> Any:
    """Return a segmentation of `volume` as the Segment Editor makes it, with one segment for each named label value."""
    import numpy as np
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"Labels of {volume.GetName()}")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    content = node.GetSegmentation()
    for value, name in names.items():
        color = [part / 255 for part in COLORS.get(value, (90, 90, 90))]
        segment_id = content.AddEmptySegment("", name, color)
        mask = (labels == value).astype(np.uint8)
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, segment_id, volume)
        if value == 1:
            content.GetSegment(segment_id).SetTag("TerminologyEntry", LIVER)
    return node


class MainThreadTimer:
    """A timer that measures how long the main thread is blocked.

    `longest` is the longest CPU time in seconds between two ticks, so that the load of other programs does not count.
    `mean_gap` is the mean time in seconds between two ticks.
    """

    EVERY = 5  # ms

    def __enter__(self) -> MainThreadTimer:
        import qt

        self._ticks: list[float] = []
        self._start_time = time.monotonic()
        self._timer = qt.QTimer()
        self._timer.connect("timeout()", lambda: self._ticks.append(time.thread_time()))
        self._timer.start(self.EVERY)
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.stop()
        self.longest = max(later - earlier for earlier, later in itertools.pairwise(self._ticks))
        self.mean_gap = (time.monotonic() - self._start_time) / len(self._ticks)


def wait(until: Callable[[], Any], seconds: float = 300.0) -> None:
    """Process Qt events until `until()` is true; fail after `seconds`."""
    import slicer

    end = time.monotonic() + seconds
    while not until():
        slicer.app.processEvents()
        time.sleep(0.005)
        assert time.monotonic() < end, f"still waiting after {seconds} s"
    slicer.app.processEvents()


def group_of(pid: int) -> list[int]:
    """Return the running processes of the process group `pid` (Linux)."""
    processes = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == pid and fields[0] != "Z":
            processes.append(int(stat.parent.name))
    return processes


def message_of(panel: Any) -> str:
    """Return the message that the panel shows."""
    return panel.strip.ui.messageLabel.text


def segmentation_of(volume: Any, masks: dict[str, Any]) -> Any:
    """Return a segmentation on the grid of `oblique`, with one segment for each named index range."""
    import numpy as np
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Segmentation")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    for number, (name, region) in enumerate(masks.items()):
        mask = np.zeros((10, 12, 14), np.uint8)
        mask[region] = 1
        segment_id = node.GetSegmentation().AddEmptySegment("", name, [0.1 * number, 0.5, 1.0])
        if mask.any():
            slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, segment_id, volume)
    return node


def ids_of(segmentation: Any) -> list[str]:
    """Return the IDs of the segments."""
    from HiEndMAESegmentationLib.scene import nodes

    return [segment.id for segment in nodes.segments_of(segmentation)]


def add_model(library: Any, shared_model: Path, key: str, path: str, value: Any) -> Path:
    """Put a model into the library whose description has `value` at `path`, such as `labels[0].colour`."""
    folder = library.folder / key
    shutil.unpack_archive(shared_model, folder)
    file = folder / "model.json"
    description = json.loads(file.read_text(encoding="utf-8"))
    parent, keys = description, [int(part) if part.isdigit() else part for part in re.findall(r"\w+", path)]
    for part in keys[:-1]:
        parent = parent[part]
    parent[keys[-1]] = value
    file.write_text(json.dumps(description), encoding="utf-8")
    return folder


def add_model_without_atlas(library: Any, shared_model: Path) -> str:
    """Put a model into the library that keeps no atlas, and return its key."""
    from HiEndMAECore.models import folder

    folder.copy_model(shared_model, library.folder / "no-atlas", keep_atlas=False)
    return "no-atlas"
