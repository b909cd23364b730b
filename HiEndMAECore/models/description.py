"""The model folder: what training leaves, what clinicians share (also as one `.zip`), and how it is read back.

    MODEL/model.safetensors   weights, fp32 or fp16
    MODEL/model.json          everything one must know to use them, see `ModelDescription`

No pixels, no patient identifiers, no pickles. Descriptions are read with the standard library alone; weights need torch.
Both are written beside their place and renamed into it: a killed run leaves the old model or the new one, never half.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from HiEndMAECore import __version__

FORMAT_VERSION = 1
KINDS = ("segmentation", "pretraining")


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """The content of `model.json`.

    kind: "segmentation" (a UNETR or hybrid) or "pretraining" (a Hi-End-MAE or MAE, or what inpainting taught).
    name: what people call it.
    architecture: {"network": "UNETR", "HybridUNETR" or "HiEndMAE", "variant": name or "", "arguments": its constructor's}.
    channels: names of the input channels, in order.
    preparation: {"spacing": [R, A, S] mm, "normalisation": {…}, "orientation": "RAS"}, see `volumes.preparation`.
    labels: [{"value", "name", "colour": [r, g, b], "terminology": {…}}], without background; empty for pretraining.
        Values are those of the label maps that it learned from and that it writes.
    training: how it was trained: init and its SHA-256, steps, seconds, seed, versions, self-check; "teaching": facts of
        the scans (no pixels), see `inference.trust`.
    weights_sha256: of the weights file; filled on writing.
    """

    kind: str
    name: str
    architecture: Mapping[str, Any]
    channels: Sequence[str]
    preparation: Mapping[str, Any]
    labels: Sequence[Mapping[str, Any]] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    weights_sha256: str = ""
    format_version: int = FORMAT_VERSION
    engine_version: str = __version__

    @property
    def model_sha256(self) -> str:
        """What two models share that give the same labels: a digest of the description's parts that decide a result
        and of the weights. Names of the model and facts of its training do not count."""
        deciding = {
            "architecture": self.architecture,
            "channels": list(self.channels),
            "preparation": self.preparation,
            "labels": list(self.labels),
            "mirroring": self.training.get("mirroring") if isinstance(self.training, Mapping) else None,
            "weights_sha256": self.weights_sha256,
        }
        text = json.dumps(deciding, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()
