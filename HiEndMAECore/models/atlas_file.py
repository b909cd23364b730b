"""The file `atlas.safetensors` of a model: a coarse atlas of each labelled scan, without intensities.

    0.features, 1.features, ...   uint8 (C, X, Y, Z): MIND-SSC, of CT the tissue class, share of the body, times 255
    0.labels, 1.labels, ...       uint8 or int16 (X, Y, Z): 0 for background, i + 1 for structure i of the model

`model.json` has an entry `atlas` with a description of each (modality and grids), and the SHA-256 of the file. This module
knows tensors and JSON; `registration.atlas` knows what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .schema import unusable_model

if TYPE_CHECKING:
    from torch import Tensor

_TENSORS = ("features", "labels")
_MAX_FEATURE_CHANNELS = 14
_MAX_LABEL_BYTES = 2  # of a voxel
_MAX_HEADER_BYTES = 1_000_000


class AtlasContent(Protocol):
    """An atlas that can be written to a model."""

    def to_json(self) -> dict[str, Any]:
        """Return its entry of `model.json`."""

    def to_tensors(self) -> dict[str, Tensor]:
        """Return its tensors, "features" and "labels"."""


@dataclass(frozen=True, eq=False)
class StoredAtlas:
    """An atlas as a model stores it.

    Attributes:
        metadata: Its entry of `model.json`, validated.
        tensors: Its tensors "features" and "labels", whose types and sizes are not validated.
    """

    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def to_json(self) -> dict[str, Any]:
        """Return its entry of `model.json`."""
        return dict(self.metadata)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return its tensors, "features" and "labels"."""
        return dict(self.tensors)


def encode_atlases(atlases: Sequence[AtlasContent]) -> tuple[list[dict[str, Any]], bytes]:
    """Return the entry `atlas` of `model.json` and the content of the file."""
    from safetensors.torch import save

    tensors = {
        f"{index}.{name}": tensor.detach().cpu().contiguous().clone()  # no two share their memory
        for index, atlas in enumerate(atlases)
        for name, tensor in atlas.to_tensors().items()
    }
    return [atlas.to_json() for atlas in atlases], save(tensors)


def decode_atlases(content: bytes, metadata: Sequence[Mapping[str, Any]], path: Path) -> tuple[StoredAtlas, ...]:
    """Return the atlases of a file.

    Args:
        content: The file's bytes.
        metadata: The entry `atlas` of `model.json`, validated.
        path: The model, for messages.

    Raises:
        InputError: `model_unusable` if the file cannot be read or has other tensors.
    """
    import safetensors
    from safetensors.torch import load

    try:
        tensors = load(content)
    except (safetensors.SafetensorError, KeyError) as error:  # KeyError: a type that torch does not know
        raise unusable_model(path, f"its atlas cannot be read ({error})") from error
    expected = {f"{index}.{name}" for index in range(len(metadata)) for name in _TENSORS}
    if set(tensors) != expected:
        differing = ", ".join(sorted(set(tensors) ^ expected)[:4])
        raise unusable_model(path, f"its atlas and its description differ in the tensors ({differing})")
    return tuple(
        StoredAtlas(entry, {name: tensors[f"{index}.{name}"] for name in _TENSORS})
        for index, entry in enumerate(metadata)
    )


def max_bytes(metadata: Sequence[Mapping[str, Any]]) -> int:
    """Return the largest size in bytes of a file that fits the entry `atlas` of `model.json`."""
    features = sum(math.prod(entry["features"]["shape"]) for entry in metadata)
    labels = sum(math.prod(entry["labels"]["shape"]) for entry in metadata)
    return _MAX_FEATURE_CHANNELS * features + _MAX_LABEL_BYTES * labels + _MAX_HEADER_BYTES
