"""The panel *Improve*: add a corrected result to the training cases, and continue training the model that made it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import slicer
from slicer.i18n import tr as _

from HiEndMAECore.errors import HiEndMAEError, InputError
from HiEndMAECore.finetune import FinetuneConfig
from HiEndMAESegmentationLib.engine.jobs import as_typed_error
from HiEndMAESegmentationLib.engine.model_library import Model
from HiEndMAESegmentationLib.engine.training_job import TrainingJob, temporary_folder
from HiEndMAESegmentationLib.scene.export import write_training_case
from HiEndMAESegmentationLib.scene.nodes import has_voxels, segments_of
from HiEndMAESegmentationLib.scene.provenance import (
    MODEL_ATTRIBUTE,
    mark_as_training_case,
    training_cases_of,
    training_volume_of,
)

from .base import JobStrip, Session, load_ui, make_bold, make_gray
from .training_preview import TrainingPreview

TrainingCase = tuple[Any, Any, list[str]]  # volume, segmentation, IDs of the segments to train on


class RefinePanel:
    """A corrected segmentation and the button *Improve*.

    `steps` sets training steps instead of the time budget, for tests and scripts.
    """

    def __init__(self, session: Session, layout: Any) -> None:
        self.session = session
        self.steps: int | None = None
        self.widget, self.ui = load_ui("Refine")
        layout.addWidget(self.widget)
        self.strip = JobStrip(session, layout, can_finish=True)
        self._training_job: TrainingJob | None = None
        make_bold(self.ui.refineButton)
        make_gray(self.ui.refineHint)
        self.ui.refineButton.connect("clicked()", self.refine)
        session.on_job_changed.append(self.show)
        session.on_close.append(self.discard_failed_run)

    def show(self, *_args: Any) -> None:
        """Update the panel from the parameters."""
        parameters = self.session.parameters
        if parameters is not None:
            self.ui.refineButton.enabled = parameters.corrected is not None and not self.session.busy

    def model_of(self, segmentation: Any) -> Model:
        """Return the model that made this result, or the one that is chosen in *Apply*.

        Raises:
            InputError: The model is not in the library.
        """
        key = segmentation.GetAttribute(MODEL_ATTRIBUTE) or self.session.parameters.model
        model = self.session.library.find(key)
        if model is None:
            message = _("The model that made this result is no longer on this computer.")
            raise InputError("model_gone", message, _("Import it again, or train a new one."))
        return model

    def training_cases(self, model: Model, corrected: Any) -> list[TrainingCase]:
        """Return the corrected result, and the cases of this scene that the model was trained on.

        Raises:
            InputError: The scan of the corrected result is not in the scene.
        """
        volume = training_volume_of(corrected)
        if not has_voxels(volume):
            message = _("The scan of this segmentation is not in the scene.")
            raise InputError("scan_absent", message, _("Load it, and choose it as the segmentation's source volume."))
        names = {label["name"] for label in model.description.labels}
        cases = [(volume, corrected, [segment.id for segment in segments_of(corrected)])]
        for other_volume, segmentation in training_cases_of(model.key):
            if segmentation is not corrected:
                ids = [segment.id for segment in segments_of(segmentation) if segment.name in names]
                cases.append((other_volume, segmentation, ids))
        return cases

    def discard_failed_run(self) -> None:
        """Remove the files of a run that failed and will not be continued."""
        if self._training_job is not None and not self.session.busy:
            self._training_job.remove_files()
            self._training_job = None

    def refine(self) -> None:
        """Write all training cases, and start the engine."""
        self.discard_failed_run()
        corrected = self.session.parameters.corrected
        try:
            model = self.model_of(corrected)
            values = {label["name"]: label["value"] for label in model.description.labels}
            cases = self.training_cases(model, corrected)
            with temporary_folder() as folder:
                files = [
                    write_training_case(volume, segmentation, folder / str(index), segments=ids, values=values)
                    for index, (volume, segmentation, ids) in enumerate(cases)
                ]
        except (HiEndMAEError, OSError) as error:
            self.strip.show_error(as_typed_error(error))
            return
        name = self.session.library.free_name(model.name)
        config = FinetuneConfig(
            image=tuple(str(case.image) for case in files),
            label=tuple(case.label for case in files),
            improve=model.path,
            output=self.session.library.free_path(name),
            name=name,
            budget=self.session.parameters.budget,
            steps=self.steps,
            no_atlas=not self.session.parameters.keepAtlas,
            preview=True,  # of the first scan: the corrected one
        )
        absent = _number_of_cases(model) - len(training_cases_of(model.key))
        self._training_job = TrainingJob(
            self.strip,
            config,
            folder=folder,
            preview=TrainingPreview(cases[0][0], model.description.labels),
            on_finished=lambda: self._on_finished(config, cases, model, absent),
            restart=self.refine,
        )
        self._training_job.run()

    def _on_finished(self, config: FinetuneConfig, cases: Sequence[TrainingCase], model: Model, absent: int) -> None:
        """Record the training cases in the scene, choose the new model and show a message.

        Args:
            config: Options of the run.
            cases: The cases that the new model was trained on.
            model: The model that the training started from.
            absent: Number of the old model's training cases that are not in the scene.
        """
        assert config.output is not None
        for volume, segmentation, _ids in cases:
            if slicer.mrmlScene.IsNodePresent(segmentation):
                mark_as_training_case(segmentation, config.output.name, volume)
        self.session.models_changed()
        self.session.parameters.model = config.output.name
        message = _("'{name}' was trained on {count} scans. '{old}' is still there, unchanged.")
        if len(cases) == 1:
            message = _("'{name}' was trained on the corrected scan. '{old}' is still there, unchanged.")
        text = message.format(name=config.name, count=len(cases), old=model.name)
        if absent > 0:
            message = _("{absent} of the {all} scans that it was trained on are not in this scene, and were not used.")
            text += "\n" + message.format(absent=absent, all=_number_of_cases(model))
        self.strip.show_message(text, kind="info" if absent > 0 else "success")


def _number_of_cases(model: Model) -> int:
    """Return the number of scans that a model was trained on, 0 if its record does not state it."""
    cases = model.description.training.get("cases", 0)
    return cases if isinstance(cases, int) else 0
