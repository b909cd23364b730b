"""The offline kit: packages and weights in one folder, gathered where there is a network, installed where there is none.

    KIT/wheels/        what pip downloaded for this kind of computer
    KIT/weights/       models (.zip) and weights to start from
    KIT/SHA256SUMS     one line a file, as `sha256sum -c` reads it

Runs in a process of its own, as the engine's doors do: `python -m HiEndMAESegmentationLib.kit --config FILE`. Standard
library and pip alone: it has to work before anything is installed.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from HiEndMAECore.checkpoints import model_folder
from HiEndMAECore.configuration import DoorConfig, option
from HiEndMAECore.errors import InputError
from HiEndMAECore.reporting.front_door import open_door
from HiEndMAECore.reporting.reporter import Reporter

SUMS = "SHA256SUMS"


@dataclass(frozen=True, kw_only=True)
class KitConfig(DoorConfig):
    """What goes into the kit, or comes out of it."""

    folder: Path | None = option(help="The kit.", required=True)
    install: bool = option(False, help="Check the kit and install from it, instead of gathering it.")
    packages: tuple[str, ...] = option((), help="Requirements, as pip takes them.")
    pins: tuple[str, ...] = option((), help="Versions that pip has to leave as they are.")
    weights: tuple[Path, ...] = option((), help="Models and weights to put in.")
    place: Path | None = option(None, help="Where weights that are no models are copied on installing.")


def run(config: KitConfig, report: Reporter) -> dict[str, Any]:
    """Gather or install; returns the kit's folder. Raises `InputError`."""
    assert config.folder is not None
    (_install if config.install else _gather)(config, config.folder, report)
    return {"kit": config.folder}


def _gather(config: KitConfig, folder: Path, report: Reporter) -> None:
    if folder.is_dir() and any(folder.iterdir()) and not (folder / SUMS).is_file():
        told = f"The folder {folder} holds other files."
        raise InputError("kit_folder_taken", told, "Choose an empty folder, or make a new one.")
    stages = iter(report.steps("gathering", 3))
    next(stages)
    for name in ("wheels", "weights"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
    words = ["download", "--dest", str(folder / "wheels"), "--only-binary", ":all:"]
    if not _pip([*words, *config.packages], config.pins, report):
        told = "The packages could not be downloaded."
        raise InputError("kit_download_failed", told, "Is there a network? The log holds what pip said.")
    next(stages)
    for source in config.weights:
        if model_folder.is_model(source):
            model_folder.copy_model(source, folder / "weights" / f"{source.stem}.zip")
        else:
            shutil.copyfile(source, folder / "weights" / source.name)
    next(stages)
    files = sorted(file for name in ("wheels", "weights") for file in (folder / name).iterdir())
    lines = [f"{_sha256(file, report)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")
    next(stages, None)


def _install(config: KitConfig, folder: Path, report: Reporter) -> None:
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        told = f"The folder {folder} is no offline kit."
        raise InputError("kit_absent", told, f"Choose the folder that holds {SUMS}.") from error
    for step in report.steps("checking", len(lines)):
        wanted, _, name = lines[step].partition("  ")
        file = folder / name
        if not file.is_file() or _sha256(file, report) != wanted:
            raise InputError("kit_damaged", f"'{name}' of the kit is damaged or missing.", "Copy the kit again.")
    words = ["install", "--no-index", "--find-links", str(folder / "wheels")]
    for _step in report.steps("installing", 1):
        if config.packages and not _pip([*words, *config.packages], config.pins, report):
            told = "The packages of the kit do not fit this computer, or could not be written."
            advice = (
                "Gather the kit with the same version of Slicer on the same kind of system. The log holds the reason."
            )
            raise InputError("kit_does_not_fit", told, advice)
    others = [file for file in (folder / "weights").glob("*") if not model_folder.is_model(file)]
    for file in others if config.place else ():
        config.place.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, config.place / file.name)


def _pip(words: Sequence[str], pins: Iterable[str], report: Reporter) -> bool:
    """Run pip to its end, what it says going to the log; False where it fails. Ends it when the run is cancelled."""
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("".join(f"{pin}\n" for pin in pins), encoding="utf-8")
        line = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
        line += [*words, "--constraint", str(constraints)]
        with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL) as pip:
            assert pip.stdout is not None
            hears = threading.Thread(target=_pass_on, args=(pip.stdout,), daemon=True)
            hears.start()
            try:
                while hears.is_alive():
                    hears.join(0.2)
                    report.check()
            except BaseException:
                pip.kill()
                raise
        return pip.returncode == 0


def _pass_on(stream: Iterable[bytes]) -> None:
    for line in stream:
        sys.stderr.write(line.decode("utf-8", "replace"))


def _sha256(file: Path, report: Reporter) -> str:
    found = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            found.update(block)
            report.check()
    return found.hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return open_door(KitConfig, run, argv, door="kit", description=__doc__ or "")


if __name__ == "__main__":
    raise SystemExit(main())
