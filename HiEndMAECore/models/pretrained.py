"""From any starting weights to a segmentation network: what `--init` accepts, and the rule by which they move.

The rule (DESIGN, "From pretraining to fine-tuning"): the same encoder, the same function; positions are computed for the
grid at hand; the patch embedding is inflated to more channels; every other key is strict.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from HiEndMAECore.errors import InputError
from HiEndMAECore.models import folder

from .authors import infer_variant, load_strict, read_authors_checkpoint
from .catalogue import check_known_file, find_entry, packaged_weights
from .description import ModelDescription

if TYPE_CHECKING:
    from torch import Tensor

    from HiEndMAECore.networks import UNETR, HybridUNETR


_PATCH_WEIGHT = "patch_embed.proj.weight"


@dataclass(frozen=True)
class PretrainedWeights:
    """Weights to start from: where they come from (`source`, `sha256`), the sizes of their network (`arguments`, as
    UNETR's where they are known), the whole `state` and, for a model folder, its `description`."""

    source: str
    sha256: str
    variant: str
    state: Mapping[str, Tensor]
    description: ModelDescription | None = None

    @property
    def encoder(self) -> dict[str, Tensor]:
        """The encoder's weights without their leading `encoder.`."""
        return {key.removeprefix("encoder."): value for key, value in self.state.items() if key.startswith("encoder.")}

    @property
    def network(self) -> str:
        """Which network they are of, as far as is known: "HiEndMAE", "UNETR", "HybridUNETR" or ""."""
        return str(self.description.architecture.get("network", "")) if self.description else ""

    @property
    def is_segmentation(self) -> bool:
        return self.description is not None and self.description.kind == "segmentation"


def read_pretrained(init: str) -> PretrainedWeights | None:
    """What `--init` names: a model folder or zip, a pretraining run, the authors' file, a catalogue name; None for 'none'."""
    if init.lower() in ("", "none"):
        return None
    path = Path(init)
    if path.is_dir() and not folder.is_model(path) and folder.is_model(path / "model"):
        path = path / "model"  # a pretraining run
    if path.suffix in (".pt", ".pth") and path.is_file():
        sha256 = _sha256(path)
        check_known_file(path.name, sha256)
        state = read_authors_checkpoint(path)
        return PretrainedWeights(str(path.name), sha256, infer_variant(state, source=str(path)).name, state)
    entry = None if path.exists() else find_entry(init)
    if entry and (ours := packaged_weights(entry)):
        path = ours
    if path.exists():
        description = folder.read_description(path)
        state = folder.read_weights(path, description)
        variant = str(description.architecture.get("variant", ""))
        return PretrainedWeights(description.name, description.weights_sha256, variant, state, description)
    assert entry is not None
    raise InputError("init_not_at_hand", f"The weights '{entry.name}' are not on this computer.", entry.how_to_place)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def load_encoder(network: UNETR | HybridUNETR, weights: Mapping[str, Tensor]) -> None:
    """Load encoder `weights` (without `encoder.`) into the network's encoder by the rule above; raises `InputError`."""
    state = dict(weights)
    if network.encoder.cls_token is None:
        state.pop("cls_token", None)  # the authors' fine-tuning network has none
    if _PATCH_WEIGHT in state:
        state[_PATCH_WEIGHT] = inflate_input_weight(
            state[_PATCH_WEIGHT], network.encoder.patch_embed.proj.weight.shape[1]
        )
    load_strict(network.encoder, {key: value.float() for key, value in state.items()}, what="encoder weights")


def _for_channels_of(ours: Mapping[str, Tensor], key: str, weight: Tensor) -> Tensor:
    """`weight`, inflated where it reads the scan and `ours` reads more channels (it is smaller there, and nowhere else)."""
    shape = ours[key].shape if key in ours else weight.shape
    reads = (
        weight.ndim == 5 and weight.shape != shape and (weight.shape[0], *weight.shape[2:]) == (shape[0], *shape[2:])
    )
    return inflate_input_weight(weight, shape[1]) if reads else weight


def inflate_input_weight(weight: Tensor, channels: int) -> Tensor:
    """Patch embedding or convolution (dim, C, p, p, p) that reads the scan, for more input channels: copied, divided by their
    number, so that equal channels give the old result. Raises `InputError` when the channels cannot be matched."""
    known = weight.shape[1]
    if known == channels:
        return weight
    if known != 1:
        raise InputError(
            "channels_do_not_fit",
            f"The weights were trained on {known} channels, the scans have {channels}.",
            "Use weights of one channel, or of the same number.",
        )
    return weight.expand(-1, channels, -1, -1, -1) / channels


def load_pretrained(network: UNETR | HybridUNETR, initial: PretrainedWeights | None) -> dict[str, Any]:
    """Put the starting weights into `network`; returns what `model.json` tells about them.

    Pretraining weights fill the encoder; those of inpainting the convolutions too, where `network` has the same, but for
    the last, which predicts something else. A segmentation model fills everything, but for the last convolution where it knows
    other structures. `init_taken` says which: "encoder" or "network".
    """
    if initial is None:
        return {"init": "none"}
    taken = "network"
    if initial.is_segmentation:
        state = dict(initial.state)
        ours = network.state_dict()
        for key in [key for key in state if key.startswith("out.") and state[key].shape != ours[key].shape]:
            state[key] = ours[key]
        load_strict(network, state, what="segmentation weights")
    elif initial.network == type(network).__name__:
        ours = network.state_dict()
        state = {key: _for_channels_of(ours, key, value.float()) for key, value in initial.state.items()}
        if network.encoder.cls_token is None:
            state.pop("encoder.cls_token", None)
        state |= {key: value for key, value in ours.items() if key.startswith("out.")}
        load_strict(network, state, what="pretrained weights")
    else:
        load_encoder(network, initial.encoder)
        taken = "encoder"
    return {"init": initial.source, "init_sha256": initial.sha256, "init_taken": taken}
