"""The fourth panel: the models on this computer, the computer itself, and the kit for one without a network."""

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

from HiEndMAECore.checkpoints import model_folder
from HiEndMAECore.doctor import DoctorConfig
from HiEndMAECore.errors import HiEndMAEError
from HiEndMAECore.requirements import name_of
from HiEndMAESegmentationLib.engine import installation
from HiEndMAESegmentationLib.engine.jobs import JobEnd
from HiEndMAESegmentationLib.engine.model_library import Model
from HiEndMAESegmentationLib.engine.offline_package import KitConfig

from .base import JobStrip, Session, fit_height, load, restart_told


class ModelsPanel:
    """List, card, rename, delete, share, import; Check this computer."""

    def __init__(self, session: Session, layout: Any) -> None:
        self.session = session
        self.widget, self.ui = load("Models")
        layout.addWidget(self.widget)
        self.strip = JobStrip(session, layout, can_finish=False)
        self._filling = False
        self.ui.modelsList.connect("currentRowChanged(int)", self.show)
        self.ui.modelsList.connect("itemChanged(QListWidgetItem*)", self._on_renamed)
        self.ui.renameButton.connect("clicked()", self.rename)
        self.ui.deleteButton.connect("clicked()", self.delete)
        self.ui.shareButton.connect("clicked()", self.share)
        self.ui.importButton.connect("clicked()", self.take_in)
        self.ui.doctorButton.connect("clicked()", self.check_computer)
        self.ui.kitButton.connect("clicked()", self.gather_kit)
        self.ui.fromKitButton.connect("clicked()", self.install_kit)
        session.on_models_changed.append(self.fill)
        session.on_job_changed.append(self.show)
        self.fill()

    def fill(self) -> None:
        """Read the library again."""
        kept = self.chosen()
        self._filling = True
        self.ui.modelsList.clear()
        for model in self.session.library.models():
            item = qt.QListWidgetItem(model.name)
            item.setData(qt.Qt.UserRole, model.key)
            item.setFlags(item.flags() | qt.Qt.ItemIsEditable)
            self.ui.modelsList.addItem(item)
            if kept is not None and model.key == kept.key:
                self.ui.modelsList.setCurrentItem(item)
        self._filling = False
        if self.ui.modelsList.currentRow < 0 and self.ui.modelsList.count:
            self.ui.modelsList.setCurrentRow(0)
        self.show()

    def chosen(self) -> Model | None:
        """The model of the current row."""
        item = self.ui.modelsList.currentItem()
        return self.session.library.find(item.data(qt.Qt.UserRole)) if item is not None else None

    def choose(self, key: str) -> None:
        """Make the model of this key the current row."""
        for row in range(self.ui.modelsList.count):
            if self.ui.modelsList.item(row).data(qt.Qt.UserRole) == key:
                self.ui.modelsList.setCurrentRow(row)

    def show(self, *_args: Any) -> None:
        """Card and buttons of the chosen model."""
        if self._filling:
            return
        model = self.chosen()
        self.ui.modelsList.setVisible(bool(self.ui.modelsList.count))
        fit_height(self.ui.modelsList, self.ui.modelsList.count)
        none = _("No model yet. Teach one, or import one that somebody shared.")
        self.ui.cardLabel.text = card(model) if model is not None else none
        for button in (self.ui.renameButton, self.ui.deleteButton, self.ui.shareButton):
            button.enabled = model is not None
        for button in (self.ui.doctorButton, self.ui.kitButton, self.ui.fromKitButton):
            button.enabled = not self.session.busy

    # -- what can be done with a model -----------------------------------------------------------------------------

    def rename(self) -> None:
        """Type the new name in the list itself."""
        self.ui.modelsList.editItem(self.ui.modelsList.currentItem())

    def _on_renamed(self, item: Any) -> None:
        model = self.session.library.find(item.data(qt.Qt.UserRole))
        if self._filling or model is None or item.text() == model.name:
            return
        try:
            self.session.library.rename(model, item.text())
        except HiEndMAEError as error:
            self.strip.show_error(error)
        self.session.models_changed()

    def delete(self) -> None:
        """Ask, and remove it from the disk."""
        model = self.chosen()
        question = _("Delete the model '{name}' from this computer? This cannot be undone.")
        if model is None or not slicer.util.confirmOkCancelDisplay(question.format(name=model.name)):
            return
        try:
            self.session.library.delete(model)
        except OSError as error:  # Windows: a running job holds its files
            told = _("'{name}' could not be deleted: {reason}.").format(name=model.name, reason=error.strerror)
            self.strip.say(told, mood="bad")
            return
        self.session.models_changed()
        self.strip.say(_("'{name}' was deleted.").format(name=model.name))

    def share(self) -> None:
        """Ask where, and write one zip."""
        model = self.chosen()
        if model is None:
            return
        file = qt.QFileDialog.getSaveFileName(self.widget, _("Share model"), f"{model.key}.zip", _("Models (*.zip)"))
        if file:
            self.share_as(model, Path(file))

    def share_as(self, model: Model, file: Path) -> None:
        """Write the model as one zip."""
        try:
            written = self.session.library.share(model, file)
        except HiEndMAEError as error:
            self.strip.show_error(error)
            return
        except OSError as error:
            self.strip.say(_("The model could not be saved: {reason}.").format(reason=error.strerror), mood="bad")
            return
        told = _("'{name}' is in {file}: weights and names of structures, no image and no patient data.")
        self.strip.say(told.format(name=model.name, file=written), mood="good")

    def take_in(self) -> None:
        """Ask which file, and copy it into the library."""
        file = qt.QFileDialog.getOpenFileName(self.widget, _("Import model"), "", _("Models (*.zip)"))
        if file:
            self.take_in_from(Path(file))

    def take_in_from(self, file: Path) -> None:
        """Copy the model of a zip into the library."""
        try:
            model = self.session.library.take_in(file)
        except HiEndMAEError as error:
            self.strip.show_error(error)
            return
        self.session.models_changed()
        self.choose(model.key)
        self.strip.say(_("'{name}' is ready to segment.").format(name=model.name), mood="good")

    # -- this computer ---------------------------------------------------------------------------------------------

    def check_computer(self) -> None:
        """Ask the engine's doctor, in a process of its own."""
        folder = Path(tempfile.mkdtemp(prefix="HiEndMAE-", dir=slicer.app.temporaryPath))
        report = folder / "doctor.json"

        def ended(end: JobEnd) -> None:
            if end.state == "finished":
                found = json.loads(report.read_text(encoding="utf-8"))
                warned = self.strip.warnings
                self.strip.say("\n".join([healthy(found), *warned]), mood="plain" if warned else "good")
            shutil.rmtree(folder, ignore_errors=True)

        if not self.strip.run("doctor", DoctorConfig(output=report), on_end=ended, again=self.check_computer):
            shutil.rmtree(folder, ignore_errors=True)

    # -- a computer without a network --------------------------------------------------------------------------------

    def gather_kit(self) -> None:
        """Ask for a folder; the packages for this kind of computer and all models go into it, with checksums."""
        folder = qt.QFileDialog.getExistingDirectory(self.widget, _("Folder for the offline kit"))
        if not folder:
            return
        library = self.session.library
        start = Path(self.session.parameters.start)
        files = [*library.weights(), *([start] if start.is_file() and start not in library.weights() else [])]
        config = KitConfig(
            folder=Path(folder),
            packages=tuple(installation.kit_packages()),
            pins=tuple(installation.kit_pins()),
            weights=(*(model.path for model in library.models()), *files),
        )

        def ended(end: JobEnd) -> None:
            if end.state == "finished":
                told = _("The kit is in {folder}. Copy it to the other computer, and press 'Install from a kit' there.")
                self.strip.say(told.format(folder=folder), mood="good")

        self.strip.run("kit", config, on_end=ended, again=self.gather_kit)

    def install_kit(self) -> None:
        """Ask for a kit's folder; what is missing here is installed, its models join the library."""
        folder = qt.QFileDialog.getExistingDirectory(self.widget, _("Folder of the offline kit"))
        if not folder:
            return
        lacking = [line for line in installation.missing() if line in installation.kit_packages()]
        restart = installation.restart_wanted(lacking)
        config = KitConfig(
            folder=Path(folder),
            install=True,
            packages=tuple(lacking),
            pins=tuple(pin for pin in installation.pinned() if pin.partition("==")[0] not in map(name_of, lacking)),
            place=self.session.library.weights_folder,
        )

        def ended(end: JobEnd) -> None:
            if end.state == "finished":
                self._take_from_kit(Path(folder))
                told = _("Everything in the kit is installed.") + " " + restart_told(restart)
                self.strip.say(told, mood="good")

        self.strip.run("kit", config, on_end=ended, again=self.install_kit)

    def _take_from_kit(self, folder: Path) -> None:
        for file in sorted((folder / "weights").glob("*.zip")):
            if model_folder.is_model(file) and not self.session.library.knows(file):
                self.session.library.take_in(file)
        self.session.models_changed()


