"""The offline kit by its buttons, with the true pip, and wheels made here in place of a network."""

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
    """An empty package as pip takes it."""
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}_of_the_kit.py", f"version = {version!r}\n")
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{about}/RECORD", "")


@pytest.fixture
def kit(module: Any, shared_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`kit(button, folder)`: press the button, answer with the folder, wait; the message. pip's network is a folder."""
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
    monkeypatch.setattr(installation, "kit_packages", lambda: list(PACKAGES))
    monkeypatch.setattr(installation, "kit_pins", list)
    monkeypatch.setattr(installation, "pinned", list)
    monkeypatch.setattr(installation, "missing", lambda: list(PACKAGES))
    use_engine(sys.executable)
    module.session.library.take_in(shared_model)
    module.session.models_changed()

    def press(button: str, folder: Path) -> str:
        monkeypatch.setattr(qt.QFileDialog, "getExistingDirectory", lambda *_: str(folder))
        getattr(module.models.ui, button).click()
        wait(lambda: not module.session.busy)
        return module.models.strip.ui.messageLabel.text

    return press


def test_a_kit_is_gathered_and_installed_from(
    kit: Callable[..., str], module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The excluded torch stays out; every file has its SHA-256; the model joins the library of the other computer."""
    folder = tmp_path / "Kit für Ä"
    weights = tmp_path / "start.pth"
    weights.write_bytes(b"weights of somebody")
    module.session.parameters.start = str(weights)
    assert "Copy it to the other computer" in kit("kitButton", folder)
    sums = dict(reversed(line.split("  ", 1)) for line in (folder / "SHA256SUMS").read_text("utf-8").splitlines())
    assert {Path(name).name for name in sums} == {
        "torch-2.8.0-py3-none-any.whl",
        "monai-1.5.0-py3-none-any.whl",
        "bauch.zip",
        "start.pth",
    }
    for name, wanted in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == wanted

    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "site"))
    told = kit("fromKitButton", folder)
    # Other tests of the same process may have loaded the engine's packages: Slicer would have to be restarted then.
    assert ("Restart Slicer" in told) is bool({"torch", "monai"} & set(sys.modules))
    assert ("need not be restarted" in told) is not ("Restart Slicer" in told)
    assert {path.name for path in (tmp_path / "site").glob("*.py")} == {"torch_of_the_kit.py", "monai_of_the_kit.py"}
    assert len(module.session.library.models()) == 1, "it is there already"
    module.session.library.delete(module.session.library.models()[0])
    kit("fromKitButton", folder)
    assert [model.name for model in module.session.library.models()] == ["Bauch"]
    assert module.teach.ui.startCombo.findText("start.pth") >= 0


def test_a_damaged_kit_is_refused(kit: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "kit"
    kit("kitButton", folder)
    file = folder / "wheels" / "monai-1.5.0-py3-none-any.whl"
    file.write_bytes(file.read_bytes()[:-1])
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "site"))
    assert kit("fromKitButton", folder).startswith(f"'wheels/{file.name}' of the kit is damaged or missing.")
    assert not (tmp_path / "site").exists()


def test_what_goes_wrong_with_a_kit_is_told(
    kit: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder in use is left alone; no network; no kit."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine", encoding="utf-8")
    assert "holds other files" in kit("kitButton", tmp_path / "taken")
    assert "is no offline kit" in kit("fromKitButton", tmp_path / "taken")
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["thesis.txt"]
    monkeypatch.delenv("PIP_FIND_LINKS")
    assert "Is there a network?" in kit("kitButton", tmp_path / "kit")


def test_nothing_that_slicer_ships_goes_into_a_kit() -> None:
    from HiEndMAESegmentationLib.engine import installation

    names = {line.partition(">")[0] for line in installation.kit_packages()}
    assert "torch" in names
    assert not names & {"numpy", "SimpleITK", "scipy", "vtk"}
    assert all("+" not in pin for pin in installation.kit_pins())
