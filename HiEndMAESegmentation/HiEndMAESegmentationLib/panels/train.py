"""The panel *Train*: train a model on one labelled scan."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from HiEndMAECore.errors import HiEndMAEError
from HiEndMAECore.finetune import BUDGETS, FinetuneConfig
from HiEndMAECore.models.catalogue import CATALOGUE
from HiEndMAESegmentationLib.engine.jobs import as_typed_error
from HiEndMAESegmentationLib.engine.model_library import packaged_weights
from HiEndMAESegmentationLib.engine.training_job import TrainingJob, memory_needed, temporary_folder
from HiEndMAESegmentationLib.scene import roi
from HiEndMAESegmentationLib.scene.export import write_training_case
from HiEndMAESegmentationLib.scene.nodes import existing_nodes, has_voxels, megabytes, scans, segments_of
from HiEndMAESegmentationLib.scene.provenance import mark_as_training_case, source_volume_of

from .base import JobStrip, Session, fit_height, load_ui, make_bold, make_gray
from .model_card import expected_dice_text
from .training_preview import TrainingPreview

_FILE_ENTRY = "file"  # data of the entry of the list *Start from* that asks for a file
_COARSE_SPACING = 2.0  # mm, of the action "2mm"


class TrainPanel(VTKObservationMixin):
    """Scan, segmentation, structures, time, weights to start from, and the button *Train*.

    `steps` sets training steps instead of the time budget, for tests and scripts.
    """

    def __init__(self, session: Session, layout: Any) -> None:
        VTKObservationMixin.__init__(self)
        self.session = session
        self.steps: int | None = None
        self.widget, self.ui = load_ui("Train")
        layout.addWidget(self.widget)
        self.strip = JobStrip(session, layout, can_finish=True, panel_action=self.action_for)
        self._spacing: float | None = None  # mm, instead of the spacing that suits scan and machine
        self._observed_segmentation: Any = None
        self._last_parameters: Any = None  # the parameters that `show` used last
        self._listed_segments: list[Any] | None = None
        self._training_job: TrainingJob | None = None
        self._filling = False
        make_bold(self.ui.trainButton)
        make_gray(self.ui.estimateLabel)
        self._fill_choices()
        self.ui.budgetCombo.connect("currentIndexChanged(int)", self._on_choice)
        self.ui.deviceCombo.connect("currentIndexChanged(int)", self._on_choice)
        self.ui.startCombo.connect("activated(int)", self._on_start_chosen)
        self.ui.segmentsList.connect("itemChanged(QListWidgetItem*)", self._on_segment_ticked)
        self.ui.trainButton.connect("clicked()", self._on_train_clicked)
        session.on_models_changed.append(self._fill_starts)
        session.on_job_changed.append(self.show)
        session.on_close.append(self.discard_failed_run)
        self._fill_starts()

    # -- showing the state ---------------------------------------------------------------------------------------------

    def _fill_choices(self) -> None:
        """Fill the lists of time budgets and devices."""
        budgets = {
            "1min": _("1 minute"),
            "5min": _("5 minutes"),
            "20min": _("20 minutes"),
            "good": _("Until good (up to 1 h)"),
        }
        gpu = ("mps", _("GPU (Apple)")) if sys.platform == "darwin" else ("cuda", _("GPU (CUDA)"))
        devices = {"auto": _("Automatic"), "cpu": _("CPU"), gpu[0]: gpu[1]}
        self._fill(self.ui.budgetCombo, budgets)
        self._fill(self.ui.deviceCombo, devices)

    def _fill(self, combo: Any, entries: dict[str, str]) -> None:
        """Fill a combo box with entries {data: text}."""
        self._filling = True
        combo.clear()
        for data, text in entries.items():
            combo.addItem(text, data)
        self._filling = False

    def _fill_starts(self) -> None:
        """Fill the list of weights to start from."""
        entries = {name: title for name, (title, _path) in packaged_weights().items()}
        entries["none"] = _("Nothing (train from scratch)")
        for model in self.session.library.models():
            entries[str(model.path)] = model.name
        for file in self.session.library.weights():
            entries[str(file)] = file.name
        start = self.session.parameters.start if self.session.parameters else ""
        if start and start not in entries and Path(start).exists():
            entries[start] = Path(start).name
        entries[_FILE_ENTRY] = _("A file or another model…")
        self._fill(self.ui.startCombo, entries)
        self.ui.startCombo.setCurrentIndex(max(0, self.ui.startCombo.findData(start)))  # the first is the best guess
        hints = [_("Weights to start from: a model of similar scans trains faster.")]
        hints += [f"{entry.title}: {entry.how_to_place}" for entry in CATALOGUE if entry.name not in entries]
        self.ui.startCombo.toolTip = "\n".join(hints)

    def start(self) -> str:
        """Return what `finetune` starts from, "none" or a path; a scene may name weights that this computer lacks."""
        data = self.ui.startCombo.currentData
        _title, path = packaged_weights().get(data, ("", data))
        return str(path)

    def show(self, *_args: Any) -> None:
        """Update the panel from the parameters."""
        parameters = self.session.parameters
        if parameters is None:
            return
        segmentation = parameters.teachSegmentation
        if segmentation is not self._observed_segmentation:
            from_saved_scene = parameters is not self._last_parameters and parameters.teachVolume is not None
            self._observe(segmentation, choose_scan=not from_saved_scene)
        self._last_parameters = parameters
        for combo, value in ((self.ui.budgetCombo, parameters.budget), (self.ui.deviceCombo, parameters.device)):
            index = combo.findData(value)
            if index != combo.currentIndex:
                combo.setCurrentIndex(max(0, index))  # the saved device does not exist on this system
        if parameters.start and self.ui.startCombo.currentData != parameters.start:
            self._fill_starts()
        self._show_segments()
        volume = parameters.teachVolume
        ready = has_voxels(volume) and segmentation is not None and bool(self.ticked_segments())
        self.ui.trainButton.enabled = ready and not self.session.busy
        self.ui.nameEdit.placeholderText = self.suggested_name()
        self.ui.estimateLabel.text = self._estimate(volume) if ready else self._missing_choice(volume, segmentation)

    def _observe(self, segmentation: Any, *, choose_scan: bool) -> None:
        """Follow the segments of a segmentation, and choose the scan that it was drawn on."""
        self.removeObservers()
        self._observed_segmentation = segmentation
        if segmentation is None:
            return
        for event in ("SegmentAdded", "SegmentRemoved", "SegmentModified"):
            self.addObserver(segmentation, getattr(slicer.vtkSegmentation, event), self.show)
        volume = source_volume_of(segmentation)
        if choose_scan and volume is not None:
            self.session.parameters.teachVolume = volume

    def _segments(self) -> list[Any]:
        """Return the segments of the chosen segmentation."""
        return segments_of(self._observed_segmentation) if self._observed_segmentation is not None else []

    def _show_segments(self) -> None:
        """Fill the list of segments, unless its content is the same."""
        excluded = self.session.parameters.leftOut
        rows = [(segment.id, segment.name, segment.color, segment.id not in excluded) for segment in self._segments()]
        if rows == self._listed_segments:
            return
        self._listed_segments = rows
        self._filling = True
        self.ui.segmentsList.clear()
        for segment_id, name, color, ticked in rows:
            item = qt.QListWidgetItem(name)
            item.setData(qt.Qt.UserRole, segment_id)
            item.setIcon(_color_icon(color))
            item.setCheckState(qt.Qt.Checked if ticked else qt.Qt.Unchecked)
            self.ui.segmentsList.addItem(item)
        fit_height(self.ui.segmentsList, len(rows))
        self._filling = False

    def _missing_choice(self, volume: Any, segmentation: Any) -> str:
        """Return a sentence on what has to be chosen before training can start."""
        if segmentation is None:
            return _("Choose the segmentation that holds the labels; the Segment Editor makes one.")
        if not has_voxels(volume):
            return _("Choose the scan that was labelled.")
        return _("Tick at least one structure to train on.")

    def _estimate(self, volume: Any) -> str:
        """Return a sentence on time and memory of the training."""
        minutes = round(BUDGETS[self.session.parameters.budget] / 60)
        gigabytes = memory_needed(megabytes(volume))
        message = _("Takes up to {minutes} min and about {gigabytes} GB of memory. You can go on using Slicer.")
        return message.format(minutes=minutes + 1, gigabytes=gigabytes)

    def ticked_segments(self) -> list[str]:
        """Return the IDs of the segments to train on."""
        excluded = set(self.session.parameters.leftOut)
        return [segment.id for segment in self._segments() if segment.id not in excluded]

    def suggested_name(self) -> str:
        """Return a model name made of the structures, not of the scan: scans are often named after patients."""
        names = [segment.name for segment in self._segments()]
        return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")

    # -- choosing ------------------------------------------------------------------------------------------------------

    def _on_choice(self, _index: int = 0) -> None:
        """Store time budget and device."""
        if not self._filling and self.session.parameters is not None:
            self.session.parameters.budget = self.ui.budgetCombo.currentData
            self.session.parameters.device = self.ui.deviceCombo.currentData

    def _on_start_chosen(self, _index: int = 0) -> None:
        """Store the weights to start from; ask for a file where the last entry was chosen."""
        data = self.ui.startCombo.currentData
        if data == _FILE_ENTRY:
            data = qt.QFileDialog.getOpenFileName(
                self.widget, _("Start from"), "", _("Weights and models (*.pth *.pt *.safetensors *.zip)")
            )
        self.session.parameters.start = data or self.session.parameters.start
        self._fill_starts()

    def _on_segment_ticked(self, item: Any) -> None:
        """Store which segments are excluded."""
        if self._filling:
            return
        segment_id = item.data(qt.Qt.UserRole)
        excluded = [other for other in self.session.parameters.leftOut if other != segment_id]
        if item.checkState() == qt.Qt.Unchecked:
            excluded.append(segment_id)
        self.session.parameters.leftOut = excluded

    # -- training ------------------------------------------------------------------------------------------------------

    def _on_train_clicked(self) -> None:
        """Train on the grid that suits the scan."""
        self._spacing = None
        self.train()

    def action_for(self, action: str) -> Callable[[], None] | None:
        """Return what this panel can do about an error: use a coarser grid, or crop the scan."""
        if action == "2mm":
            return self._train_on_coarse_grid if not self._spacing else None
        return self._prepare_crop if action == "crop" else None

    def _train_on_coarse_grid(self) -> None:
        """Train again on a coarser grid."""
        self._spacing = _COARSE_SPACING
        self.train()

    def _prepare_crop(self) -> None:
        """Show the region of interest, and let the user adjust it: it may have been made for another purpose."""
        parameters = self.session.parameters
        region = roi.find_roi() or roi.make_roi(parameters.teachVolume, parameters.teachSegmentation)
        region.SetDisplayVisibility(True)
        message = _("Adjust the box '{name}' (ROI), then press the button.").format(name=region.GetName())
        self.strip.show_message(message, action="crop", on_action=functools.partial(self._crop_to, region))

    def _crop_to(self, region: Any) -> None:
        """Crop the scan to the region of interest, and train on it."""
        parameters = self.session.parameters
        if not existing_nodes([region]):
            self._prepare_crop()
            return
        try:
            parameters.teachVolume = roi.crop_volume(parameters.teachVolume, region)
        except HiEndMAEError as error:
            on_action = functools.partial(self._crop_to, region)
            self.strip.show_message(str(error), kind="error", action="crop", on_action=on_action)
            return
        roi.hide_roi(region)
        self.train()

    def discard_failed_run(self) -> None:
        """Remove the files of a run that failed and will not be continued."""
        if self._training_job is not None and not self.session.busy:
            self._training_job.remove_files()
            self._training_job = None

    def train(self) -> None:
        """Write the training case, and start the engine."""
        self.discard_failed_run()
        parameters, library = self.session.parameters, self.session.library
        volume, segmentation = parameters.teachVolume, parameters.teachSegmentation
        name = library.free_name(" ".join(parameters.modelName.split()) or self.suggested_name())
        output = library.free_path(name)
        try:
            with temporary_folder() as folder:
                files = write_training_case(volume, segmentation, folder, segments=self.ticked_segments())
        except (HiEndMAEError, OSError) as error:
            self.strip.show_error(as_typed_error(error))
            return
        config = FinetuneConfig(
            image=(str(files.image),),
            label=(files.label,),
            names=files.names,
            init=self.start(),
            output=output,
            name=name,
            budget=parameters.budget,
            steps=self.steps,
            no_atlas=not parameters.keepAtlas,
            preview=True,
            spacing=(self._spacing,) * 3 if self._spacing else None,
        )
        labels = json.loads(files.names.read_text(encoding="utf-8"))["labels"]
        self._training_job = TrainingJob(
            self.strip,
            config,
            folder=folder,
            preview=TrainingPreview(volume, labels),
            on_finished=functools.partial(self._on_finished, output.name, volume, segmentation),
            restart=self.train,
        )
        self._training_job.run()

    def _on_finished(self, key: str, volume: Any, segmentation: Any) -> None:
        """Record the training case in the scene, choose the new model and show a message.

        Args:
            key: Key of the new model.
            volume: The scan that it was trained on; it may be deleted by now.
            segmentation: The scan's labels; they may be deleted by now.
        """
        model = self.session.library.find(key)
        if model is None:
            self.strip.show_message(_("The model was written, but cannot be read."), kind="error")
            return
        if slicer.mrmlScene.IsNodePresent(segmentation):
            mark_as_training_case(segmentation, key, volume)
        self.session.models_changed()
        self.session.parameters.model = key
        if not existing_nodes(self.session.parameters.targets):  # most likely the other scans are to be segmented
            self.session.parameters.targets = [scan for scan in scans() if scan is not volume]
        training = model.description.training
        message = _("'{name}' was trained on {count} structures in {time}. Segment other scans with it below.")
        lines = [
            message.format(
                name=model.name, count=len(model.description.labels), time=_duration(training.get("seconds", 0))
            )
        ]
        expected, warnings = expected_dice_text(training), self.strip.warnings
        if expected:
            lines.append(_("Performance estimate: {text}.").format(text=expected))
        self.strip.show_message("\n".join([*lines, *warnings]), kind="info" if warnings else "success")


def _duration(seconds: float) -> str:
    """Return a duration in minutes, or in seconds if it is short."""
    return _("{n} min").format(n=round(seconds / 60)) if seconds >= 90 else _("{n} s").format(n=max(1, round(seconds)))


def _color_icon(color: tuple[int, int, int]) -> Any:
    """Return a small square icon of a color."""
    picture = qt.QPixmap(14, 14)
    picture.fill(qt.QColor(*color))
    return qt.QIcon(picture)
