"""The interface of pretraining objectives, and the capabilities of networks that they need.

An objective is one file: a function or class under `@register_objective`, which takes an `ObjectiveRequest` and returns a
`PretrainingSetup`: the model to train, and the part of it that `model.json` describes. The training loop knows a model
only as a `PretrainingObjective`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from HiEndMAECore.data.crop_store import CropStore
from HiEndMAECore.errors import InputError, UsageError
from HiEndMAECore.models.pretrained import PretrainedWeights, read_pretrained
from HiEndMAECore.networks.hi_end_mae import Reconstruction
from HiEndMAECore.networks.registry import network_class, network_of_variant
from HiEndMAECore.reporting.reporter import Reporter

from . import find_objective

# -- capabilities of networks --------------------------------------------------------------------------------------------


@runtime_checkable
class TokenEncoder(Protocol):
    """A network that encodes some patches of an image: `encode_tokens(patches, positions)`."""

    @property
    def depth(self) -> int: ...
    def encode_tokens(self, patches: Tensor, positions: Tensor) -> dict[int, Tensor]: ...


@runtime_checkable
class DenseForward(Protocol):
    """A network that maps an image (B, C, H, W, D) to logits (B, K, H, W, D); every segmentation network does."""

    def forward(self, image: Tensor) -> Tensor | list[Tensor]: ...


@runtime_checkable
class FeatureMaps(Protocol):
    """A network that returns the feature maps of its encoder, finest first."""

    def features(self, image: Tensor) -> list[Tensor]: ...


_CAPABILITY_TEXT = {  # for messages
    "TokenEncoder": "a ViT encoder",
    "DenseForward": "a segmentation network",
    "FeatureMaps": "an encoder with feature maps",
}


def has_capability(network: type, capability: type) -> bool:
    """Return whether a network class has every member that a capability names."""
    members = [name for name in vars(capability) if not name.startswith("_")]
    return all(hasattr(network, name) for name in members)


# -- the model that is trained -------------------------------------------------------------------------------------------


@runtime_checkable
class PretrainingObjective(Protocol):
    """What the training loop asks of the model that is trained; an `nn.Module`, whose state dict checkpoints hold.

    grid: patches along each axis. patch_size: voxels of their edge; crops have grid x patch_size voxels. visible: patches
    that are not masked. unrotated_crops: crops keep the patient's orientation.
    """

    grid: tuple[int, int, int]
    patch_size: int
    visible: int
    unrotated_crops: bool

    def __call__(self, volume: Tensor, permutation: Tensor, valid_mask: Tensor | None = None) -> Reconstruction:
        """Return loss and prediction for a volume (B, C, H, W, D) and the drawn order of its patches (B, L)."""
        ...

    def targets(self, volume: Tensor) -> Tensor:
        """Return the target of each patch (B, L, voxels), 0 for what a model that predicts nothing predicts."""
        ...

    def reconstruct_images(self, volume: Tensor, output: Reconstruction) -> tuple[Tensor, Tensor]:
        """Return the masked and the reconstructed volume (B, C, H, W, D), for the progress picture."""
        ...

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Turn gradient checkpointing on or off."""
        ...

    def to(self, device: torch.device) -> nn.Module: ...
    def train(self, mode: bool = True) -> nn.Module: ...
    def eval(self) -> nn.Module: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    @property
    def training(self) -> bool: ...


@dataclass(frozen=True)
class PretrainingSetup:
    """What a run trains and keeps.

    model: the objective's model. kept: the part of it that `model.json` describes as `architecture`. origin: the weights
    it started from, as `model.json` records them.
    """

    model: Any
    kept: nn.Module
    architecture: Mapping[str, Any]
    origin: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ObjectiveRequest:
    """What a run asks of an objective.

    objective, variant: names. initial: weights to start from. in_channels: channels of the store. image_size: crop in
    voxels, None: the variant's. mask_ratio: share of masked patches. cross_stages: stages of Hi-End-MAE's decoder.
    """

    objective: str
    variant: str
    in_channels: int = 1
    image_size: Sequence[int] | None = None
    mask_ratio: float = 0.75
    cross_stages: int = 3
    initial: PretrainedWeights | None = None


Builder = TypeVar("Builder", bound=Callable[[ObjectiveRequest], PretrainingSetup])
_BUILDERS: dict[str, tuple[Callable[[ObjectiveRequest], PretrainingSetup], tuple[type, ...]]] = {}


def register_objective(
    name: str, *, requires: tuple[type, ...], needs_init: bool = False, frozen_encoder: bool = False
) -> Callable[[Builder], Builder]:
    """Return a decorator that registers an objective.

    Args:
        name: Name for `--objective`: a string literal, because it is read without importing.
        requires: Capabilities that the network must have.
        needs_init, frozen_encoder: Literals, see `RegisteredObjective`.
    """

    def register(builder: Builder) -> Builder:
        _BUILDERS[name] = (builder, requires)
        return builder

    return register


def build_objective(request: ObjectiveRequest) -> PretrainingSetup:
    """Build the model of an objective.

    Raises:
        UsageError: If the variant's network lacks a capability that the objective needs.
        ValueError: If a size does not suit the network.
        InputError: If the starting weights do not fit.
    """
    importlib.import_module(find_objective(request.objective).module)
    build, requires = _BUILDERS[request.objective]
    network = network_class(network_of_variant(request.variant))
    for capability in requires:
        if not has_capability(network, capability):
            raise UsageError(
                "objective_unsuitable",
                f"--objective {request.objective} needs {_CAPABILITY_TEXT[capability.__name__]}; the network "
                f"{network.registered_name} (--variant {request.variant}) is not one.",
                "Choose another --objective or another --variant.",
            )
    return build(request)


def read_initial_encoder(init: str, variant: str) -> PretrainedWeights:
    """Read the weights that an objective starts from.

    Raises:
        InputError: If they cannot be read, or are not of the variant.
    """
    initial = read_pretrained(init)
    advice = "Give a pretrained encoder and its variant."
    if initial is None:
        raise InputError("weights_of_another_variant", f"--init {init} names no pretrained encoder.", advice)
    if initial.variant != variant:
        known = f"variant {initial.variant}" if initial.variant else "an unknown variant"
        message = f"The weights {init} are of {known}, but --variant is {variant}."
        raise InputError("weights_of_another_variant", message, advice)
    return initial


def warn_preprocessing_mismatch(initial: PretrainedWeights, store: CropStore, report: Reporter) -> None:
    """Warn if a frozen encoder was trained at another spacing, or on other intensities, than those of the store."""
    known, now = initial.description.preparation if initial.description else {}, store.manifest["preparation"]
    for name, of in (("spacing", "spacing (mm)"), ("normalisation", "intensities")):
        if known and known.get(name) != now.get(name):
            message = f"The encoder was trained on another {of} than the store's: {known.get(name)}, {now.get(name)}."
            report.warning("encoder_of_other_scans", message, "Prepare the scans as those of the encoder.")
