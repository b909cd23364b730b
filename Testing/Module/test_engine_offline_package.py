"""Offline packages by their buttons, with the real pip; a folder of wheels takes the place of a network."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from module_help import wait

pytestmark = pytest.mark.usefixtures("app")

PACKAGES = ("torch>=2.2,!=2.9.*", "monai>=1.3")


def wheel(folder: Path, name: str, version: str) -> None:
    """Write an empty Python package as a wheel."""
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}_from_package.py", f"version = {version!r}\n")
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{about}/RECORD", "")


@pytest.fixture
def press(module: Any, shared_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return `press(button, folder)`: press the button, choose the folder, wait, and return the message."""
    import qt
    from HiEndMAESegmentationLib.engine import installation
    from stand_in.application import use_engine

    network = tmp_path / "network"
    network.mkdir()
    for name, version in (("torch", "2.8.0"), ("torch", "2.9.1"), ("monai", "1.5.0")):
        wheel(network, name, version)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", str(network))
    monkeypatch.setattr(installation, "offline_requirements", lambda: list(PACKAGES))
    monkeypatch.setattr(installation, "offline_pins", list)
    monkeypatch.setattr(installation, "shipped_pins", list)
    monkeypatch.setattr(installation, "missing_packages", lambda: list(PACKAGES))
    use_engine(sys.executable)
    module.session.library.import_model(shared_model)
    module.session.models_changed()

    def press_button(button: str, folder: Path) -> str:
        monkeypatch.setattr(qt.QFileDialog, "getExistingDirectory", lambda *_: str(folder))
        getattr(module.models.ui, button).click()
        wait(lambda: not module.session.busy)
        return module.models.strip.ui.messageLabel.text

    return press_button


def test_offline_package_is_made_and_installed(
    press: Callable[..., str], module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The excluded torch version is left out, every file has its SHA-256, and the model is added to the library."""
    folder = tmp_path / "Paket für Ä"
    weights = tmp_path / "start.pth"
    weights.write_bytes(b"weights from elsewhere")
    module.session.parameters.start = str(weights)
    assert "Copy it to the other computer" in press("makePackageButton", folder)
    checksums = dict(reversed(line.split("  ", 1)) for line in (folder / "SHA256SUMS").read_text("utf-8").splitlines())
    assert {Path(name).name for name in checksums} == {
        "torch-2.8.0-py3-none-any.whl",
        "monai-1.5.0-py3-none-any.whl",
        "bauch.zip",
        "start.pth",
    }
    for name, sha256 in checksums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256

    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "site"))
    message = press("installPackageButton", folder)
    # Other tests of this process may have imported the engine's packages; then Slicer has to be restarted.
    assert ("Restart Slicer" in message) is bool({"torch", "monai"} & set(sys.modules))
    assert ("need not be restarted" in message) is not ("Restart Slicer" in message)
    assert {path.name for path in (tmp_path / "site").glob("*.py")} == {
        "torch_from_package.py",
        "monai_from_package.py",
    }
    assert len(module.session.library.models()) == 1, "the library had it already"
    module.session.library.delete(module.session.library.models()[0])
    press("installPackageButton", folder)
    assert [model.name for model in module.session.library.models()] == ["Bauch"]
    assert module.train.ui.startCombo.findText("start.pth") >= 0


def test_damaged_offline_package_is_refused(
    press: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "package"
    press("makePackageButton", folder)
    file = folder / "wheels" / "monai-1.5.0-py3-none-any.whl"
    file.write_bytes(file.read_bytes()[:-1])
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "site"))
    assert press("installPackageButton", folder).startswith(
        f"'wheels/{file.name}' of the offline package is damaged or missing."
    )
    assert not (tmp_path / "site").exists()


def test_offline_package_problems_give_messages(
    press: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder holds other files, which stay; there is no network; the folder is no offline package."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine", encoding="utf-8")
    assert "holds other files" in press("makePackageButton", tmp_path / "taken")
    assert "is no offline package" in press("installPackageButton", tmp_path / "taken")
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["thesis.txt"]
    monkeypatch.delenv("PIP_FIND_LINKS")
    assert "Is there a network?" in press("makePackageButton", tmp_path / "package")


def test_offline_requirements_contain_nothing_that_slicer_ships() -> None:
    from HiEndMAESegmentationLib.engine import installation

    names = {line.partition(">")[0] for line in installation.offline_requirements()}
    assert "torch" in names
    assert not names & {"numpy", "SimpleITK", "scipy", "vtk"}
    assert all("+" not in pin for pin in installation.offline_pins())
