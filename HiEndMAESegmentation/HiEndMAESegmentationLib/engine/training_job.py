"""Run `finetune` for a panel, and manage the run's files on the disk.

A run that failed (the memory or the disk was full, a virus scanner blocked a file) keeps its scans and its training
checkpoint, so that "Try again" continues it. They are removed when the run is done, cancelled or given up, and when Slicer
closes.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import slicer

from HiEndMAECore.finetune import FinetuneConfig

from .jobs import JobEnd, as_typed_error

if TYPE_CHECKING:
    from HiEndMAESegmentationLib.panels.base import JobStrip
    from HiEndMAESegmentationLib.panels.training_preview import TrainingPreview

# Names that the engine gives to the files of a run; a run that an earlier version started has them too.
_TRAINING_SUFFIX = ".training"
_CHECKPOINT_PATTERN = "snapshot*"


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a new folder that only this user can read; it is removed if the body raises."""
    folder = Path(tempfile.mkdtemp(prefix="HiEndMAE-", dir=slicer.app.temporaryPath))
    try:
        yield folder
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def memory_needed(scan_megabytes: float) -> float:
    """Return the memory in GB that training on a scan takes, rounded up to half a GB.

    It is that of torch and the network, plus that of copies of the scan.
    """
    return -(-(1.5 + 6 * scan_megabytes / 1000) // 0.5) * 0.5


class TrainingJob:
    """A fine-tuning run that can be continued after a failure.

    The folder of the new model is made at once, so that no import takes its name meanwhile.

    Args:
        strip: The strip that runs the job and shows its progress.
        config: Options of `finetune`; they name the files in `folder` and the model to write.
        folder: Folder with the scans and label maps.
        preview: Shows the run's curves and previews.
        on_finished: Called when the model is written.
        restart: Called by "Try again" if there is no checkpoint to continue from.
    """

    def __init__(
        self,
        strip: JobStrip,
        config: FinetuneConfig,
        *,
        folder: Path,
        preview: TrainingPreview,
        on_finished: Callable[[], None],
        restart: Callable[[], None],
    ) -> None:
        assert config.output is not None
        self._strip, self._config, self._folder, self._preview = strip, config, folder, preview
        self._on_finished, self._restart = on_finished, restart
        self._model = config.output
        self._run_folder = config.output.with_name(config.output.name + _TRAINING_SUFFIX)

    def run(self, *, resume: bool = False) -> None:
        """Start the run, or continue it from its training checkpoint."""
        device = self._strip.session.parameters.device

        def on_end(end: JobEnd) -> None:
            self._preview.remove()
            if end.state not in ("failed", "killed"):
                self.remove_files()
            if end.state == "finished":
                self._on_finished()

        def try_again() -> None:
            same_device = self._strip.session.parameters.device == device  # another device trains another network
            if same_device and any(self._run_folder.glob(_CHECKPOINT_PATTERN)):
                self.run(resume=True)
            else:
                self._restart()

        try:
            self._model.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self.remove_files()
            self._strip.show_error(as_typed_error(error))
            return
        config = replace(self._config, resume=resume)
        on_event = self._preview.handle_event
        if not self._strip.run("finetune", config, on_end=on_end, on_event=on_event, try_again=try_again):
            self.remove_files()

    def remove_files(self) -> None:
        """Remove the run's files and its preview; a finished model stays."""
        self._preview.remove()
        for folder in (self._folder, self._run_folder):
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # the folder is not empty: the model is in it
            self._model.rmdir()
