"""Looks at the labelled scan while learning goes on: how far it got, for whoever waits. A small share of the time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from torch import nn

from HiEndMAECore.errors import HiEndMAEError
from HiEndMAECore.io.structure import Structure
from HiEndMAECore.io.writers import write_label_map
from HiEndMAECore.preprocessing.pipeline import NetworkGrid, resample_labels_to_original
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.runtime.devices import autocast

from .training_cases import TrainingCase

_POINTS = (0.1, 0.25, 0.5, 0.75)  # of the run
_FORWARD = 0.4  # seconds of a tile as a share of a step's seconds, before one was measured


class Preview:
    """Segments one teaching scan now and then, without overlap of tiles, and writes it on the scan's own grid.

    share: of the run's time that all looks together may take; a look that would take longer is left out. The event
    `preview` names the file; the metric `agreement` is the mean Dice with the labels of this very scan: how far learning
    got, not how good the model is elsewhere.
    """

    def __init__(
        self,
        scan: TrainingCase,
        grid: NetworkGrid,
        structures: Sequence[Structure],
        *,
        path: Path,
        report: Reporter,
        share: float = 0.05,
    ) -> None:
        self.scan, self.grid, self.path, self.report, self.share = scan, grid, path, report, share
        self.values = np.array([0, *(structure.value for structure in structures)], np.uint16)
        self._points = list(_POINTS)
        self._spent = 0.0
        self._last: float | None = None

    def due(self, step: int, planned: int, *, seconds: float, crop: Sequence[int]) -> bool:
        """Is a point of the run reached, and does one more look fit into the share? seconds: of the run so far."""
        if not self._points or step / planned < self._points[0]:
            return False
        while self._points and self._points[0] <= step / planned:
            self._points.pop(0)
        learning = (seconds - self._spent) / step
        tiles = np.prod([-(-there // edge) for there, edge in zip(self.scan.classes.shape, crop)])
        takes = self._last if self._last is not None else float(tiles) * learning * _FORWARD
        return self._spent + takes <= self.share * learning * planned

    @torch.no_grad()
    def look(self, network: nn.Module, *, step: int, crop: Sequence[int], device: torch.device) -> None:
        """Segment, write, tell. The network's mode is left as it was."""
        started, training = time.monotonic(), network.training
        network.eval()
        with autocast(device):
            logits = sliding_window_inference(
                self.scan.image[None].to(device), tuple(crop), 1, network, overlap=0.0, device="cpu"
            )
        network.train(training)
        classes = logits[0].argmax(0)
        try:
            write_label_map(
                self.path, resample_labels_to_original(self.values[classes.numpy()], self.grid), self.grid.original
            )
        except (OSError, HiEndMAEError) as error:  # a full disk, or another program has the last one open
            self.report.warning("preview_left_out", f"A preview could not be written ({error}); learning goes on.")
        else:
            self.report.preview(self.path)
        self._last = time.monotonic() - started
        self._spent += self._last
        agreement = self._dice(classes)
        if agreement is not None:
            self.report.metric("agreement", round(agreement, 4), step=step, seconds=round(self._last, 2))

    def _dice(self, classes: torch.Tensor) -> float | None:
        """None where nothing labelled is left of this scan at this spacing."""
        truth = self.scan.classes.cpu()
        found = [
            float(2 * ((classes == value) & (truth == value)).sum() / ((classes == value).sum() + there))
            for value in range(1, len(self.values))
            if (there := (truth == value).sum())
        ]
        return sum(found) / len(found) if found else None
