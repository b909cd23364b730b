"""A trained model, ready to segment scans.

Usage:

    predictor = Predictor.load(Path("my-model"), device=choose_device())
    result = predictor.segment(read_volume(Path("scan.nii.gz")))
    write_labels(Path("labels.nii.gz"), result.labels, volume.geometry, structures=predictor.structures)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from HiEndMAECore.data.label_table import model_structures
from HiEndMAECore.errors import InputError, OutOfMemoryError, classify_exception
from HiEndMAECore.io.volume import Volume
from HiEndMAECore.models.authors import load_strict
from HiEndMAECore.models.description import ModelDescription
from HiEndMAECore.models.folder import read_description, read_weights
from HiEndMAECore.networks import SegmentationNetwork, build_network
from HiEndMAECore.networks.interface import fit_size
from HiEndMAECore.preprocessing.pipeline import (
    NetworkGrid,
    PreprocessedScan,
    PreprocessingPlan,
    preprocess,
    resample_labels_to_original,
    resample_scalar_to_original,
)
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.runtime.memory import Cost, measure_peak

from .memory_plan import check_resampling_memory
from .sliding_window import SlidingWindow, forward
from .test_time_augmentation import mirrored_classes
from .uncertainty import slices_to_review, summarize_logits

_LONG = 1.0  # seconds


@dataclass(frozen=True)
class NetworkSegmentation:
    """A result on the network's grid, (H, W, D) each: labels in the model's values; entropy float16, 0 sure to 1.

    confidence: {value of a structure: mean probability, 0 to 1, that its voxels are given}, of structures found.
    """

    labels: np.ndarray
    entropy: np.ndarray
    confidence: dict[int, float]


@dataclass(frozen=True)
class Segmentation:
    """A result on the scan's own grid: labels (X, Y, Z) in the model's values; entropy (X, Y, Z) float32 in 0 (sure) to 1
    (every structure as likely), or None; confidence as in `NetworkSegmentation`; review: stored slices (last axis) to
    look at first, the worst first."""

    labels: np.ndarray
    entropy: np.ndarray | None = None
    confidence: dict[int, float] = field(default_factory=dict)
    review: list[int] = field(default_factory=list)


class Predictor:
    """A network with what one must know to use it: see `ModelDescription`. exact: float32 throughout, no autocast."""

    def __init__(
        self, network: SegmentationNetwork, description: ModelDescription, device: torch.device, *, exact: bool = False
    ) -> None:
        self.network = network.to(device).eval()
        self.description = description
        self.device = device
        self.exact = exact
        self._footprint: Cost | None = None
        self.tile = fit_size(type(network), network.config, description.architecture["arguments"]["image_size"])
        preparation = description.preparation
        try:
            self.plan = PreprocessingPlan.from_json({key: preparation[key] for key in ("spacing", "normalisation")})
        except ValueError as error:
            raise InputError("model_unusable", f"The model '{description.name}' cannot be used: {error}.") from error
        self.structures = model_structures(description)

    @classmethod
    def load(cls, path: Path, *, device: torch.device, exact: bool = False) -> Predictor:
        """The segmentation model in a folder or zip; raises `InputError`."""
        description = read_description(path)
        if description.kind != "segmentation":
            raise InputError(
                "model_not_for_segmentation",
                f"{path} is a {description.kind} model: it cannot segment yet.",
                f"Teach it first: python -m HiEndMAECore.finetune --init {path} …",
            )
        try:
            network = build_network(description.architecture)
        except (TypeError, ValueError) as error:
            raise InputError("model_unusable", f"The model {path} cannot be built: {error}.") from error
        weights = {key: value.float() for key, value in read_weights(path, description).items()}
        load_strict(network, weights, what="weights")
        return cls(network, description, device, exact=exact)

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

        spacing: mm along R, A, S instead of the model's own. mirror: average with the scan mirrored from right to
        left, where the model knows such patients. Raises `InputError` when the scan has other channels than the model.
        """
        prepared = self.preprocess(volume, spacing=spacing)
        return self.resample_to_original(
            self.infer(prepared, report=report, mirror=mirror), prepared, uncertainty=uncertainty
        )

    def preprocess(self, volume: Volume, *, spacing: Sequence[float] | None = None) -> PreprocessedScan:
        """The scan as the network sees it. Raises `InputError` when it has other channels than the model."""
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
            plan = PreprocessingPlan((r, a, s), plan.normalization)
        return preprocess(volume, plan)

    @torch.inference_mode()
    def probe(self) -> Cost:
        """What one tile costs, measured once. In a batch: before anything else runs beside it."""
        if self._footprint is None:
            channels = len(self.description.channels)
            self._footprint = Cost()
            try:
                self.network.to(self.device)
                tile = torch.zeros((1, channels, *self.tile), device=self.device)
                for _ in range(2):
                    with measure_peak(self.device) as self._footprint:
                        forward(self.network, tile, exact=self.exact)
                    if self._footprint.seconds > _LONG:
                        break  # else the first one was slow for being the first
            except Exception as error:
                if not isinstance(classify_exception(error), OutOfMemoryError):
                    raise
        return self._footprint

    def infer(
        self, prepared: PreprocessedScan, *, report: Reporter | None = None, mirror: bool = False
    ) -> NetworkSegmentation:
        """Labels, entropy and confidence on the network's grid; logits are let go block by block.

        Raises `OutOfMemoryError`, before the first tile where that can be foreseen.
        """
        check_resampling_memory(math.prod(prepared.original.shape))
        values = np.array([0, *(structure.value for structure in self.structures)])
        values = values.astype(np.min_scalar_type(int(values.max())))
        labels = np.empty(prepared.shape, values.dtype)
        entropy = np.empty(prepared.shape, np.float16)
        sums, counts = np.zeros(len(values)), np.zeros(len(values))
        for place, logits in self._blocks(prepared.array, report, mirror=mirror):
            classes, sure, doubt = (part.cpu().numpy() for part in _read(logits))
            labels[place], entropy[place] = values[classes], doubt
            counts += np.bincount(classes.ravel(), minlength=len(values))
            sums += np.bincount(classes.ravel(), weights=sure.ravel(), minlength=len(values))
            del logits
        found = {int(v): round(float(s / n), 4) for v, s, n in zip(values[1:], sums[1:], counts[1:]) if n}
        return NetworkSegmentation(labels, entropy, found)

    def resample_to_original(
        self, result: NetworkSegmentation, prepared: NetworkGrid, *, uncertainty: bool = False
    ) -> Segmentation:
        """A result brought back to the scan's own voxels; its entropy as well, when asked."""
        return Segmentation(
            resample_labels_to_original(result.labels, prepared),
            resample_scalar_to_original(result.entropy, prepared) if uncertainty else None,
            result.confidence,
            slices_to_review(result.labels, result.entropy, prepared),
        )

    def logits(self, array: np.ndarray, *, report: Reporter | None = None, mirror: bool = False) -> Tensor:
        """Prepared scan (C, H, W, D) -> (classes, H, W, D) float32 on the CPU, averaged over overlapping tiles.

        All of them at once: `infer` does without.
        """
        total = torch.empty((len(self.structures) + 1, *array.shape[1:]))
        for place, logits in self._blocks(array, report, mirror=mirror):
            total[(slice(None), *place)] = logits.to(total)
        return total

    def _blocks(
        self, array: np.ndarray, report: Reporter | None, *, mirror: bool
    ) -> Iterator[tuple[tuple[slice, ...], Tensor]]:
        """(where in the scan, logits (classes, h, w, d) there), block by block; a scan smaller than a tile is padded."""
        image = torch.from_numpy(np.ascontiguousarray(array))
        shape = image.shape[1:]
        lacks = [max(0, edge - there) for edge, there in zip(self.tile, shape)]
        if any(lacks):
            image = F.pad(image, [part for lack in reversed(lacks) for part in (lack // 2, lack - lack // 2)])
        sweep = SlidingWindow(
            image,
            self.network,
            tile=self.tile,
            classes=len(self.structures) + 1,
            device=self.device,
            report=report or Reporter(quiet=True),
            mirror=mirrored_classes(self.description) if mirror else None,
            exact=self.exact,
            probe=self.probe(),
        )
        for block, logits in sweep.blocks():
            # From the padded grid to the scan's: planes of padding fall away.
            place, inside = [], []
            for part, lack, there in zip(block, lacks, shape):
                begin = part.start - lack // 2
                low, high = max(0, begin), min(there, part.stop - lack // 2)
                place.append(slice(low, high))
                inside.append(slice(low - begin, high - begin))
            yield tuple(place), logits[(slice(None), *inside)]
            del logits


def _read(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `read_logits`; in system memory where the device has no room for it."""
    try:
        return summarize_logits(logits)
    except Exception as error:
        if logits.device.type == "cpu" or not isinstance(classify_exception(error), OutOfMemoryError):
            raise
    return summarize_logits(logits.cpu())
