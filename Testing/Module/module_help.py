"""What the tests of the module share: names and colours, drawing segments, waiting for Qt, looking at processes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = {1: "Leber", 2: "Milz (ü)", 3: "right kidney"}
COLOURS = {1: (221, 130, 80), 2: (176, 112, 204), 3: (112, 196, 108)}
LIVER = (
    "Segmentation category and type - 3D Slicer General Anatomy list~SCT^123037004^Anatomical Structure~"
    "SCT^10200004^Liver~^^~Anatomic codes - DICOM master list~^^~^^"
)


def draw_segments(volume: Any, labels: Any, names: dict[int, str] = NAMES) -> Any:
    """A segmentation of `volume` as the Segment Editor makes it: one segment for each named label value."""
    import numpy as np
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"Labels of {volume.GetName()}")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    content = node.GetSegmentation()
    for value, name in names.items():
        colour = [part / 255 for part in COLOURS.get(value, (90, 90, 90))]
        segment_id = content.AddEmptySegment("", name, colour)
        mask = (labels == value).astype(np.uint8)
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, segment_id, volume)
        if value == 1:
            content.GetSegment(segment_id).SetTag("TerminologyEntry", LIVER)
    return node


class Heart:
    """A timer on the main thread. longest: seconds that the main thread computed between two beats; what other programs
    keep it waiting for does not count. mean_gap: seconds by the clock between two beats."""

    EVERY = 5  # ms

    def __enter__(self) -> Heart:
        import qt

        self._beats: list[float] = []
        self._began = time.monotonic()
        self._timer = qt.QTimer()
        self._timer.connect("timeout()", lambda: self._beats.append(time.thread_time()))
        self._timer.start(self.EVERY)
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.stop()
        self.longest = max(later - earlier for earlier, later in itertools.pairwise(self._beats))
        self.mean_gap = (time.monotonic() - self._began) / len(self._beats)


def wait(until: Callable[[], Any], seconds: float = 300.0) -> None:
    """Let Qt work until `until()` holds; fails after `seconds`."""
    import slicer

    end = time.monotonic() + seconds
    while not until():
        slicer.app.processEvents()
        time.sleep(0.005)
        assert time.monotonic() < end, "it did not happen in time"
    slicer.app.processEvents()


def group_of(pid: int) -> list[int]:
    """Living processes of the process group `pid` (Linux)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found
