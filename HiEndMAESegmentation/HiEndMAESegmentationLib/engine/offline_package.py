"""Make an offline package where there is a network, and install from it where there is none.

    FOLDER/wheels/        Python packages that pip downloaded for this kind of computer
    FOLDER/weights/       models (.zip) and weights to start from
    FOLDER/SHA256SUMS     one line a file, in the format of `sha256sum -c`

Runs in a child process, as the engine's commands do: `python -m HiEndMAESegmentationLib.engine.offline_package --config FILE`.
Needs the standard library and pip alone, because it has to work before anything is installed.
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

from HiEndMAECore.cli.options import CommandConfig, option
from HiEndMAECore.cli.runner import run_command
from HiEndMAECore.errors import InputError
from HiEndMAECore.models import folder as model_folder
from HiEndMAECore.reporting.reporter import Reporter

CHECKSUMS = "SHA256SUMS"


@dataclass(frozen=True, kw_only=True)
class OfflinePackageConfig(CommandConfig):
    """The content of an offline package, or what to install from it."""

    folder: Path | None = option(help="Folder of the offline package.", required=True)
    install: bool = option(False, help="Check the offline package and install from it, instead of making it.")
    packages: tuple[str, ...] = option((), help="Requirements in pip's syntax.")
    pins: tuple[str, ...] = option((), help="Versions that pip must not change.")
    weights: tuple[Path, ...] = option((), help="Models and weights to include.")
    weights_folder: Path | None = option(None, help="Folder for weights that are no models, when installing.")


def run(config: OfflinePackageConfig, report: Reporter) -> dict[str, Any]:
    """Make an offline package or install from it; return its folder.

    Raises:
        InputError: The folder holds other files, is no offline package or is damaged, or pip fails.
    """
    assert config.folder is not None
    (_install if config.install else _make)(config, config.folder, report)
    return {"offline_package": config.folder}


def _make(config: OfflinePackageConfig, folder: Path, report: Reporter) -> None:
    """Download the packages, copy the weights and write the checksums."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CHECKSUMS).is_file():
        message = f"The folder {folder} holds other files."
        raise InputError("kit_folder_taken", message, "Choose an empty folder, or make a new one.")
    stages = iter(report.steps("gathering", 3))
    next(stages)
    for name in ("wheels", "weights"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
    arguments = ["download", "--dest", str(folder / "wheels"), "--only-binary", ":all:"]
    if not _run_pip([*arguments, *config.packages], config.pins, report):
        message = "The packages could not be downloaded."
        raise InputError("kit_download_failed", message, "Is there a network? The log holds pip's messages.")
    next(stages)
    for source in config.weights:
        if model_folder.is_model(source):
            model_folder.copy_model(source, folder / "weights" / f"{source.stem}.zip")
        else:
            shutil.copyfile(source, folder / "weights" / source.name)
    next(stages)
    files = sorted(file for name in ("wheels", "weights") for file in (folder / name).iterdir())
    lines = [f"{_sha256(file, report)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")
    next(stages, None)


def _install(config: OfflinePackageConfig, folder: Path, report: Reporter) -> None:
    """Check every file against its checksum, install the packages and copy the weights."""
    _check(folder, report)
    arguments = ["install", "--no-index", "--find-links", str(folder / "wheels")]
    for _step in report.steps("installing", 1):
        if config.packages and not _run_pip([*arguments, *config.packages], config.pins, report):
            message = "The packages of the offline package do not fit this computer, or could not be written."
            advice = (
                "Make the offline package with the same version of Slicer on the same kind of system. "
                "The log holds the reason."
            )
            raise InputError("kit_does_not_fit", message, advice)
    others = [file for file in (folder / "weights").glob("*") if not model_folder.is_model(file)]
    for file in others if config.weights_folder else ():
        config.weights_folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, config.weights_folder / file.name)


def _check(folder: Path, report: Reporter) -> None:
    """Raise `InputError` unless the folder is an offline package with all of its files intact."""
    try:
        lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        message = f"The folder {folder} is no offline package."
        raise InputError("kit_absent", message, f"Choose the folder that holds {CHECKSUMS}.") from error
    for step in report.steps("checking", len(lines)):
        expected, _, name = lines[step].partition("  ")
        file = folder / name
        if not file.is_file() or _sha256(file, report) != expected:
            message = f"'{name}' of the offline package is damaged or missing."
            raise InputError("kit_damaged", message, "Copy the offline package again.")


def _run_pip(arguments: Sequence[str], pins: Iterable[str], report: Reporter) -> bool:
    """Run pip with its output going to the log; return whether it succeeded. It is ended if the run is cancelled."""
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("".join(f"{pin}\n" for pin in pins), encoding="utf-8")
        line = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
        line += [*arguments, "--constraint", str(constraints)]
        with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL) as pip:
            assert pip.stdout is not None
            reader = threading.Thread(target=_copy_to_stderr, args=(pip.stdout,), daemon=True)
            reader.start()
            try:
                while reader.is_alive():
                    reader.join(0.2)
                    report.check()
            except BaseException:
                pip.kill()
                raise
        return pip.returncode == 0


def _copy_to_stderr(stream: Iterable[bytes]) -> None:
    """Write every line to standard error, which the module stores in the log."""
    for line in stream:
        sys.stderr.write(line.decode("utf-8", "replace"))


def _sha256(file: Path, report: Reporter) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
            report.check()
    return digest.hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return run_command(OfflinePackageConfig, run, argv, command="offline-package", description=__doc__ or "")


if __name__ == "__main__":
    raise SystemExit(main())
