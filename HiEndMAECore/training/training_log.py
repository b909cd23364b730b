"""`log.jsonl`, the training log: one JSON line for each step, and TensorBoard's files beside it on request.

The line of a step holds step, loss, learning_rate, crops_per_second, and waited (the fraction of the step that was spent
waiting for crops). Other lines hold `watch_loss`, the loss on the fixed validation crops, and, once at the start,
`zero_loss` and `nearest_loss`, the losses of two trivial predictors on those crops. All keys are stored names.
"""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from HiEndMAECore.errors import MissingDependencyError
from HiEndMAECore.io.atomic import write_text

LOG = "log.jsonl"


class StepRecord(NamedTuple):
    """What is logged of one step; the field names are the keys in the file."""

    step: int
    loss: float
    learning_rate: float
    crops_per_second: float
    waited: float


def read_log(folder: Path, *, until: int | None = None) -> list[dict[str, Any]]:
    """Return the lines of the log in `folder`; an incomplete last line is skipped.

    Args:
        folder: Run directory.
        until: Last step whose lines are returned; None returns all.
    """
    lines: list[dict[str, Any]] = []
    with contextlib.suppress(FileNotFoundError):
        for text in (folder / LOG).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(text))
    return [line for line in lines if until is None or line["step"] <= until]


def step_records(lines: list[dict[str, Any]]) -> list[StepRecord]:
    """Return the records of the steps among the lines of a log."""
    return [StepRecord(*(line[name] for name in StepRecord._fields)) for line in lines if "loss" in line]


class TrainingLog:
    """Writer of the log of a run.

    Args:
        folder: Run directory.
        first: Steps that are done. Lines that an interrupted run wrote for later steps are removed.
        tensorboard: True also writes TensorBoard's files.

    Attributes:
        lines: The lines of a resumed run at first, later the lines that hold no step.

    Raises:
        MissingDependencyError: TensorBoard is requested and not installed.
    """

    def __init__(self, folder: Path, *, first: int = 0, tensorboard: bool = False) -> None:
        self.lines = read_log(folder, until=first) if first else []
        write_text(folder / LOG, "".join(json.dumps(line) + "\n" for line in self.lines))
        self._file: TextIO = (folder / LOG).open("a", encoding="utf-8")
        self._tensorboard = _tensorboard_writer(folder, first) if tensorboard else None

    def step(self, record: StepRecord) -> None:
        """Add the line of one step."""
        self.write(**record._asdict())

    def write(self, *, step: int, **values: float) -> None:
        """Add a line; values that are not finite become null."""
        line = {"step": step, **{name: value if math.isfinite(value) else None for name, value in values.items()}}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if "loss" not in values:
            self.lines.append(line)
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def _tensorboard_writer(folder: Path, first: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependencyError.of("tensorboard", "to write TensorBoard's files") from error
    return SummaryWriter(str(folder / "tensorboard"), purge_step=first + 1 if first else None)
