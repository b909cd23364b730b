"""Preview: the first labelled scan, segmented a few times during training, to show the progress."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from HiEndMAECore.errors import HiEndMAEError
from HiEndMAECore.io.structure import Structure
from HiEndMAECore.io.writers import write_label_map
from HiEndMAECore.preprocessing.pipeline import NetworkGrid, resample_labels_to_original
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.runtime.devices import autocast

from .disjoint_tiles import DiceCounts, disjoint_tiles
from .training_cases import TrainingCase

_RUN_FRACTIONS = (0.1, 0.25, 0.5, 0.75)  # of the run, at which a preview is made
_TILE_COST = 0.4  # expected time of one predicted tile in units of a step, before a preview was timed


class Preview:
    """Preview of one training case on its original grid (a `finetuning.TrainingCallback`).

    The event `preview` names the file. The metric `agreement` is the mean Dice with the labels of this training case: it
    shows the progress of the training, not the performance on other scans.

    Args:
        case: The training case, on the CPU.
        grid: Position of its network grid in the original scan.
        structures: Structures of the model; class i + 1 is `structures[i]`.
        path: Label map to write.
        report: Receives the event, the metric and warnings.
        share: Fraction of the training time that all previews together may take; a preview that would take longer is
            skipped.
    """

    def __init__(
        self,
        case: TrainingCase,
        grid: NetworkGrid,
        structures: Sequence[Structure],
        *,
        path: Path,
        report: Reporter,
        share: float = 0.05,
    ) -> None:
        self.case, self.grid, self.path, self.report, self.share = case, grid, path, report, share
        self.values = np.array([0, *(structure.value for structure in structures)], np.uint16)
        self._fractions = list(_RUN_FRACTIONS)
        self._spent_seconds = 0.0
        self._last_seconds: float | None = None

    def due(self, step: int, planned: int, *, seconds: float, crop: Sequence[int]) -> bool:
        """Return True when a preview is due and its expected time fits into the share.

        Args:
            step: Steps that are done.
            planned: Steps of the run.
            seconds: Time of the run so far, with earlier previews.
            crop: Edges of a tile in voxels.
        """
        if not self._fractions or step / planned < self._fractions[0]:
            return False
        while self._fractions and self._fractions[0] <= step / planned:
            self._fractions.pop(0)
        step_seconds = (seconds - self._spent_seconds) / step
        tiles = np.prod([-(-length // edge) for length, edge in zip(self.case.classes.shape, crop)])
        expected = float(tiles) * step_seconds * _TILE_COST if self._last_seconds is None else self._last_seconds
        return self._spent_seconds + expected <= self.share * step_seconds * planned

    def on_validation(self, network: nn.Module, *, step: int, crop: Sequence[int], device: torch.device) -> None:
        """Segment the case, write the label map and report its Dice. The training mode of `network` is preserved.

        Args:
            network: Network to preview, on `device`.
            step: Steps that are done.
            crop: Edges of a tile in voxels.
            device: Device to compute on.
        """
        started, training = time.monotonic(), network.training
        network.eval()
        classes = self._segment(network, crop, device)
        network.train(training)
        try:
            label_map = resample_labels_to_original(self.values[classes.numpy()], self.grid)
            write_label_map(self.path, label_map, self.grid.original)
        except (OSError, HiEndMAEError) as error:  # a full disk, or another program has the last preview open
            self.report.warning("preview_left_out", f"A preview could not be written ({error}). Training continues.")
        else:
            self.report.preview(self.path)
        self._last_seconds = time.monotonic() - started
        self._spent_seconds += self._last_seconds
        dice = self._mean_dice(classes)
        if dice is not None:
            self.report.metric("agreement", round(dice, 4), step=step, seconds=round(self._last_seconds, 2))

    @torch.no_grad()
    def _segment(self, network: nn.Module, crop: Sequence[int], device: torch.device) -> Tensor:
        """Return the predicted classes (H, W, D) on the CPU, from tiles without overlap."""
        shape = self.case.classes.shape
        missing = [max(0, edge - length) for length, edge in zip(shape, crop)]
        before = [length // 2 for length in missing]
        padding = [(first, length - first) for first, length in zip(before, missing)]
        image = F.pad(self.case.image, [voxels for pair in reversed(padding) for voxels in pair]).to(device)
        classes = torch.empty(image.shape[1:], dtype=torch.long)
        for tile in disjoint_tiles(image.shape[1:], crop):
            with autocast(device):
                logits = network(image[(slice(None), *tile.input)][None])
            classes[tile.own] = logits[0].argmax(0)[tile.own_in_input].cpu()
        h, w, d = (slice(first, first + length) for first, length in zip(before, shape))
        return classes[h, w, d]

    def _mean_dice(self, classes: Tensor) -> float | None:
        """Return the mean Dice of the labelled structures; None when no labelled voxel is left at this spacing."""
        counts = DiceCounts(len(self.values))
        counts.add(classes, self.case.classes.cpu())
        dices = [dice for value in range(1, len(self.values)) if (dice := counts.dice(value)) is not None]
        return sum(dices) / len(dices) if dices else None
