"""What the four panels share: their .ui file, the session, and the strip that shows a job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import qt
import slicer
import slicer.util
from slicer.i18n import tr as _

from HiEndMAECore.configuration import DoorConfig
from HiEndMAECore.errors import HiEndMAEError
from HiEndMAESegmentationLib.engine import installation
from HiEndMAESegmentationLib.engine.jobs import Job, JobEnd, code_of
from HiEndMAESegmentationLib.engine.model_library import Library
from HiEndMAESegmentationLib.scene import nodes as scene

from .error_actions import advise, button_of

RESOURCES = Path(__file__).resolve().parents[2] / "Resources"
_COLOURS = {"good": "#2e7d32", "bad": "#b3261e", "plain": ""}


def load(name: str) -> tuple[Any, Any]:
    """(widget, its named children) of `Resources/UI/<name>.ui`."""
    widget = slicer.util.loadUI(str(RESOURCES / "UI" / f"{name}.ui"))
    return widget, slicer.util.childWidgetVariables(widget)


class Session:
    """What lasts beyond one panel: the parameters, the library, the one running job, and who wants to hear of changes."""

    def __init__(self) -> None:
        self.parameters: Any = None
        self.library = Library(Path(slicer.app.slicerUserSettingsFilePath).parent / "HiEndMAE" / "models")
        self.job: Job | None = None
        self.on_models_changed: list[Callable[[], None]] = []
        self.on_job_changed: list[Callable[[], None]] = []
        self.on_close: list[Callable[[], None]] = []

    @property
    def busy(self) -> bool:
        return self.job is not None and self.job.running

    def models_changed(self) -> None:
        for listener in self.on_models_changed:
            listener()

    def job_changed(self) -> None:
        for listener in self.on_job_changed:
            listener()

    def close(self) -> None:
        """Slicer or the module ends: no process and no file of a patient stays behind."""
        if self.job is not None and self.busy:
            self.job.kill()
        self.job = None
        for listener in self.on_close:
            listener()


class JobStrip:
    """Progress bar, time left, Use now, Cancel, a message with at most one button, and the log."""

    def __init__(
        self,
        session: Session,
        layout: Any,
        *,
        can_finish: bool,
        remedy: Callable[[str], Callable[[], None] | None] = lambda _action: None,
    ) -> None:
        """remedy: what the panel can do for an action of `advice`, or None where it can do nothing (more)."""
        self.session, self._remedy = session, remedy
        self.widget, self.ui = load("Progress")
        layout.addWidget(self.widget)
        self._can_finish = can_finish
        self.action, self.act = "", None
        self._log: Path | None = None
        self._again: Callable[[], None] | None = None
        self._warned: list[str] = []
        self.ui.finishButton.connect("clicked()", self.finish)
        self.ui.cancelButton.connect("clicked()", self.cancel)
        self.ui.actionButton.connect("clicked()", self._on_action)
        self.ui.logButton.connect("clicked()", self.open_log)
        self.ui.curveButton.connect("clicked()", scene.show_chart)
        self.job: Job | None = None
        self.say("")
        self._show_running(False)

    # -- running ---------------------------------------------------------------------------------------------------

    def run(
        self,
        door: str,
        config: DoorConfig,
        *,
        on_end: Callable[[JobEnd], None],
        again: Callable[[], None],
        on_event: Callable[[dict[str, Any]], None] | None = None,
    ) -> bool:
        """Start a job and show it; False, with a sentence, while another one runs.

        again: what the button of an error message does once its cause is out of the way.
        """
        if self.session.busy:
            self.say(_("Another job is running. Wait for it, or cancel it first."), mood="bad")
            return False
        self._again = again
        self._warned = []

        def heard(event: dict[str, Any]) -> None:
            self._show(event)
            if on_event is not None:
                on_event(event)

        def ended(end: JobEnd) -> None:
            self._show_running(False)
            self.session.job_changed()
            if end.state != "finished":
                self.show_end(end)
            on_end(end)

        device = self.session.parameters.device if self.session.parameters else "auto"
        self.job = self.session.job = Job(door, replace(config, device=device), on_event=heard, on_end=ended)
        self._log = self.job.log
        self.say("")
        self.ui.progressBar.setRange(0, 0)
        self.ui.progressLabel.text = _("Starting…")
        self._show_running(True)
        self.job.start()
        self.session.job_changed()
        return True

    def finish(self) -> None:
        """Use now."""
        if self.job is not None:
            self.job.finish()
            self.ui.finishButton.enabled = False
            self.ui.progressLabel.text = _("Finishing…")

    def cancel(self) -> None:
        """Cancel."""
        if self.job is not None:
            self.job.cancel()
            self.ui.cancelButton.enabled = False
            self.ui.progressLabel.text = _("Cancelling…")

    def _show_running(self, running: bool) -> None:
        for widget in (self.ui.progressBar, self.ui.progressLabel, self.ui.cancelButton):
            widget.setVisible(running)
        for button in (self.ui.finishButton, self.ui.curveButton):
            button.setVisible(running and self._can_finish)
        self.ui.finishButton.enabled = self.ui.cancelButton.enabled = True

    def _show(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "progress" and self.ui.cancelButton.enabled and self.ui.finishButton.enabled:
            self.ui.progressBar.setRange(0, max(1, event["total"]))
            self.ui.progressBar.setValue(event["step"])
            self.ui.progressLabel.text = " · ".join(filter(None, (stage_name(event["stage"]), left(event))))
        elif kind == "warning":
            self._warned += filter(None, [advise(event["code"], event["message"], event["advice"]).text])

    # -- speaking --------------------------------------------------------------------------------------------------

    @property
    def warnings(self) -> list[str]:
        """What the job warned of, in sentences."""
        return list(self._warned)

    def say(self, text: str, *, mood: str = "plain", action: str = "", act: Callable[[], None] | None = None) -> None:
        """Show a sentence, and a button labelled for `action` that calls `act`."""
        colour = _COLOURS[mood]
        self.ui.messageLabel.styleSheet = f"color: {colour}" if colour else ""
        self.ui.messageLabel.text = text
        self.ui.messageLabel.setVisible(bool(text))
        self.ui.actionButton.text = button_of(action)
        self.ui.actionButton.setVisible(bool(action))
        self.ui.logButton.setVisible(bool(text) and self._log is not None)
        self.action, self.act = action, act

    def show_end(self, end: JobEnd) -> None:
        """A job that did not finish, in words."""
        if end.state == "cancelled":
            self.say(end.message)
        else:
            self.show_problem(end.code, end.message, end.advice)

    def show_error(self, error: HiEndMAEError) -> None:
        """An error of our own."""
        self._log = None
        self.show_problem(error.code, error.message, error.advice)

    def show_problem(self, code: str, message: str, advice: str) -> None:
        """Sentence and button for an error code."""
        told = advise(code, message, advice)
        on_processor = self.session.parameters is not None and self.session.parameters.device == "cpu"
        own = {"install": self._install, "cpu": None if on_processor else self._on_the_processor, "retry": self._again}
        for action in told.actions:
            act = own[action] if action in own else self._remedy(action)
            if act is not None:
                self.say(told.text, mood="bad", action=action, act=act)
                return
        self.say(told.text, mood="bad")

    def _on_action(self) -> None:
        if self.act is not None:
            self.act()

    def _install(self) -> None:
        lacking = installation.missing()
        restart = installation.restart_wanted(lacking)
        try:
            done = installation.install(lacking)
        except HiEndMAEError as error:
            self.show_error(error)
            return
        except Exception as error:  # pip's wrappers raise what they like; the user gets it in a sentence
            self.say(_("The packages could not be installed: {reason}").format(reason=error), mood="bad")
            return
        if done:
            told = _("The packages are installed.") + " " + restart_told(restart)
            self.say(told, mood="good", action="" if restart else "retry", act=self._again)

    def _on_the_processor(self) -> None:
        self.session.parameters.device = "cpu"
        if self._again is not None:
            self._again()

    def open_log(self) -> None:
        """Show the whole log in the system's text viewer."""
        if self._log is not None:
            qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(self._log)))


