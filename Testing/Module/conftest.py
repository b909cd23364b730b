"""Fixtures: the stand-in for Slicer, digital patients as nodes, and the module as a user opens it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from module_help import COLORS, NAMES, message_of

REPOSITORY = Path(__file__).resolve().parents[2]
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests compute little, and two threads would wait for each other
sys.path[:0] = [str(REPOSITORY / "Testing" / "Host"), str(REPOSITORY / "HiEndMAESegmentation"), str(REPOSITORY)]


def _missing_requirement() -> str:
    """Return why the stand-in cannot start here, or "" if it can."""
    for package, module in {"slicer-core": "slicer", "PySide6-Essentials": "PySide6"}.items():
        if not importlib.util.find_spec(module):
            return f"{package} is not installed (pip install '.[host]')"
    try:
        importlib.import_module("PySide6.QtWidgets")
    except ImportError as error:  # the system's libraries
        return f"Qt cannot start: {error} (the packages are listed in Testing/Host/README.md)"
    return ""


MISSING = _missing_requirement()
TESTS_WITHOUT_STAND_IN = {"test_extension.py"}

# The coarse grid keeps a run of three steps to seconds.
_MAKE_PATIENTS = """
import sys
import numpy as np
from HiEndMAECore.data.phantom import make_patient
for seed in (1, 2, 3):
    scan, labels = make_patient(seed, shape=(42, 36, 36), spacing=(8.0, 8.0, 8.0))
    np.savez(f"{sys.argv[1]}/{seed}.npz", scan=scan.array[0], labels=labels.array[0], affine=scan.affine)
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip these tests, with the reason, where the stand-in cannot start."""
    for item in items:
        if MISSING and item.path.name not in TESTS_WITHOUT_STAND_IN and item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.skip(reason=MISSING))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let a test fail in CI that would be skipped, except on Python versions for which slicer-core has no wheel."""
    report = yield
    has_wheels = (3, 11) <= sys.version_info < (3, 13)
    if report.skipped and os.environ.get("CI") and has_wheels and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, which CI does not allow: {report.longrepr[2]}"
    return report


@pytest.fixture(scope="session")
def engine_python() -> str:
    """Return an interpreter with the engine's packages: HIENDMAE_ENGINE_PYTHON, else this one."""
    python = os.environ.get("HIENDMAE_ENGINE_PYTHON", sys.executable)
    result = subprocess.run([python, "-c", "import torch, monai, nibabel"], capture_output=True, check=False)
    if result.returncode:
        pytest.skip(f"{python} lacks the engine's packages; name another one in HIENDMAE_ENGINE_PYTHON")
    return python


@pytest.fixture(scope="session")
def app() -> Any:
    """Return the stand-in, which is started once."""
    if MISSING:
        pytest.skip(MISSING)
    from stand_in.application import start

    return start()


@pytest.fixture
def engine(app: Any, engine_python: str) -> str:
    """Let `PythonSlicer` start the real engine."""
    from stand_in.application import use_engine

    use_engine(engine_python)
    return engine_python


@pytest.fixture(scope="session")
def patients_folder(engine_python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with three digital patients, 1.npz to 3.npz."""
    folder = tmp_path_factory.mktemp("patients")
    subprocess.run([engine_python, "-c", _MAKE_PATIENTS, str(folder)], check=True, cwd=REPOSITORY)
    return folder


@pytest.fixture
def empty_scene(app: Any) -> Iterator[Any]:
    """Yield the scene, empty before and after."""
    import slicer

    slicer.mrmlScene.Clear(0)
    yield slicer.mrmlScene
    slicer.mrmlScene.Clear(0)


@pytest.fixture
def patient(patients_folder: Path, empty_scene: Any) -> Callable[..., tuple[Any, Any]]:
    """Return `patient(seed, name)`, which gives a volume node and its reference labels `(k, j, i)`."""
    import numpy as np
    import slicer

    def load(seed: int, name: str) -> tuple[Any, Any]:
        data = np.load(patients_folder / f"{seed}.npz")
        volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
        slicer.util.updateVolumeFromArray(volume, data["scan"].transpose(2, 1, 0).astype(np.int16))
        volume.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(data["affine"]))
        volume.CreateDefaultDisplayNodes()
        return volume, data["labels"].transpose(2, 1, 0)

    return load


@pytest.fixture
def module(empty_scene: Any) -> Iterator[Any]:
    """Yield the module's widget, newly opened with an empty library."""
    import slicer
    from PySide6 import QtCore
    from stand_in.application import load_module

    widget, parent = load_module(REPOSITORY / "HiEndMAESegmentation" / "HiEndMAESegmentation.py")
    for folder in (widget.session.library.folder, widget.session.library.weights_folder):
        shutil.rmtree(folder, ignore_errors=True)
    widget.session.models_changed()
    parent.resize(460, 1100)
    parent.show()
    widget.train.steps = widget.refine.steps = 3
    yield widget
    widget.cleanup()
    parent.hide()
    parent.deleteLater()
    slicer.app.sendPostedEvents(
        parent, QtCore.QEvent.Type.DeferredDelete
    )  # else its selectors would react to the next tests


@pytest.fixture(scope="session")
def shared_model(patients_folder: Path, engine_python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model as one zip, as somebody would share it, trained with three steps on the first patient."""
    import json

    folder = tmp_path_factory.mktemp("shared")
    names = [{"value": v, "name": NAMES[v], "colour": COLORS[v], "terminology": {}} for v in NAMES]
    (folder / "names.json").write_text(json.dumps({"labels": names}), encoding="utf-8")
    write = (
        "import numpy as np, nibabel as nib, sys; k = np.load(sys.argv[1])\n"
        "labels = np.where(k['labels'] < 4, k['labels'], 0)\n"
        "nib.save(nib.Nifti1Image(k['scan'], k['affine']), sys.argv[2] + '/scan.nii')\n"
        "nib.save(nib.Nifti1Image(labels.astype('uint8'), k['affine']), sys.argv[2] + '/labels.nii')"
    )
    subprocess.run([engine_python, "-c", write, str(patients_folder / "1.npz"), str(folder)], check=True)
    line = [
        engine_python,
        "-m",
        "HiEndMAECore.finetune",
        "--image",
        folder / "scan.nii",
        "--label",
        folder / "labels.nii",
    ]
    line += ["--names", folder / "names.json", "--output", folder / "model.zip", "--name", "Bauch"]
    line += ["--steps", "3", "--init", "none"]
    subprocess.run(line, check=True, cwd=REPOSITORY, capture_output=True)
    return folder / "model.zip"


@pytest.fixture
def imported(module: Any, shared_model: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the module after importing a shared model by the button."""
    import qt

    monkeypatch.setattr(qt.QFileDialog, "getOpenFileName", lambda *_: str(shared_model))
    module.models.ui.importButton.click()
    assert message_of(module.models) == "'Bauch' is ready to segment."
    return module


@pytest.fixture
def oblique(empty_scene: Any) -> Any:
    """Return an oblique, anisotropic, left-handed volume with a name that no file system accepts."""
    import numpy as np
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", 'Prüfung: "CT/1" <Ä>')
    voxels = np.random.default_rng(0).integers(-1000, 1000, (10, 12, 14)).astype(np.int16)
    slicer.util.updateVolumeFromArray(node, voxels)
    c, s = np.cos(0.3), np.sin(0.3)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, -1]]) @ np.diag([-0.7, -1.1, 2.5])
    affine[:3, 3] = (3, 4, 5)
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(affine))
    return node
