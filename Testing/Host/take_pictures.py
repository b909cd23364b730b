"""Draws the module's panels in each of their states: `python Testing/Host/take_pictures.py [FOLDER]`.

Digital patients, the true engine (a minute of learning), the stand-in for Slicer. HIENDMAE_ENGINE_PYTHON as in README.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(REPOSITORY / "Testing" / "Module"), str(REPOSITORY)]

import module_help  # noqa: E402
from stand_in.application import load_module, start  # noqa: E402

_DRAW = """
import sys
import numpy as np
from HiEndMAECore.volumes.phantom import make_patient
for seed in (1, 2, 3):
    scan, labels = make_patient(seed, shape=(70, 60, 60), spacing=(5.0, 5.0, 5.0))
    np.savez(f"{sys.argv[1]}/{seed}.npz", scan=scan.array[0], labels=labels.array[0], affine=scan.affine)
"""
NAMES = {1: "liver", 2: "spleen", 3: "right kidney", 4: "left kidney", 7: "vertebral column"}


def patient(folder: Path, seed: int, name: str) -> tuple[Any, Any]:
    """A volume node and its true labels (k, j, i)."""
    import numpy as np
    import slicer

    kept = np.load(folder / f"{seed}.npz")
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    slicer.util.updateVolumeFromArray(volume, kept["scan"].transpose(2, 1, 0).astype(np.int16))
    volume.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(kept["affine"]))
    return volume, kept["labels"].transpose(2, 1, 0)


def main(target: Path) -> None:
    """Click through the module and keep a picture of each state."""
    engine = os.environ.get("HIENDMAE_ENGINE_PYTHON", sys.executable)
    start(engine_python=engine)
    import slicer

    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([engine, "-c", _DRAW, folder], check=True, cwd=REPOSITORY)
        taught, labels = patient(Path(folder), 1, "Abdomen A")
        for seed, name in ((2, "Abdomen B"), (3, "Abdomen C")):
            patient(Path(folder), seed, name)
    module_help.COLOURS.update({4: (64, 190, 200), 7: (241, 214, 120)})
    segmentation = module_help.draw_segments(taught, labels, NAMES)
    widget, parent = load_module(REPOSITORY / "HiEndMAESegmentation" / "HiEndMAESegmentation.py")
    widget.session.parameters.teachSegmentation = segmentation
    widget.session.parameters.budget = "1min"
    parent.resize(470, 800)
    parent.show()

    def picture(name: str, *sections: str) -> None:
        for section in ("teach", "apply", "improve", "models"):
            getattr(widget.ui, f"{section}Section").collapsed = section not in sections
        for _ in range(3):  # layouts settle over several rounds of events
            slicer.app.processEvents()
            parent.resize(470, parent.layout().totalHeightForWidth(470))
        parent.grab().save(str(target / f"{name}.png"))

    def idle() -> bool:
        return not widget.session.busy

    picture("teach", "teach")
    widget.teach.ui.teachButton.click()
    module_help.wait(lambda: widget.teach.strip.ui.progressBar.value > 5 or idle(), 300)
    picture("learning", "teach")
    module_help.wait(idle, 600)
    picture("taught", "teach")
    widget.apply.ui.applyButton.click()
    module_help.wait(lambda: widget.apply.cases[0].state == "done" or idle(), 300)
    picture("segmenting", "apply")
    module_help.wait(idle, 300)
    picture("segmented", "apply")
    widget.models.ui.doctorButton.click()
    module_help.wait(idle, 300)
    picture("models", "improve", "models")
    widget.cleanup()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else REPOSITORY / "Resources" / "Screenshots")
