"""What a pretraining run leaves for use: `model/` to start from and `progress.png` to look at.

The snapshots beside them (see `snapshots`) are for going on; `log.jsonl` is `run_log`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from HiEndMAECore.data.crop_store import CropStore
from HiEndMAECore.errors import MissingDependencyError, UsageError
from HiEndMAECore.models.description import ModelDescription
from HiEndMAECore.models.folder import write_model
from HiEndMAECore.networks.hi_end_mae import Reconstruction
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.reporting.run_record import versions
from HiEndMAECore.training.objectives.base import PretrainingSetup

from .monitor import ValidationCrops
from .pretraining import PretrainingResult

_SHOWN = 3  # of the watched crops, in the picture
_SAME_ON_RESUME = (
    "variant", "objective", "init", "cross_stages", "steps", "batch_size", "mask_ratio", "crop", "learning_rate", "warm_up",
    "weight_decay", "decay_all", "clip", "seed",
)  # fmt: skip


def require_same_run(
    folder: Path, config: Mapping[str, Any], earlier: Mapping[str, Any] | None, *, resume: bool
) -> None:
    """Raise `UsageError` when `folder` holds a run that is not to be resumed, or one of other settings. config, earlier: of
    `pretrain`, as in its record."""
    if not earlier:
        return
    if not resume and (folder / "snapshots").is_dir():
        raise UsageError("run_exists", f"{folder} holds a run.", "Add --resume, or choose another --output.")
    for name in _SAME_ON_RESUME if resume else ():
        if earlier.get(name) != config[name]:
            message = f"The run was started with {name} {earlier.get(name)}, not {config[name]}."
            raise UsageError("run_differs", message, "Resume with the same settings.")


@dataclass(frozen=True)
class RunDirectory:
    """The folder of one run and what does not change in it."""

    path: Path
    built: PretrainingSetup
    store: CropStore
    seed: int

    @property
    def model(self) -> Path:
        """The model folder that `--init` takes."""
        return self.path / "model"

    def write(
        self, done: PretrainingResult, watch: ValidationCrops, output: Reconstruction, *, report: Reporter
    ) -> None:
        """Write the model as it stands after `done.steps` steps, and the picture."""
        description = ModelDescription(
            kind="pretraining",
            name=self.path.name,
            architecture=self.built.architecture,
            channels=[f"channel {index}" for index in range(self.store.channels)],
            preparation={**self.store.manifest["preparation"], "orientation": "RAS"},
            training={
                **self.built.origin,
                "steps": done.steps,
                "seconds": round(done.seconds, 1),
                "seed": self.seed,
                "scans": len(self.store),
                "loss": done.losses[-1][1] if done.losses else None,
                "watch_loss": done.watched[-1][1] if done.watched else None,
                "versions": versions(),
            },
        )
        write_model(self.model, description, self.built.kept.state_dict())
        self.draw(done, watch, output, report=report)

    def draw(
        self, done: PretrainingResult, watch: ValidationCrops, output: Reconstruction, *, report: Reporter
    ) -> None:
        """Draw `progress.png` anew."""
        from HiEndMAECore.reporting.figures import draw_progress

        volume, _, _ = watch.batches[0].on(output.prediction.device)
        hidden, rebuilt = self.built.model.reconstruct_images(volume, output)
        rows = []
        for crop in range(min(_SHOWN, len(volume))):
            middle = volume.shape[-1] // 2
            trio = (part[crop, 0, :, :, middle].float().cpu().clamp(0, 1) for part in (volume, hidden, rebuilt))
            seen, covered, painted = (part.numpy().T[::-1] for part in trio)
            rows.append((seen, covered, painted))
        picture = self.path / "progress.png"
        try:
            draw_progress(
                picture,
                losses=done.losses,
                watched=done.watched,
                rates=[(record.step, record.learning_rate) for record in done.records],
                speeds=[(record.step, record.crops_per_second) for record in done.records],
                reconstructions=rows,
            )
        except MissingDependencyError as error:
            report.warning(error.code, f"No progress picture is drawn. {error.message}", error.advice)
        else:
            report.preview(picture)
