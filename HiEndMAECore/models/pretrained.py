"""Weights to start from: what `--init` accepts, and how they initialize a segmentation network.

Each network says by its transfer rules how weights are adapted to it (`networks.interface`): the same encoder, the same
function; position embeddings are computed for the grid at hand; input layers are inflated to more channels; every other
key must fit exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from HiEndMAECore.errors import InputError
from HiEndMAECore.io.atomic import sha256_file
from HiEndMAECore.models import folder
from HiEndMAECore.networks.transfer import inflate_input_weight as inflate_input_weight

from .authors import infer_variant, read_authors_checkpoint
from .catalogue import check_known_file, find_entry, packaged_weights
from .description import ModelDescription

if TYPE_CHECKING:
    from torch import Tensor

    from HiEndMAECore.networks import SegmentationNetwork


@dataclass(frozen=True)
class PretrainedWeights:
    """Weights to start from.

    source, sha256: where they come from. variant: name of the variant, "" if unknown. state: the whole state dict.
    description: of a model folder, else None.
    """

    source: str
    sha256: str
    variant: str
    state: Mapping[str, Tensor]
    description: ModelDescription | None = None

    @property
    def encoder(self) -> dict[str, Tensor]:
        """The weights of a ViT encoder without their leading `encoder.`."""
        return {key.removeprefix("encoder."): value for key, value in self.state.items() if key.startswith("encoder.")}

    @property
    def network(self) -> str:
        """The registered name of their network as far as it is known: "HiEndMAE", "UNETR", …, or ""."""
        return str(self.description.architecture.get("network", "")) if self.description else ""

    @property
    def is_segmentation(self) -> bool:
        """Whether they were trained to segment."""
        return self.description is not None and self.description.kind == "segmentation"


def read_pretrained(init: str) -> PretrainedWeights | None:
    """Read the weights that `--init` names.

    Args:
        init: A model folder or zip, a pretraining run, the authors' file, a catalogue name, or "none".

    Returns:
        The weights; None for "none".

    Raises:
        InputError: If there are no such weights, or they cannot be read.
    """
    if init.lower() in ("", "none"):
        return None
    path = Path(init)
    if not folder.is_model(path) and path.is_dir() and folder.is_model(path / "model"):
        path = path / "model"  # a pretraining run
    if path.suffix in (".pt", ".pth") and path.is_file():
        sha256 = sha256_file(path)
        check_known_file(path.name, sha256)
        state = read_authors_checkpoint(path)
        return PretrainedWeights(str(path.name), sha256, infer_variant(state, source=str(path)).name, state)
    entry = None if path.exists() else find_entry(init)
    if entry and (packaged := packaged_weights(entry)):
        path = packaged
    if path.exists():
        description, state = folder.read_model(path)
        variant = str(description.architecture.get("variant", ""))
        return PretrainedWeights(description.name, description.weights_sha256, variant, state, description)
    assert entry is not None
    raise InputError("init_not_at_hand", f"The weights '{entry.name}' are not on this computer.", entry.how_to_place)


def load_encoder(network: SegmentationNetwork, weights: Mapping[str, Tensor]) -> None:
    """Load the encoder alone, by the network's transfer rules.

    Args:
        network: A network with a ViT encoder.
        weights: The encoder's weights without their leading `encoder.`.

    Raises:
        InputError: If the weights do not fit.
    """
    state = {f"encoder.{name}": value for name, value in weights.items()}
    network.load_pretrained(PretrainedWeights("the encoder", "", "", state))


def load_pretrained(network: SegmentationNetwork, initial: PretrainedWeights | None) -> dict[str, Any]:
    """Initialize `network` from pretrained weights.

    Pretraining weights fill the encoder; those of inpainting the decoder too, if `network` is the same, but not the head,
    which predicts something else. A segmentation model fills everything, but not a head of other structures.

    Returns:
        What `model.json` records of the weights: `init`, `init_sha256` and `init_taken` ("encoder" or "network").

    Raises:
        InputError: If the weights do not fit the network.
    """
    if initial is None:
        return {"init": "none"}
    part = network.load_pretrained(initial).part
    return {"init": initial.source, "init_sha256": initial.sha256, "init_taken": part}