def healthy(found: dict[str, Any]) -> str:
    """The doctor's findings on a computer that can run the main job."""
    devices = ", ".join(str(device["name"]) for device in found["devices"])
    told = _(
        "This computer can run HiEndMAE, on: {devices}. It has {cores} cores, {memory} GB of memory, {disk} GB of disk free."
    )
    return told.format(devices=devices, cores=found["cores"], memory=found["memory_gb"], disk=found["disk_free_gb"])


def card(model: Model) -> str:
    """What one should know before using the model, as rich text."""
    described = model.description
    training, preparation = described.training, described.preparation
    swatches = []
    for label in described.labels:
        red, green, blue = label.get("colour", (128, 174, 128))
        name = html.escape(label["name"])
        swatches.append(f'<span style="color: rgb({red},{green},{blue})">■</span>&nbsp;{name}')
    rows = [
        (_("Structures"), "&ensp; ".join(swatches)),
        (_("Learned from"), html.escape(_learned_from(training))),
        (_("Working grid"), html.escape(" × ".join(f"{edge:g}" for edge in preparation["spacing"]) + " mm")),
        (_("Intensities"), html.escape(_intensities(preparation["normalisation"]))),
        (
            _("Network"),
            html.escape(str(described.architecture.get("variant") or described.architecture.get("network"))),
        ),
    ]
    checked = score(training)
    if checked:
        rows.insert(2, (_("Self-check"), html.escape(checked)))
    lines = "".join(f'<tr><td style="color: gray; padding-right: 12px">{k}</td><td>{v}</td></tr>' for k, v in rows)
    return f"<table>{lines}</table>"


