"""Installing packages by one button, and nothing at import."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from module_help import draw_segments, message_of, wait

REPOSITORY = Path(__file__).resolve().parents[2]


def test_missing_packages_are_installed_by_one_button(
    module: Any, patient: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine ends with code 5 on a bare Python. The PyTorch extension installs torch, pip the rest, and nothing that
    Slicer ships is installed."""
    import slicer.util
    from HiEndMAESegmentationLib.engine import installation
    from stand_in.application import Module, use_engine

    use_engine(sys.executable, "-S")
    labelled, labels = patient(1, "CT")
    module.session.parameters.teachSegmentation = draw_segments(labelled, labels)
    module.train.ui.trainButton.click()
    wait(lambda: not module.session.busy)
    assert module.train.strip.job.end.exit_code == 5
    assert "not installed yet" in message_of(module.train)
    assert module.train.strip.ui.actionButton.text == "Install"

    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda *_, **__: True)
    monkeypatch.setattr(
        installation, "missing_packages", lambda: ["torch>=2.2,!=2.9.*", "monai>=1.3", "SimpleITK>=2.3"]
    )
    module.train.strip.ui.actionButton.click()
    assert "extension 'PyTorch' is not installed" in message_of(module.train)

    calls: list[Any] = []
    pytorch = types.ModuleType("PyTorchUtils")
    pytorch.PyTorchUtilsLogic = lambda: types.SimpleNamespace(
        installTorch=lambda **options: calls.append(("torch", options)) or "torch"
    )
    monkeypatch.setitem(sys.modules, "PyTorchUtils", pytorch)
    monkeypatch.setattr(slicer.modules, "pytorchutils", Module(), raising=False)

    def pip_install(arguments: list[str]) -> None:
        pins = Path(arguments[1]).read_text(encoding="utf-8")
        calls.append(("pip", arguments[0], arguments[2:], pins))

    monkeypatch.setattr(slicer.util, "pip_install", pip_install)
    module.train.strip.show_message("", action="install", on_action=module.train.strip._install)
    module.train.strip.ui.actionButton.click()
    assert calls[0] == ("torch", {"askConfirmation": False, "torchVersionRequirement": ">=2.2,!=2.9.*"})
    assert calls[1][:3] == ("pip", "-c", ["monai>=1.3"])
    assert "numpy==" in calls[1][3]
    packaging = types.ModuleType("slicer.packaging")  # newer versions of Slicer have it
    packaging.pip_install = lambda lines, **options: calls.append(
        (lines, options["requester"], Path(options["constraints"]).name)
    )
    monkeypatch.setitem(sys.modules, "slicer.packaging", packaging)
    installation._install_with_pip(["monai>=1.3"])
    assert calls[2] == (["monai>=1.3"], "HiEndMAE", "constraints.txt")
    assert message_of(module.train).startswith("The packages are installed. ")


def test_opening_the_module_installs_and_asks_nothing() -> None:
    """Neither torch nor any other large package is imported into Slicer's process."""
    source = f"""
import sys
sys.path[:0] = [{str(REPOSITORY / "Testing" / "Host")!r}]
from pathlib import Path
from stand_in.application import load_module, start
start()
import slicer.util
def refuse(*_, **__): raise AssertionError("a question or an installation")
slicer.util.pip_install = slicer.util.confirmOkCancelDisplay = slicer.util.messageBox = refuse
widget, _ = load_module(Path({str(REPOSITORY / "HiEndMAESegmentation" / "HiEndMAESegmentation.py")!r}))
widget.cleanup()
large = {{"torch", "monai", "nibabel", "safetensors", "SimpleITK", "scipy"}} & set(sys.modules)
assert not large, large
"""
    result = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    assert result.returncode == 0, result.stderr