def typed(error: Exception) -> HiEndMAEError:
    """The error itself, or what the system says of a file in a sentence."""
    if isinstance(error, HiEndMAEError):
        return error
    told = _("The files could not be written or read ({reason}).")
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return HiEndMAEError(code_of(error), told.format(reason=reason))


def restart_told(wanted: bool) -> str:
    """Whether Slicer has to be restarted after an installation."""
    if wanted:
        return _("Restart Slicer before you go on: it still uses the versions that were there before.")
    return _("Slicer need not be restarted.")


def stage_name(stage: str) -> str:
    """What the engine is at."""
    known = {
        "reading": _("Reading"),
        "learning": _("Learning"),
        "segmenting": _("Segmenting"),
        "checking": _("Checking"),
        "gathering": _("Gathering"),
        "installing": _("Installing"),
        "self-check": _("Checking"),
    }
    return known.get(stage, stage.capitalize())


def left(event: dict[str, Any]) -> str:
    """'3 min left', where that can be told."""
    seconds = event.get("seconds_left")
    if not isinstance(seconds, int | float):
        return ""
    if seconds >= 90:
        return _("{minutes} min left").format(minutes=round(seconds / 60))
    return _("{seconds} s left").format(seconds=max(1, round(seconds)))


def strong(button: Any) -> None:
    """The one button of a panel that does its work."""
    font = button.font
    font.setBold(True)
    button.setFont(font)


def dimmed(label: Any) -> None:
    """A line that explains, and does not shout."""
    label.styleSheet = "color: gray"


def fit_height(view: Any, rows: int, *, most: int = 8) -> None:
    """As high as its rows, between two and `most` of them: empty paper tells nothing."""
    table = hasattr(view, "horizontalHeader")
    header = view.horizontalHeader().height if table else 0
    row = (view.rowHeight(0) if table else view.sizeHintForRow(0)) if rows else 20
    view.setFixedHeight(header + row * min(most, max(2, rows)) + 6)