def _learned_from(training: Any) -> str:
    cases, steps = training.get("cases", 0), training.get("steps", 0)
    scans = _("1 scan") if cases == 1 else _("{cases} scans").format(cases=cases)
    told = _("{scans}, {steps} steps").format(scans=scans, steps=steps)
    seconds = training.get("seconds")
    return f"{told}, {seconds:.0f} s" if isinstance(seconds, int | float) else told


def _intensities(normalisation: Any) -> str:
    low, high = normalisation.get("low"), normalisation.get("high")
    if normalisation.get("kind") == "window":
        return _("CT, {low:g} to {high:g} HU").format(low=low, high=high)
    return _("MRI, percentiles {low:g} to {high:g}").format(low=low, high=high)


def score(training: Any) -> str:
    """The self-check in words, where the training kept one: the Dice to expect elsewhere, and of each structure."""
    check = training.get("self_check")
    if not isinstance(check, dict) or not isinstance(check.get("mean"), int | float):
        return ""
    told = _("expect a Dice of about {dice:.2f} on other scans").format(dice=check["mean"])
    if isinstance(check.get("error"), int | float):
        told += " " + _("(a structure give or take {error:.2f}, as measured on head-and-neck CT)").format(
            error=check["error"]
        )
    else:
        told += " " + _("(an estimate that no patient has tested)")
    known = [one for one in check.get("structures", ()) if isinstance(one.get("expected"), int | float)]
    parts = ", ".join(f"{one['name']} {one['expected']:.2f}" for one in known)
    return f"{told}: {parts}" if parts else told
