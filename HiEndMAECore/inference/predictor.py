"""The predictor: a trained model that preprocesses a scan, infers its labels, and resamples them to the original grid.

predictor = Predictor.load(Path("my-model"), device=choose_device())
volume = read_volume(Path("scan.nii.gz"))
result = predictor.segment(volume)
write_label_map(Path("labels.nii.gz"), result.labels, volume.geometry, structures=predictor.structures)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from HiEndMAECore.data.label_table import model_structures
from HiEndMAECore.data.model_atlases import read_atlases
from HiEndMAECore.errors import InputError
from HiEndMAECore.io.volume import Volume
from HiEndMAECore.models.authors import load_strict
from HiEndMAECore.models.description import ModelDescription
from HiEndMAECore.models.folder import read_model
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
from HiEndMAECore.registration.atlas import Atlas
from HiEndMAECore.registration.label_prior import LabelPrior
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.runtime.devices import cpu_has_bf16
from HiEndMAECore.runtime.memory import Cost, measure_peak

from .atlas_matching import AtlasMatch, match_atlases
from .forward import forward, store_weights_in_bf16
from .memory_fallback import as_out_of_memory
from .memory_plan import check_resampling_memory
from .openvino_engine import EngineFailure, OpenVINONetwork, choose_engine
from .segmentation import NetworkSegmentation, Segmentation, summarize_blocks
from .sliding_window import SlidingWindow
from .test_time_augmentation import mirrored_classes
from .uncertainty import slices_to_review

_SLOW_TILE_SECONDS = 1.0  # in a slower tile the overhead of the first call does not matter


class Predictor:
    """A network with its description, ready to segment scans.

    Args:
        network: The network; it is moved to `device` and put in evaluation mode.
        description: Preprocessing, channels and labels of the network.
        device: Device that computes.
        exact: Compute in float32 throughout, without autocast.
        engine: The engine, as `openvino_engine.choose_engine` takes it.
        atlases: Atlases of the labelled scans, as far as the model keeps them.

    Raises:
        InputError: `model_unusable`; the description's preprocessing is not valid.
        MissingDependencyError: The engine is not installed.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        description: ModelDescription,
        device: torch.device,
        *,
        exact: bool = False,
        engine: str = "torch",
        atlases: Sequence[Atlas] = (),
    ) -> None:
        self.network: nn.Module = network.to(device).eval()
        self.description = description
        self.device = device
        self.exact = exact
        self.atlases = tuple(atlases)
        self._tile_cost: Cost | None = None
        self.tile = fit_size(type(network), network.config, description.architecture["arguments"]["image_size"])
        stored = description.preparation
        try:
            self.plan = PreprocessingPlan.from_json({key: stored[key] for key in ("spacing", "normalisation")})
        except ValueError as error:
            raise InputError("model_unusable", f"The model '{description.name}' cannot be used: {error}.") from error
        self.structures = model_structures(description)
        self.engine = choose_engine(engine, network, device, exact=exact)
        if self.engine == "openvino":
            shape, precision = (len(description.channels), *self.tile), "f32" if exact or not cpu_has_bf16() else "bf16"
            self.network = OpenVINONetwork(network, description.architecture, tile=shape, precision=precision)

    @classmethod
    def load(cls, path: Path, *, device: torch.device, exact: bool = False, engine: str = "torch") -> Predictor:
        """Load a segmentation model from a folder or a .zip file.

        Args:
            path: The model.
            device: Device that computes.
            exact: Compute in float32 throughout, without autocast.
            engine: The engine, as `openvino_engine.choose_engine` takes it.

        Raises:
            InputError: It is not a model, is damaged, or is a pretraining model.
            MissingDependencyError: The engine is not installed.
        """
        description, weights = read_model(path)
        if description.kind != "segmentation":
            raise InputError(
                "model_not_for_segmentation",
                f"{path} is a {description.kind} model: it cannot segment yet.",
                f"Fine-tune it first: python -m HiEndMAECore.finetune --init {path} …",
            )
        try:
            network = build_network(description.architecture)
        except (TypeError, ValueError) as error:
            raise InputError("model_unusable", f"The model {path} cannot be built: {error}.") from error
        load_strict(network, {key: value.float() for key, value in weights.items()}, what="weights")
        if device.type == "cpu" and not exact and cpu_has_bf16():
            store_weights_in_bf16(network)
        atlases = read_atlases(path, description) if description.atlas else ()
        return cls(network, description, device, exact=exact, engine=engine, atlases=atlases)

    def segment(
        self,
        volume: Volume,
        *,
        report: Reporter | None = None,
        spacing: Sequence[float] | None = None,
        mirror: bool = False,
        uncertainty: bool = False,
    ) -> Segmentation:
        """Segment one scan, with a result on its original grid.

        Args:
            volume: The scan, with the model's channels.
            report: Receives progress and warnings, and requests to cancel.
            spacing: Voxel edges of the network's grid in mm along R, A, S, instead of the model's.
            mirror: Average with the scan mirrored from right to left, if the model was trained on mirrored scans.
            uncertainty: Also resample the entropy.

        Raises:
            InputError: `channels_do_not_fit`.
            OutOfMemoryError: The scan does not fit in memory.
        """
        match = self.match(self.preprocess(volume, spacing=spacing), report=report)
        result = self.infer(match.scan, report=report, mirror=mirror, prior=match.prior)
        return self.resample_to_original(result, match.scan, uncertainty=uncertainty)

    def match(self, prepared: PreprocessedScan, *, report: Reporter | None = None) -> AtlasMatch:
        """Register the model's atlases to a scan; without an atlas the scan is returned as it is.

        Args:
            prepared: The preprocessed scan.
            report: Receives progress, and requests to cancel.
        """
        normalization, report = self.plan.normalization, report or Reporter(quiet=True)
        return match_atlases(self.atlases, prepared, normalization=normalization, device=self.device, report=report)

    def preprocess(self, volume: Volume, *, spacing: Sequence[float] | None = None) -> PreprocessedScan:
        """Resample and normalize a scan as the network expects it.

        Args:
            volume: The scan, with the model's channels.
            spacing: Voxel edges of the network's grid in mm along R, A, S, instead of the model's.

        Raises:
            InputError: `channels_do_not_fit`; the scan has another number of channels than the model.
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
            plan = PreprocessingPlan((r, a, s), plan.normalization)
        return preprocess(volume, plan)

    def probe(self, report: Reporter | None = None) -> Cost:
        """Measure the memory and time of one tile, once, with torch if the engine fails.

        A batch calls it before reading and writing run beside the computation and disturb the measurement.

        Args:
            report: Receives the warning that the engine failed.
        """
        if self._tile_cost is None:
            try:
                self._tile_cost = self._measure_tile()
            except EngineFailure as failure:
                self._change_to_torch(failure, report)
                self._tile_cost = self._measure_tile()
        return self._tile_cost

    @torch.inference_mode()
    def _measure_tile(self) -> Cost:
        """Return the cost of one tile; an empty one if memory ran out."""
        cost = Cost()
        try:
            self.network.to(self.device)
            if isinstance(self.network, OpenVINONetwork):
                self.network.start()  # not a part of the measurement
            tile = torch.zeros((1, len(self.description.channels), *self.tile), device=self.device)
            for _ in range(2):  # the first call of a network also allocates and selects kernels
                with measure_peak(self.device) as cost:
                    forward(self.network, tile, exact=self.exact)
                if cost.seconds > _SLOW_TILE_SECONDS:
                    break
        except Exception as error:
            if as_out_of_memory(error) is None:
                raise
        return cost

    def _change_to_torch(self, failure: EngineFailure, report: Reporter | None) -> None:
        """Compute with torch from now on, and report it."""
        assert isinstance(self.network, OpenVINONetwork)
        self.network, self.engine, self._tile_cost = self.network.network, "torch", None
        if report is not None:
            message = f"OpenVINO failed ({failure}); torch computes the whole scan instead."
            report.warning("engine_failed", message, "The result is complete; --engine torch avoids the attempt.")

    def infer(
        self,
        prepared: PreprocessedScan,
        *,
        report: Reporter | None = None,
        mirror: bool = False,
        prior: LabelPrior | None = None,
    ) -> NetworkSegmentation:
        """Infer labels, entropy and confidence on the network's grid; logits are in memory for a few blocks at a time.

        Args:
            prepared: The preprocessed scan.
            prior: Propagated labels on the same grid, to combine the network's opinion with (`atlas_matching`).
            report: Receives progress and warnings, and requests to cancel.
            mirror: Average with the scan mirrored from right to left, if the model was trained on mirrored scans.

        Raises:
            OutOfMemoryError: The scan does not fit in memory; raised before the first tile if that is foreseeable.
        """
        check_resampling_memory(math.prod(prepared.original.shape))
        try:
            return self._infer(prepared, report, mirror=mirror, prior=prior)
        except EngineFailure as failure:  # from the first tile again, so that one engine computes the whole scan
            self._change_to_torch(failure, report)
        return self._infer(prepared, report, mirror=mirror, prior=prior)

    def _infer(
        self, prepared: PreprocessedScan, report: Reporter | None, *, mirror: bool, prior: LabelPrior | None
    ) -> NetworkSegmentation:
        """Return the result of `infer`, of one engine."""
        blocks = self._blocks(prepared.array, report, mirror=mirror)
        if prior is not None:
            blocks = prior.combine_blocks(blocks)
        return summarize_blocks(blocks, self._values, prepared.shape, engine=self.engine)

    def infer_from_prior(self, prior: LabelPrior) -> NetworkSegmentation:
        """Return the propagated labels on their grid, without running the network.

        Args:
            prior: The prior of the scan.
        """
        return summarize_blocks(prior.blocks(len(self._values)), self._values, prior.grid.shape, engine="registration")

    @property
    def _values(self) -> np.ndarray:
        """Return the label value of each class."""
        values = np.array([0, *(structure.value for structure in self.structures)])
        return values.astype(np.min_scalar_type(int(values.max())))

    def resample_to_original(
        self, result: NetworkSegmentation, prepared: NetworkGrid, *, uncertainty: bool = False
    ) -> Segmentation:
        """Resample a result to the scan's original grid.

        Args:
            result: The result on the network's grid.
            prepared: The network's grid and the scan's original geometry.
            uncertainty: Also resample the entropy.
        """
        return Segmentation(
            resample_labels_to_original(result.labels, prepared),
            resample_scalar_to_original(result.entropy, prepared) if uncertainty else None,
            result.confidence,
            slices_to_review(result.labels, result.entropy, prepared),
        )

    def logits(self, array: np.ndarray, *, report: Reporter | None = None, mirror: bool = False) -> Tensor:
        """Return the logits of a whole scan, averaged over overlapping tiles; `infer` needs less memory.

        Args:
            array: Preprocessed scan (C, H, W, D).
            report: Receives progress and warnings, and requests to cancel.
            mirror: Average with the scan mirrored from right to left, if the model was trained on mirrored scans.

        Returns:
            (classes, H, W, D), float32, on the CPU.
        """
        total = torch.empty((len(self.structures) + 1, *array.shape[1:]))
        for region, logits in self._blocks(array, report, mirror=mirror):
            total[(slice(None), *region)] = logits.to(total)
        return total

    def _blocks(
        self, array: np.ndarray, report: Reporter | None, *, mirror: bool
    ) -> Iterator[tuple[tuple[slice, ...], Tensor]]:
        """Yield (region of the scan, its logits (classes, h, w, d)); a scan smaller than a tile is padded."""
        image = torch.from_numpy(np.ascontiguousarray(array))
        shape = image.shape[1:]
        padding = [max(0, edge - length) for edge, length in zip(self.tile, shape)]
        if any(padding):
            image = F.pad(image, [part for total in reversed(padding) for part in (total // 2, total - total // 2)])
        window = SlidingWindow(
            image,
            self.network,
            tile=self.tile,
            classes=len(self.structures) + 1,
            device=self.device,
            report=report or Reporter(quiet=True),
            mirror=mirrored_classes(self.description) if mirror else None,
            exact=self.exact,
            probe=self.probe(report),
        )
        for block, logits in window.blocks():
            # From the padded grid to the scan's: planes of padding are dropped.
            region, valid = [], []
            for part, total, length in zip(block, padding, shape):
                begin = part.start - total // 2
                low, high = max(0, begin), min(length, part.stop - total // 2)
                region.append(slice(low, high))
                valid.append(slice(low - begin, high - begin))
            yield tuple(region), logits[(slice(None), *valid)]
            del logits
