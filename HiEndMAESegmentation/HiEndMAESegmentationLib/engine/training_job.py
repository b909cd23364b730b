"""A run of `finetune` for a panel, and its files on the disk.

A run that failed (no memory left for the self-check, a full disk, a virus scanner in the way) keeps its scans and its
snapshot, so that "Try again" goes on where it was. They go when it is done, cancelled or given up, and when Slicer closes.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import slicer

from HiEndMAECore.finetune import FinetuneConfig
from HiEndMAESegmentationLib.panels.base import JobStrip, typed
from HiEndMAESegmentationLib.panels.training_preview import Watching

from .jobs import JobEnd


@contextlib.contextmanager
def fresh_folder() -> Iterator[Path]:
    """A folder for scans, which nobody else can read; it goes where what is done with it raises."""
    folder = Path(tempfile.mkdtemp(prefix="HiEndMAE-", dir=slicer.app.temporaryPath))
    try:
        yield folder
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)
        raise


class Learning:
    """config names the files in `folder`, and the model to write, whose place is taken at once: no import gets it meanwhile.

    learned: what to do when the model is there. anew: what "Try again" does where there is nothing to go on from.
    """

    def __init__(
        self,
        strip: JobStrip,
        config: FinetuneConfig,
        *,
        folder: Path,
        watching: Watching,
        learned: Callable[[], None],
        anew: Callable[[], None],
    ) -> None:
        assert config.output is not None
        self._strip, self._config, self._folder, self._watching = strip, config, folder, watching
        self._learned, self._anew = learned, anew
        self._model = config.output
        self._training = config.output.with_name(config.output.name + ".training")

    def run(self, *, resume: bool = False) -> None:
        """Start, or go on from the snapshot."""
        device = self._strip.session.parameters.device

        def ended(end: JobEnd) -> None:
            self._watching.end()
            if end.state not in ("failed", "killed"):
                self.clear()
            if end.state == "finished":
                self._learned()

        def again() -> None:
            on_the_same = self._strip.session.parameters.device == device  # another one learns another network
            if on_the_same and any(self._training.glob("snapshot*")):
                self.run(resume=True)
            else:
                self._anew()

        try:
            self._model.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self.clear()
            self._strip.show_error(typed(error))
            return
        config = replace(self._config, resume=resume)
        if not self._strip.run("finetune", config, on_end=ended, on_event=self._watching.hear, again=again):
            self.clear()

    def clear(self) -> None:
        """Remove the files and the preview; the model stays."""
        self._watching.end()
        for folder in (self._folder, self._training):
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty: the model is there
            self._model.rmdir()
