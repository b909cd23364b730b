"""Run directory of pretraining: `model/`, from which other runs start, and `progress.png`.

The training checkpoints beside them are written by `checkpoints` and `log.jsonl` by `training_log`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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

_MAX_DRAWN_CROPS = 3
_SAME_ON_RESUME = (
    "variant", "objective", "init", "cross_stages", "steps", "batch_size", "mask_ratio", "crop", "learning_rate", "warm_up",
    "weight_decay", "decay_all", "clip", "seed",
)  # fmt: skip


def require_same_run(
    folder: Path, config: Mapping[str, Any], earlier: Mapping[str, Any] | None, *, resume: bool
) -> None:
    """Check that a run may be written to `folder`.

    Args:
        folder: Run directory.
        config: Config of `pretrain`, as in its record.
        earlier: Config of the run in `folder`, or None when there is none.
        resume: True when that run is to be continued.

    Raises:
        UsageError: `run_exists`, when there is a run that is not to be resumed; `run_differs`, when it has other settings.
    """
    if not earlier:
        return
    if not resume and (folder / "snapshots").is_dir():
        raise UsageError("run_exists", f"{folder} contains a run.", "Add --resume, or choose another --output.")
    for name in _SAME_ON_RESUME if resume else ():
        if earlier.get(name) != config[name]:
            message = f"The run was started with {name} {earlier.get(name)}, not {config[name]}."
            raise UsageError("run_differs", message, "Resume with the same settings.")


@dataclass(frozen=True)
class RunDirectory:
    """Folder of one run, with what does not change during the run.

    Attributes:
        path: The folder.
        setup: Model of the objective, and what of it the model folder describes.
        store: Store of preprocessed scans.
        seed: Seed of the run.
    """

    path: Path
    setup: PretrainingSetup
    store: CropStore
    seed: int

    @property
    def model(self) -> Path:
        """The model folder, which `--init` accepts."""
        return self.path / "model"

    def write(
        self, result: PretrainingResult, crops: ValidationCrops, output: Reconstruction, *, report: Reporter
    ) -> None:
        """Write the model folder and the figure. The keys of `training` are stored names.

        Args:
            result: State of the run.
            crops: Validation crops.
            output: Reconstruction of the first validation batch.
            report: Receives the event `preview`.
        """
        description = ModelDescription(
            kind="pretraining",
            name=self.path.name,
            architecture=self.setup.architecture,
            channels=[f"channel {index}" for index in range(self.store.channels)],
            preparation={**self.store.manifest["preparation"], "orientation": "RAS"},
            training={
                **self.setup.origin,
                "steps": result.steps,
                "seconds": round(result.seconds, 1),
                "seed": self.seed,
                "scans": len(self.store),
                "loss": result.losses[-1][1] if result.losses else None,
                "watch_loss": result.validation_losses[-1][1] if result.validation_losses else None,
                "versions": versions(),
            },
        )
        write_model(self.model, description, self.setup.kept.state_dict())
        self.draw(result, crops, output, report=report)

    def draw(
        self, result: PretrainingResult, crops: ValidationCrops, output: Reconstruction, *, report: Reporter
    ) -> None:
        """Draw `progress.png`; warn when matplotlib is missing. The arguments are those of `write`."""
        from HiEndMAECore.reporting.figures import draw_progress

        figure = self.path / "progress.png"
        try:
            draw_progress(
                figure,
                losses=result.losses,
                validation_losses=result.validation_losses,
                rates=[(record.step, record.learning_rate) for record in result.records],
                speeds=[(record.step, record.crops_per_second) for record in result.records],
                reconstructions=self._middle_slices(crops, output),
            )
        except MissingDependencyError as error:
            report.warning(error.code, f"The progress figure is not drawn. {error.message}", error.advice)
        else:
            report.preview(figure)

    def _middle_slices(
        self, crops: ValidationCrops, output: Reconstruction
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Return (original, masked, reconstructed) middle slices (rows, columns) of the first validation crops."""
        volume, _, _ = crops.batches[0].to(output.prediction.device)
        masked, reconstructed = self.setup.model.reconstruct_images(volume, output)
        middle = volume.shape[-1] // 2
        rows = []
        for crop in range(min(_MAX_DRAWN_CROPS, len(volume))):
            slices = (
                images[crop, 0, :, :, middle].float().cpu().clamp(0, 1) for images in (volume, masked, reconstructed)
            )
            original, masked_slice, reconstructed_slice = (image.numpy().T[::-1] for image in slices)
            rows.append((original, masked_slice, reconstructed_slice))
        return rows
