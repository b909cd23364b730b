"""A trained model, ready to segment scans.

Usage:

    predictor = Predictor.load(Path("my-model"), device=choose_device())
    result = predictor.segment(read_volume(Path("scan.nii.gz")))
    write_labels(Path("labels.nii.gz"), result.labels, volume.geometry, structures=predictor.structures)
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from HiEndMAECore.checkpoints.model_folder import ModelDescription, read_description, read_weights
from HiEndMAECore.checkpoints.official import load_strictly
from HiEndMAECore.devices import autocast
from HiEndMAECore.errors import InputError
from HiEndMAECore.networks import UNETR
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.volumes.preparation import PreparationPlan, Prepared, labels_to_native, prepare, scalar_to_native
from HiEndMAECore.volumes.volume import Structure, Volume

from .tiling import plan_tiles, tile_weights


@dataclass(frozen=True)
class Segmentation:
    """labels (X, Y, Z) of the scan's own grid, in the model's label values; entropy (X, Y, Z) float32 in 0 (sure) to 1
    (every structure as likely), or None."""

    labels: np.ndarray
    entropy: np.ndarray | None = None


class Predictor:
    """A network with what one must know to use it: see `ModelDescription`."""

    def __init__(self, network: UNETR, description: ModelDescription, device: torch.device) -> None:
        self.network = network.to(device).eval()
        self.description = description
        self.device = device
        self.tile = tuple(int(edge) for edge in description.architecture["arguments"]["image_size"])
        preparation = description.preparation
        try:
            self.plan = PreparationPlan.from_json({key: preparation[key] for key in ("spacing", "normalisation")})
        except ValueError as error:
            raise InputError("model_unusable", f"The model '{description.name}' cannot be used: {error}.") from error
        self.structures = structures_of(description)

    @classmethod
    def load(cls, path: Path, *, device: torch.device) -> Predictor:
        """The segmentation model in a folder or zip; raises `InputError`."""
        description = read_description(path)
        if description.kind != "segmentation":
            raise InputError(
                "model_not_for_segmentation",
                f"{path} is a {description.kind} model: it cannot segment yet.",
                f"Teach it first: python -m HiEndMAECore.finetune --init {path} …",
            )
        try:
            network = UNETR(**description.architecture["arguments"])
        except (TypeError, ValueError) as error:
            raise InputError("model_unusable", f"The model {path} cannot be built: {error}.") from error
        weights = {key: value.float() for key, value in read_weights(path, description).items()}
        load_strictly(network, weights, what="weights")
        return cls(network, description, device)

    def segment(
        self,
        volume: Volume,
        *,
        report: Reporter | None = None,
        spacing: Sequence[float] | None = None,
        mirror: bool = False,
        uncertainty: bool = False,
    ) -> Segmentation:
        """Segment one scan; its labels lie on its own grid, voxel by voxel.

        spacing: mm along R, A, S instead of the model's own. mirror: average over the mirrored scan as well.
        Raises `InputError` when the scan has other channels than the model.
        """
        if volume.channels != len(self.description.channels):
            raise InputError(
                "channels_do_not_fit",
                f"{volume.name or 'The scan'} has {volume.channels} channel(s), the model needs "
                f"{len(self.description.channels)} ({', '.join(self.description.channels)}).",
                "Give the channels of a case joined by commas.",
            )
        plan = self.plan
        if spacing is not None:
            r, a, s = spacing
            plan = PreparationPlan((r, a, s), plan.normalisation)
        prepared = prepare(volume, plan)
        logits = self.logits(prepared.array, report=report, mirror=mirror)
        classes = logits.argmax(0)
        values = np.array([0, *(structure.value for structure in self.structures)])
        labels = values.astype(np.min_scalar_type(int(values.max())))[classes.cpu().numpy()]
        entropy = None
        if uncertainty:
            entropy = scalar_to_native(_entropy(logits).cpu().numpy(), prepared)
        return Segmentation(_home(labels, prepared), entropy)

    @torch.inference_mode()
    def logits(self, array: np.ndarray, *, report: Reporter | None = None, mirror: bool = False) -> Tensor:
        """Prepared scan (C, H, W, D) -> (classes, H, W, D) float32, averaged over overlapping tiles."""
        report = report or Reporter(quiet=True)
        image = torch.from_numpy(np.ascontiguousarray(array))
        shape = image.shape[1:]
        missing = [max(0, edge - there) for edge, there in zip(self.tile, shape)]
        padding = [part for lack in reversed(missing) for part in (lack // 2, lack - lack // 2)]
        image = F.pad(image, padding)
        weights = tile_weights(self.tile, self.device)
        total: Tensor | None = None
        counted = torch.zeros(image.shape[1:], device=self.device)
        starts = plan_tiles(image.shape[1:], self.tile)
        for step in report.steps("segmenting", len(starts)):
            place = tuple(slice(first, first + edge) for first, edge in zip(starts[step], self.tile))
            scores = self._scores(image[(slice(None), *place)].to(self.device)[None], mirror=mirror)[0]
            if total is None:
                total = torch.zeros((len(scores), *image.shape[1:]), device=self.device)
            total[(slice(None), *place)] += scores * weights
            counted[place] += weights
        assert total is not None
        total /= counted
        inside = tuple(slice(lack // 2, lack // 2 + there) for lack, there in zip(missing, shape))
        return total[(slice(None), *inside)]

    def _scores(self, tile: Tensor, *, mirror: bool) -> Tensor:
        """(1, C, *tile) -> (1, classes, *tile) logits, averaged over all mirrorings when asked."""
        turns = list(itertools.product((False, True), repeat=3)) if mirror else [(False, False, False)]
        total = torch.zeros((), device=tile.device)
        for turn in turns:
            axes = [axis + 2 for axis, flipped in enumerate(turn) if flipped]
            with autocast(self.device):
                scores = self.network(tile.flip(axes)).float()
            total = total + scores.flip(axes)
        return total / len(turns)


def structures_of(description: ModelDescription) -> tuple[Structure, ...]:
    """The structures that a model knows, in the order of its classes."""
    return tuple(
        Structure(
            label["value"],
            label["name"],
            tuple(label.get("colour", (128, 174, 128))),  # type: ignore[arg-type]
            dict(label.get("terminology", {})),
        )
        for label in description.labels
    )


def _home(labels: np.ndarray, prepared: Prepared) -> np.ndarray:
    return labels_to_native(labels, prepared)


def _entropy(logits: Tensor) -> Tensor:
    """(classes, H, W, D) -> (H, W, D): entropy of the class probabilities over its largest value."""
    shares = logits.softmax(0)
    return -(shares * shares.clamp(min=1e-12).log()).sum(0) / float(np.log(len(logits)))
