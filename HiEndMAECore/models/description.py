"""The description of a model, which `model.json` stores: what one must know to use its weights.

Only the standard library is needed. `schema` says which values are valid, `folder` reads and writes the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from HiEndMAECore import __version__

from .schema import ATLAS_FORMAT_VERSION as ATLAS_FORMAT_VERSION
from .schema import FORMAT_VERSION as FORMAT_VERSION
from .schema import KINDS as KINDS


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """The content of `model.json`. Its keys are stored names.

    Attributes:
        kind: "segmentation", or "pretraining" for weights that other models start from.
        name: Name that people gave to the model.
        architecture: {"network": registered name, "variant": name or "", "arguments": those of the constructor}.
        channels: Names of the input channels, in order.
        preparation: {"spacing": [R, A, S] in mm, "normalisation": {"kind", "low", "high"}, "orientation": "RAS"}, see
            `preprocessing.pipeline`.
        labels: Structures without the background, in the order of the classes: {"value", "name", "colour": [red, green,
            blue], "terminology"}. Values are those of label maps. Empty for pretraining.
        training: How the model was trained: initial weights and their SHA-256, steps, seconds, seed, versions, mirroring,
            fingerprints of the training cases ("teaching"), performance estimate ("self_check").
        weights_sha256: SHA-256 of the weights file; set on writing.
        atlas: What describes each atlas in `atlas.safetensors`, see `atlas_file`; set on writing. The key is absent from the
            file where there is no atlas.
        atlas_sha256: SHA-256 of that file, or an empty text; set on writing.
        format_version: Format of the model folder, 2 with an atlas and 1 without; set on writing.
        engine_version: Version of HiEndMAE that wrote the model.
        additional: Further keys of the file, which are unknown to this version and are kept when it is written again.
    """

    kind: str
    name: str
    architecture: Mapping[str, Any]
    channels: Sequence[str]
    preparation: Mapping[str, Any]
    labels: Sequence[Mapping[str, Any]] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    weights_sha256: str = ""
    atlas: Sequence[Mapping[str, Any]] = ()
    atlas_sha256: str = ""
    format_version: int = FORMAT_VERSION
    engine_version: str = __version__
    additional: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model_sha256(self) -> str:
        """Digest that two models share if they give the same labels.

        It covers the weights, the atlas and the parts of the description that decide a result, but neither the name of the
        model nor the record of its training.
        """
        deciding: dict[str, Any] = {
            "architecture": self.architecture,
            "channels": list(self.channels),
            "preparation": self.preparation,
            "labels": list(self.labels),
            "mirroring": self.training.get("mirroring") if isinstance(self.training, Mapping) else None,
            "weights_sha256": self.weights_sha256,
        }
        if self.atlas:  # digests of models without an atlas stay as they were
            deciding |= {"atlas": list(self.atlas), "atlas_sha256": self.atlas_sha256}
        text = json.dumps(deciding, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return the content of `model.json`: the known keys in a fixed order, then the additional ones."""
        absent = () if self.atlas else _ATLAS_NAMES
        known = {name: getattr(self, name) for name in _STORED_NAMES if name not in absent}
        return {**known, **self.additional}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelDescription:
        """Return the description of a validated `model.json`, see `schema.parse_model_json`."""
        additional = {key: value for key, value in data.items() if key not in _STORED_NAMES}
        return cls(**{key: data[key] for key in _STORED_NAMES if key in data}, additional=additional)


_ATLAS_NAMES = ("atlas", "atlas_sha256")
_STORED_NAMES = tuple(item.name for item in fields(ModelDescription) if item.name != "additional")
