"""The panel *Models and this computer*: the library, a check of the computer, and offline packages."""

from __future__ import annotations

import html
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import qt
import slicer
import slicer.util
from slicer.i18n import tr as _

from HiEndMAECore.doctor import DoctorConfig
from HiEndMAECore.errors import HiEndMAEError
from HiEndMAECore.models import folder as model_folder
from HiEndMAECore.runtime.requirements import name_of
from HiEndMAESegmentationLib.engine import installation
from HiEndMAESegmentationLib.engine.jobs import OFFLINE_PACKAGE, JobEnd
from HiEndMAESegmentationLib.engine.model_library import Model, UnreadableModel
from HiEndMAESegmentationLib.engine.offline_package import OfflinePackageConfig

from .base import JobStrip, Session, fit_height, load_ui, restart_message
from .model_card import model_card


class ModelsPanel:
    """The list of models with the card of the chosen one, and the buttons for models, computer and offline packages."""

    def __init__(self, session: Session, layout: Any) -> None:
        self.session = session
        self.widget, self.ui = load_ui("Models")
        layout.addWidget(self.widget)
        self.strip = JobStrip(session, layout, can_finish=False)
        self._filling = False
        self.ui.modelsList.connect("currentRowChanged(int)", self.show)
        self.ui.modelsList.connect("itemChanged(QListWidgetItem*)", self._on_item_changed)
        self.ui.renameButton.connect("clicked()", self.rename)
        self.ui.deleteButton.connect("clicked()", self.delete)
        self.ui.shareButton.connect("clicked()", self.share)
        self.ui.importButton.connect("clicked()", self.import_model)
        self.ui.doctorButton.connect("clicked()", self.check_computer)
        self.ui.makePackageButton.connect("clicked()", self.make_offline_package)
        self.ui.installPackageButton.connect("clicked()", self.install_offline_package)
        session.on_models_changed.append(self.fill)
        session.on_job_changed.append(self.show)
        self.fill()

    def fill(self) -> None:
        """Fill the list from the library; models that cannot be read come last, in gray."""
        chosen = self.chosen()
        self._filling = True
        self.ui.modelsList.clear()
        for model in self.session.library.entries():
            item = self._item_of(model)
            self.ui.modelsList.addItem(item)
            if chosen is not None and model.key == chosen.key:
                self.ui.modelsList.setCurrentItem(item)
        self._filling = False
        if self.ui.modelsList.currentRow < 0 and self.ui.modelsList.count:
            self.ui.modelsList.setCurrentRow(0)
        self.show()

    def _item_of(self, model: Model | UnreadableModel) -> Any:
        """Return the list item of a model; only readable models can be renamed in the list."""
        readable = isinstance(model, Model)
        item = qt.QListWidgetItem(model.name if readable else _("{name} (unreadable)").format(name=model.name))
        item.setData(qt.Qt.UserRole, model.key)
        if readable:
            item.setFlags(item.flags() | qt.Qt.ItemIsEditable)
        else:
            item.setForeground(qt.QBrush(qt.QColor("gray")))
        return item

    def chosen(self) -> Model | UnreadableModel | None:
        """Return the model of the current row."""
        item = self.ui.modelsList.currentItem()
        return self.session.library.entry(item.data(qt.Qt.UserRole)) if item is not None else None

    def choose(self, key: str) -> None:
        """Make the model of this key the current row."""
        for row in range(self.ui.modelsList.count):
            if self.ui.modelsList.item(row).data(qt.Qt.UserRole) == key:
                self.ui.modelsList.setCurrentRow(row)

    def show(self, *_args: Any) -> None:
        """Update card and buttons for the chosen model."""
        if self._filling:
            return
        model = self.chosen()
        self.ui.modelsList.setVisible(bool(self.ui.modelsList.count))
        fit_height(self.ui.modelsList, self.ui.modelsList.count)
        if model is None:
            self.ui.cardLabel.text = _("No model yet. Train one, or import one that somebody shared.")
        else:
            self.ui.cardLabel.text = (
                model_card(model) if isinstance(model, Model) else html.escape(model.reason, quote=False)
            )
        self.ui.deleteButton.enabled = model is not None
        for button in (self.ui.renameButton, self.ui.shareButton):
            button.enabled = isinstance(model, Model)
        for button in (self.ui.doctorButton, self.ui.makePackageButton, self.ui.installPackageButton):
            button.enabled = not self.session.busy

    # -- models --------------------------------------------------------------------------------------------------------

    def rename(self) -> None:
        """Let the user type the new name in the list itself."""
        self.ui.modelsList.editItem(self.ui.modelsList.currentItem())

    def _on_item_changed(self, item: Any) -> None:
        """Rename the model whose name was changed in the list."""
        model = self.session.library.find(item.data(qt.Qt.UserRole))
        if self._filling or model is None or item.text() == model.name:
            return
        try:
            self.session.library.rename(model, item.text())
        except HiEndMAEError as error:
            self.strip.show_error(error)
        self.session.models_changed()

    def delete(self) -> None:
        """Ask, and remove the chosen model from the disk."""
        model = self.chosen()
        question = _("Delete the model '{name}' from this computer? This cannot be undone.")
        if model is None or not slicer.util.confirmOkCancelDisplay(question.format(name=model.name)):
            return
        try:
            self.session.library.delete(model)
        except OSError as error:  # on Windows a running job keeps its files open
            message = _("'{name}' could not be deleted: {reason}.").format(name=model.name, reason=error.strerror)
            self.strip.show_message(message, kind="error")
            return
        self.session.models_changed()
        self.strip.show_message(_("'{name}' was deleted.").format(name=model.name))

    def share(self) -> None:
        """Ask for a file and whether to include the atlas, and write the chosen model as one zip."""
        model = self.chosen()
        if not isinstance(model, Model):
            return
        file = qt.QFileDialog.getSaveFileName(self.widget, _("Share model"), f"{model.key}.zip", _("Models (*.zip)"))
        if not file:
            return
        answer = self._ask_for_atlas() if model.description.atlas else qt.QMessageBox.No
        if answer in (qt.QMessageBox.Yes, qt.QMessageBox.No):
            self.share_as(model, Path(file), keep_atlas=answer == qt.QMessageBox.Yes)

    def _ask_for_atlas(self) -> Any:
        """Ask whether to include the atlas, and return the button: Yes, No (the default) or Cancel."""
        question = _(
            "Include the atlas of the labelled scan (label map, edges and tissue classes, no intensities; it shows the "
            "shapes of organs and the body's outline)? Without it the receiver's results are worse."
        )
        buttons = qt.QMessageBox.Yes | qt.QMessageBox.No | qt.QMessageBox.Cancel
        return qt.QMessageBox.question(self.widget, _("Share model"), question, buttons, qt.QMessageBox.No)

    def share_as(self, model: Model, file: Path, *, keep_atlas: bool = False) -> None:
        """Write the model as one zip, with its atlas or without."""
        try:
            zip_file = self.session.library.share(model, file, keep_atlas=keep_atlas)
        except HiEndMAEError as error:
            self.strip.show_error(error)
            return
        except OSError as error:
            message = _("The model could not be saved: {reason}.").format(reason=error.strerror)
            self.strip.show_message(message, kind="error")
            return
        message = _("'{name}' is in {file}: weights and names of structures, no image and no patient data.")
        if keep_atlas and model.description.atlas:
            message = _(
                "'{name}' is in {file}: weights, names of structures, and the atlas of the labelled scan, which shows the "
                "shapes of organs and the body's outline. No intensities are in it, and no names of patients."
            )
        elif model.description.atlas:
            message += " " + _("The atlas of the labelled scan was left out.")
        self.strip.show_message(message.format(name=model.name, file=zip_file), kind="success")

    def import_model(self) -> None:
        """Ask for a file, and copy its model into the library."""
        file = qt.QFileDialog.getOpenFileName(self.widget, _("Import model"), "", _("Models (*.zip)"))
        if file:
            self.import_from(Path(file))

    def import_from(self, file: Path) -> None:
        """Copy the model of a zip into the library."""
        try:
            model = self.session.library.import_model(file)
        except HiEndMAEError as error:
            self.strip.show_error(error)
            return
        self.session.models_changed()
        self.choose(model.key)
        self.strip.show_message(_("'{name}' is ready to segment.").format(name=model.name), kind="success")

    # -- this computer -------------------------------------------------------------------------------------------------

    def check_computer(self) -> None:
        """Run the engine's command `doctor`, and show its findings."""
        folder = Path(tempfile.mkdtemp(prefix="HiEndMAE-", dir=slicer.app.temporaryPath))
        report = folder / "doctor.json"

        def on_end(end: JobEnd) -> None:
            if end.state == "finished":
                findings = json.loads(report.read_text(encoding="utf-8"))
                warnings = self.strip.warnings
                text = "\n".join([computer_text(findings), *warnings])
                self.strip.show_message(text, kind="info" if warnings else "success")
            shutil.rmtree(folder, ignore_errors=True)

        config = DoctorConfig(output=report)
        if not self.strip.run("doctor", config, on_end=on_end, try_again=self.check_computer):
            shutil.rmtree(folder, ignore_errors=True)

    # -- offline packages ----------------------------------------------------------------------------------------------

    def make_offline_package(self) -> None:
        """Ask for a folder, and put the packages for this kind of computer and all models into it."""
        folder = qt.QFileDialog.getExistingDirectory(self.widget, _("Folder for the offline package"))
        if not folder:
            return
        library = self.session.library
        start = Path(self.session.parameters.start)
        files = [*library.weights(), *([start] if start.is_file() and start not in library.weights() else [])]
        config = OfflinePackageConfig(
            folder=Path(folder),
            packages=tuple(installation.offline_requirements()),
            pins=tuple(installation.offline_pins()),
            weights=(*(model.path for model in library.models()), *files),
        )

        def on_end(end: JobEnd) -> None:
            if end.state == "finished":
                message = _(
                    "The offline package is in {folder}. Copy it to the other computer, and press 'Install offline "
                    "package' there."
                )
                self.strip.show_message(message.format(folder=folder), kind="success")

        self.strip.run(OFFLINE_PACKAGE, config, on_end=on_end, try_again=self.make_offline_package)

    def install_offline_package(self) -> None:
        """Ask for the folder of an offline package, install what is missing here and import its models."""
        folder = qt.QFileDialog.getExistingDirectory(self.widget, _("Folder of the offline package"))
        if not folder:
            return
        requirements = installation.offline_requirements()
        missing = [line for line in installation.missing_packages() if line in requirements]
        names = [name_of(line) for line in missing]
        restart = installation.restart_needed(missing)
        config = OfflinePackageConfig(
            folder=Path(folder),
            install=True,
            packages=tuple(missing),
            pins=tuple(pin for pin in installation.shipped_pins() if pin.partition("==")[0] not in names),
            weights_folder=self.session.library.weights_folder,
        )

        def on_end(end: JobEnd) -> None:
            if end.state == "finished":
                problems = self._import_models_of(Path(folder))
                message = _("Everything in the offline package is installed.") + " " + restart_message(restart)
                kind = "info" if problems else "success"
                self.strip.show_message("\n".join([message, *problems]), kind=kind)

        self.strip.run(OFFLINE_PACKAGE, config, on_end=on_end, try_again=self.install_offline_package)

    def _import_models_of(self, folder: Path) -> list[str]:
        """Import the models of an offline package that the library lacks; return a sentence for each unusable one."""
        problems = []
        for file in sorted((folder / "weights").glob("*.zip")):
            try:
                if model_folder.is_model(file) and not self.session.library.contains(file):
                    self.session.library.import_model(file)
            except HiEndMAEError as error:
                problems.append(str(error))
        self.session.models_changed()
        return problems


def computer_text(findings: dict[str, Any]) -> str:
    """Return the findings of `doctor` in words, on a computer that can run the engine."""
    devices = ", ".join(str(device["name"]) for device in findings["devices"])
    text = _(
        "This computer can run HiEndMAE, on: {devices}. It has {cores} cores, {memory} GB of memory, {disk} GB of disk free."
    )
    return text.format(
        devices=devices, cores=findings["cores"], memory=findings["memory_gb"], disk=findings["disk_free_gb"]
    )
