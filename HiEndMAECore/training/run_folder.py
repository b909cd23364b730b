"""What a pretraining run leaves: `model/` to start from, `log.jsonl`, and `progress.png` to look at.

The snapshot beside them (see `snapshots`) is for going on; the model is for using.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from HiEndMAECore.checkpoints.model_folder import ModelDescription, write_model
from HiEndMAECore.errors import MissingDependencyError
from HiEndMAECore.networks import HiEndMAE
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.reporting.run_record import versions
from HiEndMAECore.reporting.writing import write_text
from HiEndMAECore.volumes.crop_store import CropStore

from .pretraining import PretrainingResult, draw_batch

_SHOWN = 3  # crops in the picture, always the same (drawn with another seed than the run's)


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run and what does not change in it."""

    path: Path
    variant: str
    arguments: Mapping[str, Any]
    store: CropStore
    seed: int

    @property
    def model(self) -> Path:
        """The model folder that `--init` takes."""
        return self.path / "model"

    def write(self, model: HiEndMAE, done: PretrainingResult, *, report: Reporter) -> None:
        """Write model, log and picture as they stand after `done.steps` steps."""
        description = ModelDescription(
            kind="pretraining",
            name=self.path.name,
            architecture={"network": "HiEndMAE", "variant": self.variant, "arguments": dict(self.arguments)},
            channels=[f"channel {index}" for index in range(self.store.channels)],
            preparation={**self.store.manifest["preparation"], "orientation": "RAS"},
            training={
                "steps": done.steps,
                "seconds": round(done.seconds, 1),
                "seed": self.seed,
                "scans": len(self.store),
                "loss": done.losses[-1][1] if done.losses else None,
                "versions": versions(),
            },
        )
        write_model(self.model, description, model.state_dict())
        lines = [json.dumps({"step": step, "loss": loss}) for step, loss in done.losses]
        write_text(self.path / "log.jsonl", "\n".join(lines) + "\n")
        self._draw(model, done, report=report)

    @torch.no_grad()
    def _draw(self, model: HiEndMAE, done: PretrainingResult, *, report: Reporter) -> None:
        from HiEndMAECore.reporting.figures import draw_progress

        volume, permutation = draw_batch(self.store, range(_SHOWN), model, self.seed + 1)
        device = next(model.parameters()).device
        training = model.training
        model.eval()
        output = model(volume.to(device), permutation)
        hidden, rebuilt = model.picture(volume.to(device), output)
        model.train(training)
        rows = []
        for crop in range(_SHOWN):
            middle = volume.shape[-1] // 2
            trio = (volume[crop, 0, :, :, middle], hidden[crop, 0, :, :, middle], rebuilt[crop, 0, :, :, middle])
            seen, covered, painted = (part.float().cpu().clamp(0, 1).numpy().T[::-1] for part in trio)
            rows.append((seen, covered, painted))
        picture = self.path / "progress.png"
        try:
            draw_progress(picture, losses=done.losses, reconstructions=rows)
        except MissingDependencyError as error:
            report.warning(error.code, f"No progress picture is drawn. {error.message}", error.advice)
        else:
            report.preview(picture)
