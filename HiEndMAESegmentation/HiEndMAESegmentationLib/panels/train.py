"""The first panel: a labelled scan becomes a model."""

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

from HiEndMAECore.checkpoints.catalogue import CATALOGUE
from HiEndMAECore.errors import HiEndMAEError
from HiEndMAECore.finetune import BUDGETS, FinetuneConfig
from HiEndMAESegmentationLib.engine.model_library import in_the_box
from HiEndMAESegmentationLib.engine.training_job import Learning, fresh_folder
from HiEndMAESegmentationLib.scene import nodes as scene

from .base import JobStrip, Session, dimmed, fit_height, load, strong, typed
from .models import score
from .training_preview import Watching

_ANOTHER = "file"  # data of the entry that asks for a file


class TeachPanel(VTKObservationMixin):
    """Scan, segmentation, structures, time, start: Teach.

    steps: for tests and scripts, optimiser steps instead of the time budget.
    """

    def __init__(self, session: Session, layout: Any) -> None:
        VTKObservationMixin.__init__(self)
        self.session = session
        self.steps: int | None = None
        self.widget, self.ui = load("Train")
        layout.addWidget(self.widget)
        self.strip = JobStrip(session, layout, can_finish=True, remedy=self.remedy)
        self._spacing: float | None = None  # mm, instead of what the scan and the machine suggest
        self._watched: Any = None
        self._shown: Any = None  # the parameters that were shown last
        self._learning: Learning | None = None
        self._filling = False
        strong(self.ui.teachButton)
        dimmed(self.ui.estimateLabel)
        self._fill(
            self.ui.budgetCombo,
            {
                "1min": _("1 minute"),
                "5min": _("5 minutes"),
                "20min": _("20 minutes"),
                "good": _("Until good (up to 1 h)"),
            },
        )
        self._fill(
            self.ui.deviceCombo,
            {
                "auto": _("Automatic"),
                "cpu": _("Processor"),
                "mps" if sys.platform == "darwin" else "cuda": _("Graphics card"),
            },
        )
        self.ui.budgetCombo.connect("currentIndexChanged(int)", self._on_choice)
        self.ui.deviceCombo.connect("currentIndexChanged(int)", self._on_choice)
        self.ui.startCombo.connect("activated(int)", self._on_start)
        self.ui.segmentsList.connect("itemChanged(QListWidgetItem*)", self._on_tick)
        self.ui.teachButton.connect("clicked()", self._on_teach)
        session.on_models_changed.append(self._fill_starts)
        session.on_job_changed.append(self.show)
        session.on_close.append(self.give_up)
        self._fill_starts()

    # -- showing ---------------------------------------------------------------------------------------------------

    def _fill(self, combo: Any, entries: dict[str, str]) -> None:
        self._filling = True
        combo.clear()
        for data, text in entries.items():
            combo.addItem(text, data)
        self._filling = False

    def _fill_starts(self) -> None:
        entries = {name: title for name, (title, _path) in in_the_box().items()}
        entries["none"] = _("Nothing (learn from scratch)")
        for model in self.session.library.models():
            entries[str(model.path)] = model.name
        for file in self.session.library.weights():
            entries[str(file)] = file.name
        chosen = self.session.parameters.start if self.session.parameters else ""
        if chosen and chosen not in entries and Path(chosen).exists():
            entries[chosen] = Path(chosen).name
        entries[_ANOTHER] = _("A file or another model…")
        self._fill(self.ui.startCombo, entries)
        self.ui.startCombo.setCurrentIndex(max(0, self.ui.startCombo.findData(chosen)))  # the first is the best guess
        hints = [_("Weights to start from: what already knows similar scans learns faster.")]
        hints += [f"{entry.title}: {entry.how_to_place}" for entry in CATALOGUE if entry.name not in entries]
        self.ui.startCombo.toolTip = "\n".join(hints)

    def start(self) -> str:
        """What `finetune` is to start from: "none" or a path. A scene may name weights that this computer lacks."""
        chosen = self.ui.startCombo.currentData
        _title, path = in_the_box().get(chosen, ("", chosen))
        return str(path)

    def show(self, *_args: Any) -> None:
        """Bring the panel to what the parameters say."""
        chosen = self.session.parameters
        if chosen is None:
            return
        segmentation = chosen.teachSegmentation
        if segmentation is not self._watched:
            loaded = chosen is not self._shown and chosen.teachVolume is not None
            self._watch(segmentation, choose_scan=not loaded)  # a saved scene knows better
        self._shown = chosen
        for combo, value in ((self.ui.budgetCombo, chosen.budget), (self.ui.deviceCombo, chosen.device)):
            index = combo.findData(value)
            if index != combo.currentIndex:
                combo.setCurrentIndex(max(0, index))  # a graphics card of another system: automatic
        if chosen.start and self.ui.startCombo.currentData != chosen.start:
            self._fill_starts()
        self._show_segments()
        volume = chosen.teachVolume
        ready = scene.has_voxels(volume) and segmentation is not None and bool(self.ticked())
        self.ui.teachButton.enabled = ready and not self.session.busy
        self.ui.nameEdit.placeholderText = self.suggested_name()
        self.ui.estimateLabel.text = self._estimate(volume) if ready else self._what_is_missing(volume, segmentation)

    def _watch(self, segmentation: Any, *, choose_scan: bool) -> None:
        self.removeObservers()
        self._watched = segmentation
        if segmentation is None:
            return
        for event in ("SegmentAdded", "SegmentRemoved", "SegmentModified"):
            self.addObserver(segmentation, getattr(slicer.vtkSegmentation, event), self.show)
        volume = scene.scan_of(segmentation)
        if choose_scan and volume is not None:  # the segmentation knows the scan it was drawn on
            self.session.parameters.teachVolume = volume

    def _show_segments(self) -> None:
        chosen = self.session.parameters
        segments = scene.segments_of(self._watched) if self._watched is not None else []
        told = [(one.id, one.name, one.colour, one.id not in chosen.leftOut) for one in segments]
        if told == getattr(self, "_told", None):
            return
        self._told = told
        self._filling = True
        self.ui.segmentsList.clear()
        for segment_id, name, colour, ticked in told:
            item = qt.QListWidgetItem(name)
            item.setData(qt.Qt.UserRole, segment_id)
            item.setIcon(_swatch(colour))
            item.setCheckState(qt.Qt.Checked if ticked else qt.Qt.Unchecked)
            self.ui.segmentsList.addItem(item)
        fit_height(self.ui.segmentsList, len(told))
        self._filling = False

    def _what_is_missing(self, volume: Any, segmentation: Any) -> str:
        if segmentation is None:
            return _("Choose the segmentation that holds the labels; the Segment Editor makes one.")
        if not scene.has_voxels(volume):
            return _("Choose the scan that was labelled.")
        return _("Tick at least one structure to learn.")

    def _estimate(self, volume: Any) -> str:
        minutes = round(BUDGETS[self.session.parameters.budget] / 60)
        gigabytes = memory_needed(scene.megabytes(volume))
        told = _("Takes up to {minutes} min and about {gigabytes} GB of memory. Slicer stays free meanwhile.")
        return told.format(minutes=minutes + 1, gigabytes=gigabytes)

    def ticked(self) -> list[str]:
        """IDs of the segments to learn."""
        left_out = set(self.session.parameters.leftOut)
        return [one.id for one in scene.segments_of(self._watched) if one.id not in left_out] if self._watched else []

    def suggested_name(self) -> str:
        """From the structures, not from the scan: scans are called after patients."""
        names = [one.name for one in scene.segments_of(self._watched)] if self._watched else []
        return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")

    # -- choosing --------------------------------------------------------------------------------------------------

    def _on_choice(self, _index: int = 0) -> None:
        if not self._filling and self.session.parameters is not None:
            self.session.parameters.budget = self.ui.budgetCombo.currentData
            self.session.parameters.device = self.ui.deviceCombo.currentData

    def _on_start(self, _index: int = 0) -> None:
        data = self.ui.startCombo.currentData
        if data == _ANOTHER:
            data = qt.QFileDialog.getOpenFileName(
                self.widget, _("Start from"), "", _("Weights and models (*.pth *.pt *.safetensors *.zip)")
            )
        self.session.parameters.start = data or self.session.parameters.start
        self._fill_starts()

    def _on_tick(self, item: Any) -> None:
        if self._filling:
            return
        segment_id, left_out = item.data(qt.Qt.UserRole), self.session.parameters.leftOut
        wanted = [one for one in left_out if one != segment_id]
        if item.checkState() == qt.Qt.Unchecked:
            wanted.append(segment_id)
        self.session.parameters.leftOut = wanted

    # -- teaching --------------------------------------------------------------------------------------------------

    def _on_teach(self) -> None:
        self._spacing = None
        self.teach()

    def remedy(self, action: str) -> Callable[[], None] | None:
        """What this panel can do about an error: a coarser grid, a smaller scan."""
        if action == "2mm":
            return self._on_2_mm if not self._spacing else None
        return self._crop if action == "crop" else None

    def _on_2_mm(self) -> None:
        self._spacing = 2.0
        self.teach()

    def _crop(self) -> None:
        """Show the ROI, or put one around the segments, and let it be adjusted: it may be meant for something else."""
        chosen = self.session.parameters
        box = scene.roi() or scene.make_roi(chosen.teachVolume, chosen.teachSegmentation)
        box.SetDisplayVisibility(True)
        told = _("Adjust the box '{name}' (ROI), then press the button.").format(name=box.GetName())
        self.strip.say(told, action="crop", act=functools.partial(self._crop_to, box))

    def _crop_to(self, box: Any) -> None:
        """Learn from what lies in the box."""
        chosen = self.session.parameters
        if not scene.there([box]):
            self._crop()
            return
        try:
            chosen.teachVolume = scene.crop(chosen.teachVolume, box)
        except HiEndMAEError as error:
            self.strip.say(str(error), mood="bad", action="crop", act=functools.partial(self._crop_to, box))
            return
        scene.put_away(box)
        self.teach()

    def give_up(self) -> None:
        """The files of a run that failed, and will not go on, are removed."""
        if self._learning is not None and not self.session.busy:
            self._learning.clear()
            self._learning = None

    def teach(self) -> None:
        """Write the files, start the engine."""
        self.give_up()
        chosen = self.session.parameters
        volume, segmentation = chosen.teachVolume, chosen.teachSegmentation
        name = self.session.library.free_name(" ".join(chosen.modelName.split()) or self.suggested_name())
        output = self.session.library.free_path(name)
        try:
            with fresh_folder() as folder:
                files = scene.write_teaching(volume, segmentation, folder, segments=self.ticked())
        except (HiEndMAEError, OSError) as error:
            self.strip.show_error(typed(error))
            return
        config = FinetuneConfig(
            image=(str(files.image),),
            label=(files.label,),
            names=files.names,
            init=self.start(),
            output=output,
            name=name,
            budget=chosen.budget,
            steps=self.steps,
            preview=True,
            spacing=(self._spacing,) * 3 if self._spacing else None,
        )
        watching = Watching(volume, json.loads(files.names.read_text(encoding="utf-8"))["labels"])
        learned = functools.partial(self._learned, output.name, volume, segmentation)
        self._learning = Learning(
            self.strip, config, folder=folder, watching=watching, learned=learned, anew=self.teach
        )
        self._learning.run()

    def _learned(self, key: str, volume: Any, segmentation: Any) -> None:
        model = self.session.library.find(key)
        if model is None:
            self.strip.say(_("The model was written, but cannot be read."), mood="bad")
            return
        if slicer.mrmlScene.IsNodePresent(segmentation):
            scene.mark_taught(segmentation, key, volume)
        self.session.models_changed()
        self.session.parameters.model = key
        if not scene.there(self.session.parameters.targets):  # the others are most likely meant
            self.session.parameters.targets = [one for one in scene.scans() if one is not volume]
        told = _("'{name}' has learned {count} structures in {time}. Segment other scans with it below.")
        seconds = model.description.training.get("seconds", 0)
        text = told.format(name=model.name, count=len(model.description.labels), time=_duration(seconds))
        warned, checked = self.strip.warnings, score(model.description.training)
        lines = [text, *([_("Self-check: {told}.").format(told=checked)] if checked else []), *warned]
        self.strip.say("\n".join(lines), mood="plain" if warned else "good")


def memory_needed(megabytes: float) -> float:
    """GB that learning from a scan of this size takes, rounded up to half: torch and network, and copies of the scan."""
    return -(-(1.5 + 6 * megabytes / 1000) // 0.5) * 0.5


def _duration(seconds: float) -> str:
    return _("{n} min").format(n=round(seconds / 60)) if seconds >= 90 else _("{n} s").format(n=max(1, round(seconds)))


def _swatch(colour: tuple[int, int, int]) -> Any:
    picture = qt.QPixmap(14, 14)
    picture.fill(qt.QColor(*colour))
    return qt.QIcon(picture)
