"""What a pretraining run learns with: the model of its objective, and what of it is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from HiEndMAECore.data.crop_store import CropStore
from HiEndMAECore.errors import InputError
from HiEndMAECore.models.pretrained import PretrainedWeights, load_encoder, read_pretrained
from HiEndMAECore.networks import HiEndMAE
from HiEndMAECore.networks.variants import pretraining_arguments, segmentation_architecture
from HiEndMAECore.reporting.reporter import Reporter

from .inpainting import Inpainting


@dataclass(frozen=True)
class PretrainingSetup:
    """model: what learns. kept: what of it `model.json` describes as `architecture`. origin: what it started from, as
    `transfer.start_from` tells it."""

    model: HiEndMAE | Inpainting
    kept: nn.Module
    architecture: Mapping[str, Any]
    origin: Mapping[str, Any] = field(default_factory=dict)


def build_autoencoder(variant: str, **options: Any) -> PretrainingSetup:
    """Hi-End-MAE or MAE, from nothing; `options` as in `pretraining_arguments`. Raises `ValueError`."""
    arguments = pretraining_arguments(variant, **options)
    model = HiEndMAE(**arguments)
    return PretrainingSetup(model, model, {"network": "HiEndMAE", "variant": variant, "arguments": arguments})


def read_initial_encoder(init: str, variant: str) -> PretrainedWeights:
    """The weights that inpainting starts from; raises `InputError` when they are none of the variant's encoder."""
    initial = read_pretrained(init)
    if initial is None or initial.variant != variant:
        message = f"--init {init} is of {initial.variant or 'an unknown variant' if initial else 'nothing'}"
        advice = "Give a pretrained encoder and its variant."
        raise InputError("weights_of_another_variant", f"{message}, --variant is {variant}.", advice)
    return initial


def build_inpainting(
    initial: PretrainedWeights, *, in_channels: int, image_size: Sequence[int] | None, mask_ratio: float
) -> PretrainingSetup:
    """The segmentation network of the weights' variant, on their encoder. Raises `ValueError` and `InputError`."""
    architecture = segmentation_architecture(
        initial.variant, classes=in_channels, in_channels=in_channels, image_size=image_size
    )
    model = Inpainting(architecture, mask_ratio=mask_ratio)
    load_encoder(model.network, initial.encoder)
    return PretrainingSetup(model, model.network, architecture, {"init": initial.source, "init_sha256": initial.sha256})


def warn_preprocessing_mismatch(initial: PretrainedWeights, store: CropStore, report: Reporter) -> None:
    """A frozen encoder cannot adapt to another spacing, or to other intensities than it has learned from."""
    known, now = initial.description.preparation if initial.description else {}, store.manifest["preparation"]
    for name, of in (("spacing", "spacing (mm)"), ("normalisation", "intensities")):
        if known and known.get(name) != now.get(name):
            message = f"The encoder has learned from another {of} than the store's: {known.get(name)}, {now.get(name)}."
            report.warning("encoder_of_other_scans", message, "Prepare the scans as those of the encoder.")
