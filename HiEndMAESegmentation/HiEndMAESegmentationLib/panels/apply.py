"""The panel *Apply*: segment scans with a model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from HiEndMAECore.errors import HiEndMAEError
from HiEndMAESegmentationLib.engine import inputs
from HiEndMAESegmentationLib.scene import roi, tables
from HiEndMAESegmentationLib.scene.nodes import existing_nodes, scans

from .apply_queue import ApplyQueue, Case
from .base import JobStrip, Session, fit_height, load_ui, make_bold
from .review import ReviewList

_COARSE_SPACING = 2.0  # mm, of the action "2mm"
_SCENE_EVENTS = ("NodeAddedEvent", "NodeRemovedEvent", "EndCloseEvent", "EndImportEvent", "EndBatchProcessEvent")
_STATE_TEXTS = {
    "waiting": lambda: _("waiting"),
    "running": lambda: _("running …"),
    "done": lambda: _("done"),
    "failed": lambda: _("failed"),
    "skipped": lambda: _("skipped"),
}
_STATE_COLORS = {"done": "#2e7d32", "failed": "#b3261e"}


class ApplyPanel(VTKObservationMixin):
    """Model, scans, options, the button *Segment*, and the table of volumes."""

    def __init__(self, session: Session, layout: Any) -> None:
        VTKObservationMixin.__init__(self)
        self.session = session
        self.widget, self.ui = load_ui("Apply")
        layout.addWidget(self.widget)
        self.strip = JobStrip(session, layout, can_finish=False, panel_action=self.action_for)
        inner = self.widget.layout()  # the strip goes right below its button, above the tables of results
        inner.insertWidget(inner.indexOf(self.ui.volumesTable), self.strip.widget)
        self.review_list = ReviewList(self.ui.reviewLabel, self.ui.reviewList)
        self.queue = ApplyQueue(session, self.strip, self.review_list, on_change=self.show)
        self._filling = False
        self._models_with_atlas: set[str] = set()  # their keys
        self._table_content: list[Any] = []  # rows and states that the table of scans shows
        self._set_up_tables()
        self._connect()
        self._fill_models()
        self.show()

    def _set_up_tables(self) -> None:
        """Set columns and behavior of the two tables."""
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

    def _connect(self) -> None:
        """Connect the widgets, the session and the scene."""
        make_bold(self.ui.applyButton)
        self.ui.modelCombo.connect("activated(int)", self._on_model_chosen)
        self.ui.casesTable.connect("itemChanged(QTableWidgetItem*)", self._on_item_changed)
        self.ui.folderButton.connect("clicked()", self.add_folder)
        self.ui.dicomButton.connect("clicked()", self.add_series)
        self.ui.applyButton.connect("clicked()", self.apply)
        self.ui.previewButton.connect("clicked()", self.preview)
        self.ui.skipButton.connect("clicked()", self.queue.skip)
        self.ui.retryButton.connect("clicked()", self.queue.retry)
        self.ui.csvButton.connect("clicked()", self.save_csv)
        self.strip.ui.cancelButton.connect("clicked()", self.queue.stop)
        self.session.on_models_changed.append(self._fill_models)
        self.session.on_job_changed.append(self.show)
        self.session.on_close.append(self.queue.remove_files)
        for event in _SCENE_EVENTS:
            self.addObserver(slicer.mrmlScene, getattr(slicer.mrmlScene, event), self.show)

    # -- showing the state ---------------------------------------------------------------------------------------------

    def _fill_models(self) -> None:
        """Fill the list of models again."""
        key = self.session.parameters.model if self.session.parameters else ""
        self.ui.modelCombo.clear()
        models = self.session.library.models()
        self._models_with_atlas = {model.key for model in models if model.description.atlas}
        for model in models:
            self.ui.modelCombo.addItem(model.name, model.key)
        self.ui.modelCombo.setCurrentIndex(max(0, self.ui.modelCombo.findData(key)))
        if self.session.parameters is not None and self.ui.modelCombo.count:
            self.session.parameters.model = self.ui.modelCombo.currentData

    def show(self, *_args: Any) -> None:
        """Update the panel from the scene and the parameters."""
        parameters = self.session.parameters
        if parameters is None or slicer.mrmlScene.IsBatchProcessing():
            return
        if self.ui.modelCombo.currentData != parameters.model:
            self.ui.modelCombo.setCurrentIndex(max(0, self.ui.modelCombo.findData(parameters.model)))
        self._show_cases()
        self._show_volumes()
        self.review_list.show()
        running = self.queue.running
        has_models, any_ticked = (
            bool(self.ui.modelCombo.count),
            existing_nodes(parameters.targets) or parameters.sources,
        )
        self.ui.applyButton.setVisible(not running)
        self.ui.applyButton.enabled = bool(has_models and any_ticked) and not self.session.busy
        self._show_preview_button(running=running)
        for button in (self.ui.folderButton, self.ui.dicomButton):
            button.enabled = not running
        self.ui.applyButton.text = _("Segment") if has_models else _("Train or import a model first")
        self.ui.skipButton.setVisible(running)
        self.ui.retryButton.setVisible(not running and self.queue.has_failures())

    def _show_preview_button(self, *, running: bool) -> None:
        """Show the button *Quick preview*; it is enabled as *Segment* is, and needs a model with an atlas."""
        button, name = self.ui.previewButton, self.ui.modelCombo.currentText
        has_atlas = self.ui.modelCombo.currentData in self._models_with_atlas
        button.setVisible(not running)
        button.enabled = self.ui.applyButton.enabled and has_atlas
        button.toolTip = _(
            "Register the labelled scan to the ticked scans, and show its labels there: in seconds, without the network. "
            "'Segment' replaces these previews by full results."
        )
        if name and not has_atlas:
            message = _("The model '{name}' keeps no atlas of its labelled scan, which a quick preview needs.")
            button.toolTip = message.format(name=name)

    def _show_cases(self) -> None:
        """Fill the table of scans, unless its content is the same: this is called for every node that is added."""
        parameters = self.session.parameters
        cases = {case.key: case for case in self.queue.cases if case.volume is None or existing_nodes([case.volume])}
        targets, ticked = parameters.targets, set(parameters.sources)
        rows = [(node.GetID(), node.GetName(), "", node in targets) for node in scans()]
        rows += [
            (source, inputs.name_of(source), inputs.tooltip_of(source), source in ticked)
            for source in parameters.offered
        ]
        states = [(cases[key].state, cases[key].message) if key in cases else ("", "") for key, *_row in rows]
        if [rows, states] == self._table_content:
            return
        self._table_content = [rows, states]
        table = self.ui.casesTable
        self._filling = True
        table.setRowCount(len(rows))
        for row, ((key, name, tooltip, checked), (state, message)) in enumerate(zip(rows, states)):
            item = qt.QTableWidgetItem(name)
            item.setToolTip(tooltip)
            item.setData(qt.Qt.UserRole, key)
            item.setCheckState(qt.Qt.Checked if checked else qt.Qt.Unchecked)
            table.setItem(row, 0, item)
            state_item = qt.QTableWidgetItem(_STATE_TEXTS[state]() if state else "")
            state_item.setToolTip(message)
            if state in _STATE_COLORS:
                state_item.setForeground(qt.QBrush(qt.QColor(_STATE_COLORS[state])))
            table.setItem(row, 1, state_item)
        table.resizeRowsToContents()
        fit_height(table, len(rows))
        self._filling = False

    def _show_volumes(self) -> None:
        """Fill the table of volumes."""
        node, table = tables.volumes_table(), self.ui.volumesTable
        rows = node.GetNumberOfRows() if node else 0
        table.setRowCount(rows)
        for row in range(rows):
            for column, node_column in enumerate((0, 2, 3)):
                text = node.GetCellText(row, node_column)
                item = qt.QTableWidgetItem(f"{float(text):.1f}" if column == 2 else text)
                if column == 2:
                    item.setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
                table.setItem(row, column, item)
        table.resizeRowsToContents()
        fit_height(table, rows)
        table.setVisible(rows > 0)
        self.ui.csvButton.setVisible(rows > 0)

    # -- choosing model and scans --------------------------------------------------------------------------------------

    def _on_model_chosen(self, _index: int = 0) -> None:
        """Store the chosen model."""
        self.session.parameters.model = self.ui.modelCombo.currentData or ""

    def _on_item_changed(self, item: Any) -> None:
        """Store which scans are ticked."""
        if self._filling or item.column() != 0:
            return
        table, parameters = self.ui.casesTable, self.session.parameters
        items = [table.item(row, 0) for row in range(table.rowCount)]
        keys = [item.data(qt.Qt.UserRole) for item in items if item.checkState() == qt.Qt.Checked]
        offered = set(parameters.offered)
        parameters.sources = [key for key in keys if key in offered]
        parameters.targets = [slicer.mrmlScene.GetNodeByID(key) for key in keys if key not in offered]

    def add_folder(self) -> None:
        """Ask for a folder, and list its scans as ticked."""
        folder = qt.QFileDialog.getExistingDirectory(self.widget, _("Folder of scans"))
        if folder:
            self._add_inputs(lambda: inputs.inputs_in_folder(Path(folder)), ticked=True)

    def add_series(self) -> None:
        """List the series of the DICOM database, not ticked, because only the user knows which to segment."""
        self._add_inputs(inputs.inputs_in_database, ticked=False)

    def _add_inputs(self, find: Callable[[], list[str]], *, ticked: bool) -> None:
        """List the inputs that `find` returns, or show its error."""
        try:
            added = find()
        except HiEndMAEError as error:
            self.strip.show_error(error)
            return
        parameters = self.session.parameters
        parameters.offered = list(dict.fromkeys([*parameters.offered, *added]))
        if ticked:
            parameters.sources = list(dict.fromkeys([*parameters.sources, *added]))
        self.show()

    # -- segmenting ----------------------------------------------------------------------------------------------------

    def apply(self) -> None:
        """Segment the ticked scans on the model's own grid."""
        self._start_queue(as_preview=False)

    def preview(self) -> None:
        """Show the labels of the model's labelled scan on the ticked scans, by registration alone."""
        self._start_queue(as_preview=True)

    def _start_queue(self, *, as_preview: bool) -> None:
        """Start the queue with the ticked scans."""
        parameters = self.session.parameters
        self.queue.spacing, self.queue.as_preview = None, as_preview
        cases = [Case(volume) for volume in existing_nodes(parameters.targets)]
        self.queue.start(cases + [Case(source=source) for source in parameters.sources])

    def forget(self) -> None:
        """Stop and drop all cases, because the scene is closing."""
        self.queue.forget()

    def action_for(self, action: str) -> Callable[[], None] | None:
        """Return what this panel can do about an error: use a grid of 2 mm if that is coarser, or crop the scan."""
        model = self.session.library.find(self.session.parameters.model)
        if action == "2mm" and model is not None and not self.queue.spacing:
            is_coarser = min(model.description.preparation["spacing"]) < _COARSE_SPACING
            return self._retry_on_coarse_grid if is_coarser else None
        return self._prepare_crop if action == "crop" else None

    def _retry_on_coarse_grid(self) -> None:
        """Segment the failed scans again on a coarser grid."""
        self.queue.spacing = _COARSE_SPACING
        self.queue.retry()

    def _prepare_crop(self) -> None:
        """Show the region of interest, and let the user move it: it may have been made for another purpose."""
        volumes = self.queue.failed_volumes()
        if not volumes:
            self.queue.retry()
            return
        region = roi.find_roi() or roi.make_roi(volumes[0])
        region.SetDisplayVisibility(True)
        message = _("Place the box '{name}' (ROI), then press the button.").format(name=region.GetName())
        self.strip.show_message(message, action="crop", on_action=functools.partial(self._crop_to, region))

    def _crop_to(self, region: Any) -> None:
        """Crop the scans that failed to the region of interest, and segment them."""
        volumes = self.queue.failed_volumes()
        if not existing_nodes([region]):
            self._prepare_crop()
            return
        try:
            cropped = {volume: roi.crop_volume(volume, region) for volume in volumes}
        except HiEndMAEError as error:
            on_action = functools.partial(self._crop_to, region)
            self.strip.show_message(str(error), kind="error", action="crop", on_action=on_action)
            return
        roi.hide_roi(region)
        parameters = self.session.parameters
        parameters.targets = [cropped.get(volume, volume) for volume in existing_nodes(parameters.targets)]
        for case in self.queue.cases:
            case.volume = cropped.get(case.volume, case.volume)
        self.queue.retry()

    def save_csv(self) -> None:
        """Ask for a file, and write the table of volumes."""
        file = qt.QFileDialog.getSaveFileName(self.widget, _("Save volumes"), "volumes.csv", _("Tables (*.csv)"))
        node = tables.volumes_table()
        if not file or node is None:
            return
        try:
            tables.write_csv(node, Path(file))
        except OSError as error:
            message = _("The table could not be saved: {reason}.").format(reason=error.strerror)
            self.strip.show_message(message, kind="error")
            return
        self.strip.show_message(_("The volumes are in {file}.").format(file=file), kind="success")
