"""The list of slices to review first: where a result is most uncertain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from HiEndMAESegmentationLib.scene.results import (
    ReviewSlice,
    review_slice,
    show_in_slice_views,
    show_uncertainty_map,
)

from .base import fit_height


@dataclass(frozen=True)
class ReviewEntry:
    """A slice of a scan to review, and the scan's uncertainty map, or None."""

    volume: Any
    overlay: Any
    slice: ReviewSlice


class ReviewList:
    """The list widget with its label; a click on an entry shows the slice.

    Args:
        label: The label above the list.
        view: The list widget.
    """

    def __init__(self, label: Any, view: Any) -> None:
        self.entries: list[ReviewEntry] = []
        self._label, self._view = label, view
        self._filling = False
        view.connect("currentRowChanged(int)", self.show_slice)

    def replace(self, volume: Any, map_file: Path, slices: Sequence[int]) -> None:
        """Replace the entries and the uncertainty map of a scan by those of a new result.

        Args:
            volume: The scan.
            map_file: The entropy map; it exists if it was asked for.
            slices: Indices (from 0) of the most uncertain slices.
        """
        for entry in self.entries:
            if entry.volume is volume and entry.overlay is not None and slicer.mrmlScene.IsNodePresent(entry.overlay):
                slicer.mrmlScene.RemoveNode(entry.overlay)
        self.entries = [entry for entry in self.entries if entry.volume is not volume]
        overlay = None
        if map_file.is_file():
            name = _("{name} - uncertainty").format(name=volume.GetName())
            overlay = show_uncertainty_map(map_file, volume, name=name)
        self.entries += [ReviewEntry(volume, overlay, review_slice(volume, k)) for k in slices]

    def clear(self) -> None:
        """Remove all entries; nodes of the scene stay."""
        self.entries = []

    def show(self) -> None:
        """Fill the list widget; entries whose scan was deleted are removed."""
        is_present = slicer.mrmlScene.IsNodePresent
        self.entries = [
            ReviewEntry(
                entry.volume,
                entry.overlay if entry.overlay is not None and is_present(entry.overlay) else None,
                entry.slice,
            )
            for entry in self.entries
            if is_present(entry.volume)
        ]
        texts = [
            _("{scan}: slice {number}").format(scan=entry.volume.GetName(), number=entry.slice.number)
            for entry in self.entries
        ]
        view = self._view
        if [view.item(row).text() for row in range(view.count)] != texts:
            self._filling = True
            view.clear()
            for text in texts:
                view.addItem(text)
            self._filling = False
            fit_height(view, len(texts), most=6)
        view.setVisible(bool(texts))
        self._label.setVisible(bool(texts))

    def show_slice(self, row: int) -> None:
        """Show the slice of this row in the slice views."""
        if not self._filling and 0 <= row < len(self.entries):
            entry = self.entries[row]
            show_in_slice_views(entry.volume, entry.overlay, entry.slice.center)
