"""The queue of scans to segment. Each scan has its own process, so that a crash does not affect the other scans."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from HiEndMAECore.errors import HiEndMAEError
from HiEndMAECore.segment import SegmentConfig
from HiEndMAESegmentationLib.engine import inputs
from HiEndMAESegmentationLib.engine.jobs import JobEnd, as_typed_error
from HiEndMAESegmentationLib.engine.model_library import Model
from HiEndMAESegmentationLib.scene import export, previews, results, tables
from HiEndMAESegmentationLib.scene.nodes import existing_nodes
from HiEndMAESegmentationLib.scene.provenance import MODEL_ATTRIBUTE

from .base import JobStrip, Session
from .error_actions import actions_for
from .review import ReviewList

# Errors that every other scan would meet as well
_COMMON_ERRORS = (
    "dependency_missing",
    "python_absent",
    "not_started",
    "files_failed",
    "disk_full",
    "device_absent",
    "out_of_memory",
)
_FILE_STEM = "scan"  # name of every scan on the disk, because names of nodes may be those of patients


@dataclass
class Case:
    """A scan in the queue: a volume of the scene, or an input (see `engine.inputs`) that becomes one at its turn.

    `state` is "waiting", "running", "done", "failed" or "skipped", and `message` gives the reason in a sentence. `attempts`
    is 0 for a scan that failed without its own turn, because an earlier scan met an error that concerns all.
    """

    volume: Any = None
    source: str = ""
    state: str = "waiting"
    message: str = ""
    attempts: int = 0

    @property
    def key(self) -> str:
        """Return the case's key in the list of scans: the volume's ID, or the input."""
        return self.volume.GetID() if self.volume is not None else self.source

    @property
    def name(self) -> str:
        """Return the name of the volume or of the input."""
        return self.volume.GetName() if self.volume is not None else inputs.name_of(self.source)

    def fail(self, message: str) -> None:
        """Set the state to "failed", with the reason."""
        self.state, self.message = "failed", message


class ApplyQueue:
    """Segments the cases one after the other.

    Args:
        session: The session, whose parameters choose the model and the options.
        strip: Runs the jobs and shows messages.
        review_list: Receives the slices to review.
        on_change: Called when the state of a case has changed.
    """

    def __init__(
        self, session: Session, strip: JobStrip, review_list: ReviewList, *, on_change: Callable[[], None]
    ) -> None:
        self._session, self._strip, self._review_list, self._on_change = session, strip, review_list, on_change
        self.cases: list[Case] = []
        self.results: list[Any] = []  # segmentation nodes
        self.spacing: float | None = None  # working grid in mm, instead of the model's
        self.as_preview = False  # results are quick previews: by registration alone, without the network
        self._stopped = False
        self._folder: Path | None = None  # files of the running case

    @property
    def running(self) -> bool:
        """Return whether a scan is being segmented."""
        return any(case.state == "running" for case in self.cases)

    def has_failures(self) -> bool:
        """Return whether any case failed."""
        return any(case.state == "failed" for case in self.cases)

    def failed_volumes(self) -> list[Any]:
        """Return the volumes that failed at their own turn."""
        return existing_nodes([case.volume for case in self.cases if case.state == "failed" and case.attempts])

    # -- control -------------------------------------------------------------------------------------------------------

    def start(self, cases: list[Case], *, previous_results: Sequence[Any] = ()) -> None:
        """Segment the waiting ones of `cases`; while another job runs or the model is gone, show a message instead."""
        if self._session.busy:
            self._strip.show_message(_("Another job is running. Wait for it, or cancel it first."), kind="error")
            return
        model = self._session.library.find(self._session.parameters.model)
        if model is None:
            message = _("The model is no longer on this computer. Choose another one.")
            self._strip.show_message(message, kind="error")
            return
        self._strip.show_message("")  # removes the message of an earlier queue
        self.cases, self._stopped, self.results = cases, False, existing_nodes(previous_results)
        self._run_next(model)

    def retry(self) -> None:
        """Segment the failed cases again; the others stay in the queue."""
        cases = [Case(case.volume, case.source) if case.state == "failed" else case for case in self.cases]
        self.start(cases, previous_results=self.results)

    def skip(self) -> None:
        """Cancel the running scan, and go on with the next one."""
        for case in self.cases:
            if case.state == "running":
                case.state = "skipped"
                self._strip.cancel()

    def stop(self) -> None:
        """Cancel the running scan and all that wait."""
        self._stopped = True
        self._strip.cancel()

    def forget(self) -> None:
        """Stop, and drop cases and results: the scene is closing, and their node IDs will be those of other nodes."""
        if self.running:
            self.stop()
        self.cases, self.results = [], []
        self._review_list.clear()

    def remove_files(self) -> None:
        """Remove the files of the running case."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    # -- one case after the other --------------------------------------------------------------------------------------

    def _run_next(self, model: Model) -> None:
        """Start the job of the next waiting case, or summarize if there is none."""
        case = next((case for case in self.cases if case.state == "waiting"), None)
        if case is None or self._stopped:
            self._summarize(model)
            return
        case.attempts += 1
        if case.volume is not None and not slicer.mrmlScene.IsNodePresent(case.volume):
            case.fail(_("The scan was removed from the scene."))
            self._run_next(model)
            return
        try:
            scan = self._write_files(case)
        except Exception as error:  # Slicer's DICOM plugins raise exceptions of many kinds
            if not isinstance(error, HiEndMAEError):
                logging.exception("HiEndMAE: a scan could not be prepared")
            problem = as_typed_error(error)
            self.remove_files()
            case.fail(actions_for(problem.code, problem.message, problem.advice).text)
            self._run_next(model)
            return
        self._run_job(case, model, scan)

    def _write_files(self, case: Case) -> Path:
        """Load the case if it is not in the scene yet, write its scan and return the file."""
        self._folder = Path(tempfile.mkdtemp(prefix="HiEndMAE-", dir=slicer.app.temporaryPath))
        if case.volume is None:
            self._load(case)
        scan = self._folder / f"{_FILE_STEM}.nii"
        export.write_scan(case.volume, scan)
        return scan

    def _load(self, case: Case) -> None:
        """Load an input as a volume, and list it as a scan of the scene from then on."""
        case.volume = inputs.load_input(case.source)
        parameters = self._session.parameters
        parameters.offered = [source for source in parameters.offered if source != case.source]
        parameters.sources = [source for source in parameters.sources if source != case.source]
        parameters.targets = [*existing_nodes(parameters.targets), case.volume]

    def _run_job(self, case: Case, model: Model, scan: Path) -> None:
        """Start the engine on a written scan."""
        result = scan.with_name("result.nii")
        config = SegmentConfig(
            model=model.path,
            input=(str(scan),),
            output=result,
            clean=self._session.parameters.keepLargest,
            uncertainty=self._session.parameters.uncertainty and not self.as_preview,
            spacing=(self.spacing,) * 3 if self.spacing else None,
            method="registration" if self.as_preview else "auto",
        )

        def on_end(end: JobEnd) -> None:
            try:
                self._handle_end(case, end, model, result)
            except Exception as error:  # whatever happens, the queue must go on and show a message
                logging.exception("HiEndMAE: a result could not be shown")
                message = _("The result could not be shown ({reason}).")
                case.fail(message.format(reason=str(error) or type(error).__name__))
            self.remove_files()
            self._run_next(model)

        case.state = "running"
        if not self._strip.run("segment", config, on_end=on_end, try_again=self.retry, scan=case.name):
            case.state = "failed"
        self._on_change()

    def _handle_end(self, case: Case, end: JobEnd, model: Model, result: Path) -> None:
        """Set the state of a case whose job has ended, and show its result."""
        if case.state == "skipped" or end.state == "cancelled":
            case.state = "skipped"
        elif end.state != "finished":
            case.fail(actions_for(end.code, end.message, end.advice).text)
            if end.code in _COMMON_ERRORS or end.code.startswith("model_"):
                for other in self.cases:  # they would meet the same error; "Try again" segments them as well
                    if other.state == "waiting":
                        other.fail(case.message)
        elif not slicer.mrmlScene.IsNodePresent(case.volume):
            case.fail(_("The scan was removed from the scene."))
        else:
            self._show_result(case, model, result)

    def _show_result(self, case: Case, model: Model, result: Path) -> None:
        """Show segmentation, volumes and slices to review of a finished case; of a quick preview the segmentation alone."""
        report = json.loads(result.with_suffix(".json").read_text(encoding="utf-8"))
        volume, surfaces = case.volume, self._session.parameters.show3D
        name = f"{volume.GetName()} - {model.name}"
        if self.as_preview:
            name = _("{name} (quick preview)").format(name=name)
        previews.remove_previews(volume, model.key, keep=[self._session.parameters.corrected])
        try:
            node = results.show_result(result, volume, labels=model.description.labels, name=name, surfaces=surfaces)
        except HiEndMAEError as error:
            case.fail(str(error))
            return
        node.SetAttribute(MODEL_ATTRIBUTE, model.key)
        if self.as_preview:
            previews.mark_as_preview(node)
        else:
            tables.update_volumes_table(volume, model.name, report["structures"])
            self._review_list.replace(volume, result.with_name("result_entropy.nii"), report["review_slices"])
        case.state = "done"  # the engine's warnings start with the neutral name of the file
        case.message = " ".join(text.removeprefix(f"{_FILE_STEM}: ") for text in self._strip.warnings)
        self.results.append(node)

    def _summarize(self, model: Model) -> None:
        """Skip the cases that still wait, and show one message about all."""
        for case in self.cases:
            if case.state == "waiting":
                case.state = "skipped"
        done = [case for case in self.cases if case.state == "done"]
        failed = [case for case in self.cases if case.state == "failed"]
        if failed and len(self.cases) > 1:
            message = _("{done} of {all} scans were segmented. '{name}' was not: {reason}").format(
                done=len(done), all=len(self.cases), name=failed[0].name, reason=failed[0].message
            )
            self._strip.show_message(message, kind="error", action=self._strip.action, on_action=self._strip.on_action)
        elif failed and not self._strip.ui.messageLabel.text:
            self._strip.show_message(failed[0].message, kind="error")
        elif done:
            message = _done_message(len(done), as_preview=self.as_preview)
            warnings = [f"{case.name}: {case.message}" for case in done if case.message]
            text = "\n".join([message.format(count=len(done), name=model.name), *warnings])
            self._strip.show_message(text, kind="info" if warnings else "success")
        if existing_nodes(self.results) and not self.as_preview:  # a preview will be replaced
            self._session.parameters.corrected = existing_nodes(self.results)[-1]
        self._on_change()


def _done_message(count: int, *, as_preview: bool) -> str:
    """Return the sentences on a queue that is done, with places for `{count}` and the model's `{name}`."""
    if as_preview and count == 1:
        return _("Made a quick preview of 1 scan with '{name}', without the network. 'Segment' replaces it.")
    if as_preview:
        return _("Made quick previews of {count} scans with '{name}', without the network. 'Segment' replaces them.")
    if count == 1:
        return _("Segmented 1 scan with '{name}'. Look at the result before using it.")
    return _("Segmented {count} scans with '{name}'. Look at each result before using it.")
