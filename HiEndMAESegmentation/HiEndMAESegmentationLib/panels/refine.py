"""The third panel: a corrected result joins the teaching set, and learning goes on from the model that made it."""

from __future__ import annotations

from typing import Any

import slicer
from slicer.i18n import tr as _

from HiEndMAECore.errors import HiEndMAEError, InputError
from HiEndMAECore.finetune import FinetuneConfig
from HiEndMAESegmentationLib.engine.model_library import Model
from HiEndMAESegmentationLib.engine.training_job import Learning, fresh_folder
from HiEndMAESegmentationLib.scene import nodes as scene

from .base import JobStrip, Session, dimmed, load, strong, typed
from .training_preview import Watching


class ImprovePanel:
    """A corrected segmentation: Improve. steps: as in `TeachPanel`."""

    def __init__(self, session: Session, layout: Any) -> None:
        self.session = session
        self.steps: int | None = None
        self.widget, self.ui = load("Refine")
        layout.addWidget(self.widget)
        self.strip = JobStrip(session, layout, can_finish=True)
        self._learning: Learning | None = None
        strong(self.ui.improveButton)
        dimmed(self.ui.improveHint)
        self.ui.improveButton.connect("clicked()", self.improve)
        session.on_job_changed.append(self.show)
        session.on_close.append(self.give_up)

    def show(self, *_args: Any) -> None:
        """Bring the panel to what the parameters say."""
        chosen = self.session.parameters
        if chosen is not None:
            self.ui.improveButton.enabled = chosen.corrected is not None and not self.session.busy

    def model_of(self, segmentation: Any) -> Model:
        """The model that made this result, or the one chosen above. Raises `InputError`."""
        key = segmentation.GetAttribute(scene.MADE_WITH) or self.session.parameters.model
        model = self.session.library.find(key)
        if model is None:
            told = _("The model that made this result is no longer on this computer.")
            raise InputError("model_gone", told, _("Import it again, or teach a new one."))
        return model

    def teaching_set(self, model: Model, corrected: Any) -> list[tuple[Any, Any, list[str]]]:
        """(volume, segmentation, segment IDs) of the correction, and of what the model was taught on, in this scene."""
        volume = scene.taught_on(corrected)
        if not scene.has_voxels(volume):
            told = _("The scan of this segmentation is not in the scene.")
            raise InputError("scan_absent", told, _("Load it, and choose it as the segmentation's source volume."))
        pairs = [pair for pair in scene.taught_to(model.key) if pair[1] is not corrected]
        known = {label["name"] for label in model.description.labels}
        chosen = []
        for one, segmentation in pairs:
            ids = [segment.id for segment in scene.segments_of(segmentation) if segment.name in known]
            chosen.append((one, segmentation, ids))
        return [(volume, corrected, [segment.id for segment in scene.segments_of(corrected)]), *chosen]

    def give_up(self) -> None:
        """The files of a run that failed, and will not go on, are removed."""
        if self._learning is not None and not self.session.busy:
            self._learning.clear()
            self._learning = None

    def improve(self) -> None:
        """Write all files, start the engine."""
        self.give_up()
        corrected = self.session.parameters.corrected
        try:
            model = self.model_of(corrected)
            values = {label["name"]: label["value"] for label in model.description.labels}
            chosen = self.teaching_set(model, corrected)
            with fresh_folder() as folder:
                files = [
                    scene.write_teaching(volume, segmentation, folder / str(index), segments=ids, values=values)
                    for index, (volume, segmentation, ids) in enumerate(chosen)
                ]
        except (HiEndMAEError, OSError) as error:
            self.strip.show_error(typed(error))
            return
        name = self.session.library.free_name(model.name)
        output = self.session.library.free_path(name)
        config = FinetuneConfig(
            image=tuple(str(one.image) for one in files),
            label=tuple(one.label for one in files),
            improve=model.path,
            output=output,
            name=name,
            budget=self.session.parameters.budget,
            steps=self.steps,
            preview=True,  # of the first scan: the corrected one
        )
        watching = Watching(chosen[0][0], model.description.labels)
        taught, here = int(model.description.training.get("cases", 0)), len(scene.taught_to(model.key))

        def learned() -> None:
            for volume, segmentation, _ids in chosen:
                if slicer.mrmlScene.IsNodePresent(segmentation):
                    scene.mark_taught(segmentation, output.name, volume)
            self.session.models_changed()
            self.session.parameters.model = output.name
            told = _("'{name}' has learned from {count} scans. '{old}' is kept as it was.")
            if len(files) == 1:
                told = _("'{name}' has learned from the corrected scan. '{old}' is kept as it was.")
            text, absent = told.format(name=name, count=len(files), old=model.name), taught - here
            if absent > 0:
                told = _(
                    "{absent} of the {taught} scans that it was taught on are not in this scene, and were left out."
                )
                text += "\n" + told.format(absent=absent, taught=taught)
            self.strip.say(text, mood="plain" if absent > 0 else "good")

        self._learning = Learning(
            self.strip, config, folder=folder, watching=watching, learned=learned, anew=self.improve
        )
        self._learning.run()
