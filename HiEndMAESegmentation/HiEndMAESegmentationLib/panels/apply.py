"""The second panel: a model, and a queue of scans to segment. One process a scan: one that dies takes no other along."""

from __future__ import annotations

import functools
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from HiEndMAECore.errors import HiEndMAEError
from HiEndMAECore.segment import SegmentConfig
from HiEndMAESegmentationLib.engine import inputs as sources
from HiEndMAESegmentationLib.engine.jobs import JobEnd
from HiEndMAESegmentationLib.engine.model_library import Model
from HiEndMAESegmentationLib.scene import nodes as scene

from .base import JobStrip, Session, fit_height, load, strong, typed
from .error_actions import advise

# Errors that the next scan would meet as well
_HOPELESS = (
    "dependency_missing",
    "python_absent",
    "not_started",
    "files_failed",
    "disk_full",
    "device_absent",
    "out_of_memory",
)
_FILE = "scan"  # what every scan is called on the disk: names of nodes may be those of patients


@dataclass
class Case:
    """A scan in the queue: a volume of the scene, or a source that becomes one at its turn.

    state: "waiting", "running", "done", "failed" or "skipped"; told: why, in a sentence. tried: was it its own turn that
    failed, or that of one before, whose error it would have met as well?
    """

    volume: Any = None
    source: str = ""
    state: str = "waiting"
    told: str = ""
    tried: bool = False

    @property
    def key(self) -> str:
        """What the list of scans knows it by: the volume's ID, or the source."""
        return self.volume.GetID() if self.volume is not None else self.source

    @property
    def name(self) -> str:
        return self.volume.GetName() if self.volume is not None else sources.name_of(self.source)


