"""What the four panels share: loading .ui files, the session, and the strip that shows a job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import qt
import slicer
import slicer.util
from slicer.i18n import tr as _

from HiEndMAECore.cli.options import CommandConfig
from HiEndMAECore.errors import HiEndMAEError
from HiEndMAESegmentationLib import MODULE_FOLDER
from HiEndMAESegmentationLib.engine import installation
from HiEndMAESegmentationLib.engine.jobs import Job, JobEnd
from HiEndMAESegmentationLib.engine.model_library import ModelLibrary
from HiEndMAESegmentationLib.scene import plots

from .error_actions import actions_for, button_text

_MESSAGE_COLORS = {"success": "#2e7d32", "error": "#b3261e", "info": ""}


class Session:
    """State that all panels share: parameters, model library, the running job, and callbacks for changes."""

    def __init__(self) -> None:
        self.parameters: Any = None
        self.library = ModelLibrary(Path(slicer.app.slicerUserSettingsFilePath).parent / "HiEndMAE" / "models")
        self.job: Job | None = None
        self.on_models_changed: list[Callable[[], None]] = []
        self.on_job_changed: list[Callable[[], None]] = []
        self.on_close: list[Callable[[], None]] = []

    @property
    def busy(self) -> bool:
        """Return whether a job is running."""
        return self.job is not None and self.job.running

    def models_changed(self) -> None:
        """Call all callbacks for a changed library."""
        for callback in self.on_models_changed:
            callback()

    def job_changed(self) -> None:
        """Call all callbacks for a job that started or ended."""
        for callback in self.on_job_changed:
            callback()

    def close(self) -> None:
        """End the running job and remove all files of patients: Slicer or the module is closing."""
        if self.job is not None and self.busy:
            self.job.kill()
        self.job = None
        for callback in self.on_close:
            callback()


class JobStrip:
    """Progress bar, time left, the buttons *Use now* and *Cancel*, a message with at most one button, and the log.

    Args:
        session: The session that the job belongs to.
        layout: The layout that the strip is added to.
        can_finish: Whether the command can stop early with a usable result.
        panel_action: Returns what the panel can do for an action of `error_actions`, or None if it can do nothing (more).
    """

    def __init__(
        self,
        session: Session,
        layout: Any,
        *,
        can_finish: bool,
        panel_action: Callable[[str], Callable[[], None] | None] = lambda _action: None,
    ) -> None:
        self.session, self._panel_action = session, panel_action
        self.widget, self.ui = load_ui("Progress")
        layout.addWidget(self.widget)
        self._can_finish = can_finish
        self.action, self.on_action = "", None
        self._log: Path | None = None
        self._try_again: Callable[[], None] | None = None
        self._warnings: list[str] = []
        self._scan = ""  # name of the scan that the job segments
        self.ui.finishButton.connect("clicked()", self.finish)
        self.ui.cancelButton.connect("clicked()", self.cancel)
        self.ui.actionButton.connect("clicked()", self._on_action_clicked)
        self.ui.logButton.connect("clicked()", self.open_log)
        self.ui.curveButton.connect("clicked()", plots.show_chart)
        self.job: Job | None = None
        self.show_message("")
        self._show_running(False)

    # -- running a job -------------------------------------------------------------------------------------------------

    def run(
        self,
        command: str,
        config: CommandConfig,
        *,
        on_end: Callable[[JobEnd], None],
        try_again: Callable[[], None],
        on_event: Callable[[dict[str, Any]], None] | None = None,
        scan: str = "",
    ) -> bool:
        """Start a job and show it; while another job runs, show a message and return False.

        Args:
            command: The engine's command, see `Job`.
            config: Its options; the device is that of the parameters.
            on_end: Called when the job has ended.
            try_again: Called by the button of an error message, once the cause of the error is removed.
            on_event: Called with every event.
            scan: Name of the scan that the job segments, for its progress.
        """
        if self.session.busy:
            self.show_message(_("Another job is running. Wait for it, or cancel it first."), kind="error")
            return False
        self._try_again = try_again
        self._warnings = []
        self._scan = scan

        def handle_event(event: dict[str, Any]) -> None:
            self._show_event(event)
            if on_event is not None:
                on_event(event)

        def handle_end(end: JobEnd) -> None:
            self._show_running(False)
            self.session.job_changed()
            if end.state != "finished":
                self.show_end(end)
            on_end(end)

        device = self.session.parameters.device if self.session.parameters else "auto"
        config = replace(config, device=device)
        self.job = self.session.job = Job(command, config, on_event=handle_event, on_end=handle_end)
        self._log = self.job.log
        self.show_message("")
        self.ui.progressBar.setRange(0, 0)
        self.ui.progressLabel.text = _("Starting…")
        self._show_running(True)
        self.job.start()
        self.session.job_changed()
        return True

    def finish(self) -> None:
        """Ask the job for a usable result now."""
        if self.job is not None:
            self.job.finish()
            self.ui.finishButton.enabled = False
            self.ui.progressLabel.text = _("Finishing…")

    def cancel(self) -> None:
        """Cancel the job."""
        if self.job is not None:
            self.job.cancel()
            self.ui.cancelButton.enabled = False
            self.ui.progressLabel.text = _("Cancelling…")

    def _show_running(self, running: bool) -> None:
        """Show the widgets that belong to a running job, or hide them."""
        for widget in (self.ui.progressBar, self.ui.progressLabel, self.ui.cancelButton):
            widget.setVisible(running)
        for button in (self.ui.finishButton, self.ui.curveButton):
            button.setVisible(running and self._can_finish)
        self.ui.finishButton.enabled = self.ui.cancelButton.enabled = True

    def _show_event(self, event: dict[str, Any]) -> None:
        """Show progress, and collect warnings."""
        kind = event["event"]
        if kind == "progress" and self.ui.cancelButton.enabled and self.ui.finishButton.enabled:
            self.ui.progressBar.setRange(0, max(1, event["total"]))
            self.ui.progressBar.setValue(event["step"])
            texts = (stage_title(event["stage"], self._scan), time_left_text(event))
            self.ui.progressLabel.text = " · ".join(filter(None, texts))
        elif kind == "warning":
            text = actions_for(event["code"], event["message"], event["advice"]).text
            self._warnings += filter(None, [text])

    # -- messages ------------------------------------------------------------------------------------------------------

    @property
    def warnings(self) -> list[str]:
        """Return the job's warnings as sentences."""
        return list(self._warnings)

    def show_message(
        self, text: str, *, kind: str = "info", action: str = "", on_action: Callable[[], None] | None = None
    ) -> None:
        """Show a message, and a button if there is an action.

        Args:
            text: The message; "" hides it.
            kind: "success", "error" or "info".
            action: The action whose text the button shows, see `error_actions`; "" for no button.
            on_action: Called by the button.
        """
        color = _MESSAGE_COLORS[kind]
        self.ui.messageLabel.styleSheet = f"color: {color}" if color else ""
        self.ui.messageLabel.text = text
        self.ui.messageLabel.setVisible(bool(text))
        self.ui.actionButton.text = button_text(action)
        self.ui.actionButton.setVisible(bool(action))
        self.ui.logButton.setVisible(bool(text) and self._log is not None)
        self.action, self.on_action = action, on_action

    def show_end(self, end: JobEnd) -> None:
        """Show how a job ended that did not finish."""
        if end.state == "cancelled":
            self.show_message(end.message)
        else:
            self.show_problem(end.code, end.message, end.advice)

    def show_error(self, error: HiEndMAEError) -> None:
        """Show an error of the module itself, which has no log."""
        self._log = None
        self.show_problem(error.code, error.message, error.advice)

    def show_problem(self, code: str, message: str, advice: str) -> None:
        """Show the sentence for an error code, with a button for the first action that is possible."""
        problem = actions_for(code, message, advice)
        on_processor = self.session.parameters is not None and self.session.parameters.device == "cpu"
        own_actions = {
            "install": self._install,
            "cpu": None if on_processor else self._use_processor,
            "retry": self._try_again,
        }
        for action in problem.actions:
            on_action = own_actions[action] if action in own_actions else self._panel_action(action)
            if on_action is not None:
                self.show_message(problem.text, kind="error", action=action, on_action=on_action)
                return
        self.show_message(problem.text, kind="error")

    def _on_action_clicked(self) -> None:
        """Do what the button of the message stands for."""
        if self.on_action is not None:
            self.on_action()

    def _install(self) -> None:
        """Install the missing packages, and offer to try again."""
        missing = installation.missing_packages()
        restart = installation.restart_needed(missing)
        try:
            installed = installation.install(missing)
        except HiEndMAEError as error:
            self.show_error(error)
            return
        except Exception as error:  # pip's wrappers raise exceptions of many kinds
            self.show_message(_("The packages could not be installed: {reason}").format(reason=error), kind="error")
            return
        if installed:
            message = _("The packages are installed.") + " " + restart_message(restart)
            self.show_message(message, kind="success", action="" if restart else "retry", on_action=self._try_again)

    def _use_processor(self) -> None:
        """Switch to the CPU, and try again."""
        self.session.parameters.device = "cpu"
        if self._try_again is not None:
            self._try_again()

    def open_log(self) -> None:
        """Open the whole log in the system's text viewer."""
        if self._log is not None:
            qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(self._log)))