class ApplyPanel(VTKObservationMixin):
    """Model, scans, options: Segment; and the table of volumes."""

    def __init__(self, session: Session, layout: Any) -> None:
        VTKObservationMixin.__init__(self)
        self.session = session
        self.widget, self.ui = load("Apply")
        layout.addWidget(self.widget)
        self.strip = JobStrip(session, layout, can_finish=False, remedy=self.remedy)
        inside = self.widget.layout()  # right below its button, above the tables of what was found
        inside.insertWidget(inside.indexOf(self.ui.volumesTable), self.strip.widget)
        self.cases: list[Case] = []
        self.results: list[Any] = []
        self.reviews: list[tuple[Any, Any, scene.SliceToReview]] = []  # scan, map of uncertainty or None, slice
        self._filling = False
        self._stopped = False
        self._spacing: float | None = None  # mm, instead of the model's own: of one queue, the next starts without
        self._folder: Path | None = None  # of the scan at work
        self._rows: list[Any] = []  # what the table of scans shows
        strong(self.ui.applyButton)
        for table, titles in (
            (self.ui.casesTable, (_("Scan"), _("State"))),
            (self.ui.volumesTable, (_("Scan"), _("Structure"), _("ml"))),
        ):
            table.setColumnCount(len(titles))
            table.setHorizontalHeaderLabels(titles)
            table.horizontalHeader().setSectionResizeMode(0, qt.QHeaderView.Stretch)
            table.verticalHeader().setVisible(False)
            table.setEditTriggers(qt.QAbstractItemView.NoEditTriggers)
            table.setSelectionBehavior(qt.QAbstractItemView.SelectRows)
        self.ui.casesTable.setColumnWidth(1, 110)
        self.ui.volumesTable.setColumnWidth(1, 150)
        self.ui.volumesTable.setColumnWidth(2, 80)
        self.ui.modelCombo.connect("activated(int)", self._on_model)
        self.ui.casesTable.connect("itemChanged(QTableWidgetItem*)", self._on_tick)
        self.ui.folderButton.connect("clicked()", self.add_folder)
        self.ui.dicomButton.connect("clicked()", self.add_series)
        self.ui.applyButton.connect("clicked()", self.apply)
        self.ui.skipButton.connect("clicked()", self.skip)
        self.ui.retryButton.connect("clicked()", self.retry)
        self.ui.csvButton.connect("clicked()", self.save_csv)
        self.ui.reviewList.connect("currentRowChanged(int)", self.review)
        self.strip.ui.cancelButton.connect("clicked()", self.stop)
        session.on_models_changed.append(self._fill_models)
        session.on_job_changed.append(self.show)
        session.on_close.append(self._clean_up)
        for event in ("NodeAddedEvent", "NodeRemovedEvent", "EndCloseEvent", "EndImportEvent", "EndBatchProcessEvent"):
            self.addObserver(slicer.mrmlScene, getattr(slicer.mrmlScene, event), self.show)
        self._fill_models()
        self.show()

    # -- showing ---------------------------------------------------------------------------------------------------

    def _fill_models(self) -> None:
        chosen = self.session.parameters.model if self.session.parameters else ""
        self.ui.modelCombo.clear()
        for model in self.session.library.models():
            self.ui.modelCombo.addItem(model.name, model.key)
        self.ui.modelCombo.setCurrentIndex(max(0, self.ui.modelCombo.findData(chosen)))
        if self.session.parameters is not None and self.ui.modelCombo.count:
            self.session.parameters.model = self.ui.modelCombo.currentData

    def show(self, *_args: Any) -> None:
        """Bring the panel to what the scene and the parameters say."""
        chosen = self.session.parameters
        if chosen is None or slicer.mrmlScene.IsBatchProcessing():
            return
        if self.ui.modelCombo.currentData != chosen.model:
            self.ui.modelCombo.setCurrentIndex(max(0, self.ui.modelCombo.findData(chosen.model)))
        self._show_cases()
        self._show_volumes()
        self._show_reviews()
        running = self.running
        self.ui.applyButton.setVisible(not running)
        wanted = scene.there(chosen.targets) or chosen.sources
        self.ui.applyButton.enabled = bool(self.ui.modelCombo.count and wanted) and not self.session.busy
        for button in (self.ui.folderButton, self.ui.dicomButton):
            button.enabled = not running
        self.ui.applyButton.text = _("Segment") if self.ui.modelCombo.count else _("Teach or import a model first")
        self.ui.skipButton.setVisible(running)
        self.ui.retryButton.setVisible(not running and any(case.state == "failed" for case in self.cases))

    @property
    def running(self) -> bool:
        """Is one of our scans being segmented?"""
        return any(case.state == "running" for case in self.cases)

    def _show_cases(self) -> None:
        table, chosen = self.ui.casesTable, self.session.parameters
        cases = {case.key: case for case in self.cases if case.volume is None or scene.there([case.volume])}
        targets, ticked = chosen.targets, set(chosen.sources)
        rows = [(node.GetID(), node.GetName(), "", node in targets) for node in scene.scans()]
        rows += [
            (source, sources.name_of(source), sources.hint_of(source), source in ticked) for source in chosen.offered
        ]
        states = [(cases[key].state, cases[key].told) if key in cases else ("", "") for key, *_row in rows]
        if [rows, states] == self._rows:  # asked at every node that comes or goes
            return
        self._rows = [rows, states]
        self._filling = True
        table.setRowCount(len(rows))
        for row, ((key, name, hint, checked), (named, told)) in enumerate(zip(rows, states)):
            item = qt.QTableWidgetItem(name)
            item.setToolTip(hint)
            item.setData(qt.Qt.UserRole, key)
            item.setCheckState(qt.Qt.Checked if checked else qt.Qt.Unchecked)
            table.setItem(row, 0, item)
            state = qt.QTableWidgetItem(_STATES[named]() if named else "")
            state.setToolTip(told)
            if named in _STATE_COLOURS:
                state.setForeground(qt.QBrush(qt.QColor(_STATE_COLOURS[named])))
            table.setItem(row, 1, state)
        table.resizeRowsToContents()
        fit_height(table, len(rows))
        self._filling = False

    def _show_volumes(self) -> None:
        node, table = scene.volumes_table(), self.ui.volumesTable
        rows = node.GetNumberOfRows() if node else 0
        table.setRowCount(rows)
        for row in range(rows):
            for column, source in enumerate((0, 2, 3)):
                text = node.GetCellText(row, source)
                item = qt.QTableWidgetItem(f"{float(text):.1f}" if column == 2 else text)
                if column == 2:
                    item.setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
                table.setItem(row, column, item)
        table.resizeRowsToContents()
        fit_height(table, rows)
        table.setVisible(rows > 0)
        self.ui.csvButton.setVisible(rows > 0)

    # -- choosing --------------------------------------------------------------------------------------------------

    def _on_model(self, _index: int = 0) -> None:
        self.session.parameters.model = self.ui.modelCombo.currentData or ""

    def _on_tick(self, item: Any) -> None:
        if self._filling or item.column() != 0:
            return
        table, chosen = self.ui.casesTable, self.session.parameters
        items = [table.item(row, 0) for row in range(table.rowCount)]
        keys = [one.data(qt.Qt.UserRole) for one in items if one.checkState() == qt.Qt.Checked]
        offered = set(chosen.offered)
        chosen.sources = [key for key in keys if key in offered]
        chosen.targets = [slicer.mrmlScene.GetNodeByID(key) for key in keys if key not in offered]

    def add_folder(self) -> None:
        """Ask for a folder; its scans join the list, ticked."""
        folder = qt.QFileDialog.getExistingDirectory(self.widget, _("Folder of scans"))
        if folder:
            self._offer(lambda: sources.in_folder(Path(folder)), ticked=True)

    def add_series(self) -> None:
        """The series of the DICOM database join the list; which of them are meant, nobody but the user knows."""
        self._offer(sources.in_database, ticked=False)

    def _offer(self, find: Callable[[], list[str]], *, ticked: bool) -> None:
        try:
            found = find()
        except HiEndMAEError as error:
            self.strip.show_error(error)
            return
        chosen = self.session.parameters
        chosen.offered = list(dict.fromkeys([*chosen.offered, *found]))
        if ticked:
            chosen.sources = list(dict.fromkeys([*chosen.sources, *found]))
        self.show()

    # -- the queue -------------------------------------------------------------------------------------------------

    def apply(self) -> None:
        """Segment the ticked scans, one after the other."""
        chosen = self.session.parameters
        self._spacing = None
        volumes = scene.there(chosen.targets)
        self._start([Case(volume) for volume in volumes] + [Case(source=source) for source in chosen.sources])

    def retry(self) -> None:
        """Segment those that failed once more; the queue keeps the others."""
        again = [Case(case.volume, case.source) if case.state == "failed" else case for case in self.cases]
        self._start(again, results=self.results)

    def remedy(self, action: str) -> Callable[[], None] | None:
        """What this panel can do about an error: a coarser grid where 2 mm is one, a smaller scan."""
        model = self.session.library.find(self.session.parameters.model)
        if action == "2mm" and model is not None and not self._spacing:
            return self._on_2_mm if min(model.description.preparation["spacing"]) < 2 else None
        return self._crop if action == "crop" else None

    def _on_2_mm(self) -> None:
        self._spacing = 2.0
        self.retry()

    def _crop(self) -> None:
        """Show the ROI, or make one, and let it be placed: it may be meant for something else."""
        volumes = self._too_large()
        if not volumes:
            self.retry()
            return
        box = scene.roi() or scene.make_roi(volumes[0])
        box.SetDisplayVisibility(True)
        told = _("Place the box '{name}' (ROI), then press the button.").format(name=box.GetName())
        self.strip.say(told, action="crop", act=functools.partial(self._crop_to, box))

    def _too_large(self) -> list[Any]:
        return scene.there([case.volume for case in self.cases if case.state == "failed" and case.tried])

    def _crop_to(self, box: Any) -> None:
        """Segment what lies in the box of the scans that failed."""
        volumes = self._too_large()
        if not scene.there([box]):
            self._crop()
            return
        try:
            cropped = {volume: scene.crop(volume, box) for volume in volumes}
        except HiEndMAEError as error:
            self.strip.say(str(error), mood="bad", action="crop", act=functools.partial(self._crop_to, box))
            return
        scene.put_away(box)
        chosen = self.session.parameters
        chosen.targets = [cropped.get(volume, volume) for volume in scene.there(chosen.targets)]
        for case in self.cases:
            case.volume = cropped.get(case.volume, case.volume)
        self.retry()

    def skip(self) -> None:
        """Leave the running scan out, go on with the next."""
        for case in self.cases:
            if case.state == "running":
                case.state = "skipped"
                self.strip.cancel()

    def stop(self) -> None:
        """Cancel the running scan and all that wait."""
        self._stopped = True
        self.strip.cancel()

    def forget(self) -> None:
        """The scene is closing: its scans and results are nobody's any more, and their IDs will be those of others."""
        if self.running:
            self.stop()
        self.cases, self.results, self.reviews = [], [], []

    def _start(self, cases: list[Case], *, results: Sequence[Any] = ()) -> None:
        if self.session.busy:
            self.strip.say(_("Another job is running. Wait for it, or cancel it first."), mood="bad")
            return
        model = self.session.library.find(self.session.parameters.model)
        if model is None:
            self.strip.say(_("The model is no longer on this computer. Choose another one."), mood="bad")
            return
        self.strip.say("")  # what was said of an earlier queue
        self.cases, self._stopped, self.results = cases, False, scene.there(results)
        self._next(model)

    def _next(self, model: Model) -> None:
        case = next((case for case in self.cases if case.state == "waiting"), None)
        if case is None or self._stopped:
            self._sum_up(model)
            return
        case.tried = True
        if case.volume is not None and not slicer.mrmlScene.IsNodePresent(case.volume):
            case.state, case.told = "failed", _("The scan was removed from the scene.")
            self._next(model)
            return
        try:
            folder = self._folder = Path(tempfile.mkdtemp(prefix="HiEndMAE-", dir=slicer.app.temporaryPath))
            if case.volume is None:
                self._load(case)
            scene.write_scan(case.volume, folder / f"{_FILE}.nii")
        except Exception as problem:  # what loads DICOM raises what it likes
            if not isinstance(problem, HiEndMAEError):
                logging.exception("HiEndMAE: a scan could not be prepared")
            error = typed(problem)
            self._clean_up()
            case.state, case.told = "failed", advise(error.code, error.message, error.advice).text
            self._next(model)
            return
        result = folder / "result.nii"
        config = SegmentConfig(
            model=model.path,
            input=(str(folder / f"{_FILE}.nii"),),
            output=result,
            clean=self.session.parameters.keepLargest,
            uncertainty=self.session.parameters.uncertainty,
            spacing=(self._spacing,) * 3 if self._spacing else None,
        )

        def ended(end: JobEnd) -> None:
            try:
                self._take(case, end, model, result)
            except Exception as error:  # whatever it is: the queue must not stand still without a word
                logging.exception("HiEndMAE: a result could not be taken over")
                told = _("The result could not be taken over ({reason}).").format(
                    reason=str(error) or type(error).__name__
                )
                case.state, case.told = "failed", told
            self._clean_up()
            self._next(model)

        case.state = "running"
        if not self.strip.run("segment", config, on_end=ended, again=self.retry):
            case.state = "failed"
        self.show()

    def _clean_up(self) -> None:
        """The files of the scan at work go."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _load(self, case: Case) -> None:
        """The source becomes a volume of the scene, and is listed as such from then on. Raises `InputError`."""
        case.volume = sources.load(case.source)
        chosen = self.session.parameters
        chosen.offered = [one for one in chosen.offered if one != case.source]
        chosen.sources = [one for one in chosen.sources if one != case.source]
        chosen.targets = [*scene.there(chosen.targets), case.volume]

    def _take(self, case: Case, end: JobEnd, model: Model, result: Path) -> None:
        """What became of a case."""
        volume = case.volume
        if case.state == "skipped" or end.state == "cancelled":
            case.state = "skipped"
            return
        if end.state != "finished":
            case.state, case.told = "failed", advise(end.code, end.message, end.advice).text
            if end.code in _HOPELESS or end.code.startswith("model_"):
                for other in self.cases:  # they would meet the same error; once it is mended, they are tried as well
                    if other.state == "waiting":
                        other.state, other.told = "failed", case.told
            return
        if not slicer.mrmlScene.IsNodePresent(volume):
            case.state, case.told = "failed", _("The scan was removed from the scene.")
            return
        told = json.loads(result.with_suffix(".json").read_text(encoding="utf-8"))
        labels = model.description.labels
        name = f"{volume.GetName()} - {model.name}"
        try:
            node = scene.show_result(result, volume, labels=labels, name=name, surfaces=self.session.parameters.show3D)
        except HiEndMAEError as error:
            case.state, case.told = "failed", str(error)
            return
        node.SetAttribute(scene.MADE_WITH, model.key)
        scene.update_volumes_table(volume, model.name, told["structures"])
        self._take_reviews(volume, result.with_name("result_entropy.nii"), told["review_slices"])
        # The engine knows the scan by its file's name, which is neutral
        case.state, case.told = "done", " ".join(text.removeprefix(f"{_FILE}: ") for text in self.strip.warnings)
        self.results.append(node)

    def _sum_up(self, model: Model) -> None:
        """Scans that never had their turn do not wait any longer; then one sentence about all."""
        for case in self.cases:
            if case.state == "waiting":
                case.state = "skipped"
        done = [case for case in self.cases if case.state == "done"]
        failed = [case for case in self.cases if case.state == "failed"]
        if failed and len(self.cases) > 1:
            told = _("{done} of {all} scans were segmented. '{name}' was not: {reason}")
            name = failed[0].name
            text = told.format(done=len(done), all=len(self.cases), name=name, reason=failed[0].told)
            self.strip.say(text, mood="bad", action=self.strip.action, act=self.strip.act)
        elif failed and not self.strip.ui.messageLabel.text:
            self.strip.say(failed[0].told, mood="bad")
        elif done:
            told = _("Segmented {count} scans with '{name}'. Look at each result before using it.")
            if len(done) == 1:
                told = _("Segmented 1 scan with '{name}'. Look at the result before using it.")
            warned = [f"{case.name}: {case.told}" for case in done if case.told]
            text = "\n".join([told.format(count=len(done), name=model.name), *warned])
            self.strip.say(text, mood="plain" if warned else "good")
        if scene.there(self.results):
            self.session.parameters.corrected = scene.there(self.results)[-1]
        self.show()

    # -- uncertainty -----------------------------------------------------------------------------------------------

    def _take_reviews(self, volume: Any, path: Path, slices: list[int]) -> None:
        """The slices where the result is least sure, and the map where one was asked for; the scan's earlier ones go."""
        for other in [other for scan, other, _one in self.reviews if scan is volume]:
            if other is not None and slicer.mrmlScene.IsNodePresent(other):
                slicer.mrmlScene.RemoveNode(other)
        self.reviews = [entry for entry in self.reviews if entry[0] is not volume]
        overlay = None
        if path.is_file():
            overlay = scene.show_uncertainty(path, volume, name=_("{name} - uncertainty").format(name=volume.GetName()))
        self.reviews += [(volume, overlay, scene.slice_to_review(volume, k)) for k in slices]

    def _show_reviews(self) -> None:
        there = slicer.mrmlScene.IsNodePresent
        self.reviews = [
            (volume, overlay if overlay is not None and there(overlay) else None, one)
            for volume, overlay, one in self.reviews
            if there(volume)
        ]
        told = [
            _("{scan}: slice {number}").format(scan=volume.GetName(), number=one.number)
            for volume, _overlay, one in self.reviews
        ]
        view = self.ui.reviewList
        if [view.item(row).text() for row in range(view.count)] != told:
            self._filling = True
            view.clear()
            for text in told:
                view.addItem(text)
            self._filling = False
            fit_height(view, len(told), most=6)
        view.setVisible(bool(told))
        self.ui.reviewLabel.setVisible(bool(told))

    def review(self, row: int) -> None:
        """Jump to the slice of this row."""
        if not self._filling and 0 <= row < len(self.reviews):
            volume, overlay, one = self.reviews[row]
            scene.look_at(volume, overlay, one.centre)

    # -- volumes ---------------------------------------------------------------------------------------------------

    def save_csv(self) -> None:
        """Ask where, and write the table."""
        file = qt.QFileDialog.getSaveFileName(self.widget, _("Save volumes"), "volumes.csv", _("Tables (*.csv)"))
        node = scene.volumes_table()
        if not file or node is None:
            return
        try:
            scene.write_csv(node, Path(file))
        except OSError as error:
            self.strip.say(_("The table could not be saved: {reason}.").format(reason=error.strerror), mood="bad")
            return
        self.strip.say(_("The volumes are in {file}.").format(file=file), mood="good")


_STATES = {
    "waiting": lambda: _("waiting"),
    "running": lambda: _("running …"),
    "done": lambda: _("done"),
    "failed": lambda: _("failed"),
    "skipped": lambda: _("skipped"),
}
_STATE_COLOURS = {"done": "#2e7d32", "failed": "#b3261e"}