# -- texts -----------------------------------------------------------------------------------------------------------


def restart_message(needed: bool) -> str:
    """Return the sentence on whether Slicer has to be restarted after an installation."""
    if needed:
        return _("Restart Slicer before you go on: it still uses the versions that were there before.")
    return _("Slicer need not be restarted.")


def stage_title(stage: str, scan: str = "") -> str:
    """Return the title of a stage of the engine; `scan` is the name of the scan that is segmented, if one is."""
    titles = {
        "reading": _("Reading"),
        "learning": _("Training"),
        "registration": _("Registering the labelled scan to {scan}").format(scan=scan),
        "segmenting": _("Segmenting"),
        "checking": _("Checking"),
        "gathering": _("Gathering"),
        "installing": _("Installing"),
        "self-check": _("Checking"),
    }
    return titles.get(stage, stage.capitalize())


def time_left_text(event: dict[str, Any]) -> str:
    """Return "3 min left", or "" if the event gives no time."""
    seconds = event.get("seconds_left")
    if not isinstance(seconds, int | float):
        return ""
    if seconds >= 90:
        return _("{minutes} min left").format(minutes=round(seconds / 60))
    return _("{seconds} s left").format(seconds=max(1, round(seconds)))


# -- widgets ---------------------------------------------------------------------------------------------------------


def load_ui(name: str) -> tuple[Any, Any]:
    """Return the widget of `Resources/UI/<name>.ui` and its named children."""
    widget = slicer.util.loadUI(str(MODULE_FOLDER / "Resources" / "UI" / f"{name}.ui"))
    return widget, slicer.util.childWidgetVariables(widget)


def make_bold(button: Any) -> None:
    """Set a panel's main button in bold type."""
    font = button.font
    font.setBold(True)
    button.setFont(font)


def make_gray(label: Any) -> None:
    """Set an explanation in gray."""
    label.styleSheet = "color: gray"


def fit_height(view: Any, rows: int, *, most: int = 8) -> None:
    """Make a list or table as high as its rows, at least two and at most `most` of them."""
    is_table = hasattr(view, "horizontalHeader")
    header = view.horizontalHeader().height if is_table else 0
    row = (view.rowHeight(0) if is_table else view.sizeHintForRow(0)) if rows else 20
    view.setFixedHeight(header + row * min(most, max(2, rows)) + 6)
