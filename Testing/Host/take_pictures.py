"""Click through the module and save a picture of each state: `python Testing/Host/take_pictures.py [--budget 5min]`.

The pictures go into Resources/Screenshots. The module runs in the stand-in with the real engine, on abdominal CT where
HIENDMAE_DATA names the scans, else on digital patients. HIENDMAE_ENGINE_PYTHON is described in README.md. Slice and 3D views
are drawn if HIENDMAE_VIEWS_PYTHON names an interpreter with the packages of draw_views.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
PICTURES = REPOSITORY / "Resources" / "Screenshots"
sys.path[:0] = [str(Path(__file__).parent), str(REPOSITORY / "Testing" / "Module"), str(REPOSITORY)]

import module_help  # noqa: E402
import numpy as np  # noqa: E402
from stand_in.application import load_module, start, use_engine  # noqa: E402

_MAKE_PATIENTS = """
import sys
import numpy as np
from HiEndMAECore.data.phantom import make_patient
for seed in (1, 2, 3):
    scan, labels = make_patient(seed, shape=(88, 75, 75), spacing=(4.0, 4.0, 4.0))
    np.savez(f"{sys.argv[1]}/{seed}.npz", scan=scan.array[0], labels=labels.array[0], affine=scan.affine)
"""
WIDTH = 470
NAMES = {1: "Liver", 2: "Spleen", 3: "Right kidney", 4: "Left kidney", 5: "Aorta", 6: "Stomach"}
REAL_VALUES = {5: 1, 1: 2, 2: 3, 3: 4, 52: 5, 6: 6}  # values of the data's label map
PHANTOM_VALUES = {1: 1, 2: 2, 3: 3, 4: 4}
COLORS = {
    1: (221, 130, 101),
    2: (176, 112, 204),
    3: (112, 196, 108),
    4: (64, 190, 200),
    5: (230, 70, 60),
    6: (241, 214, 120),
}


def digital_patients(engine: str) -> tuple[list[Any], Any]:
    """Return three volume nodes, and the label values `(k, j, i)` of the first."""
    import slicer

    volumes, labels = [], None
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([engine, "-c", _MAKE_PATIENTS, folder], check=True, cwd=REPOSITORY)
        for seed, name in ((1, "Abdomen A"), (2, "Abdomen B"), (3, "Abdomen C")):
            data = np.load(Path(folder) / f"{seed}.npz")
            volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
            slicer.util.updateVolumeFromArray(volume, data["scan"].transpose(2, 1, 0).astype(np.int16))
            volume.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(data["affine"]))
            volumes.append(volume)
            labels = data["labels"].transpose(2, 1, 0) if labels is None else labels
    return volumes, renumber(labels, PHANTOM_VALUES)


def real_patients(data: Path) -> tuple[list[Any], Any]:
    """Return two abdominal CT and one of the chest as `digital_patients` does."""
    import slicer

    logic = slicer.modules.volumes.logic()
    files = {
        "Abdomen A": data / "abdomen" / "ct_abdomen_A" / "ct.nii.gz",
        "Abdomen B": data / "robustness" / "anisotropic_padding_abdomen_ct.nii.gz",
        "Chest": data / "abdomen" / "ct_chest_B" / "ct.nii.gz",
    }
    volumes = [logic.AddArchetypeVolume(str(file), name) for name, file in files.items()]
    label_node = logic.AddArchetypeVolume(str(files["Abdomen A"].with_name("seg_total.nii.gz")), "labels")
    labels = np.array(slicer.util.arrayFromVolume(label_node))
    slicer.mrmlScene.RemoveNode(label_node)
    return volumes, renumber(labels, REAL_VALUES)


def renumber(labels: Any, values: dict[int, int]) -> Any:
    """Return the label map with the values of `NAMES`; everything else becomes background."""
    result = np.zeros(labels.shape, np.int16)
    for old, new in values.items():
        result[labels == old] = new
    return result


class Photographer:
    """Takes pictures of the module's widget."""

    def __init__(self, widget: Any, parent: Any) -> None:
        self.widget, self.parent = widget, parent

    def __call__(self, name: str, *sections: str) -> None:
        """Save a picture with only these sections open."""
        import slicer

        for section in ("train", "apply", "refine", "models"):
            getattr(self.widget.ui, f"{section}Section").collapsed = section not in sections
        for _ in range(4):  # layouts settle over several rounds of events
            slicer.app.processEvents()
            self.parent.resize(WIDTH, self.parent.layout().totalHeightForWidth(WIDTH))
        self.parent.grab().save(str(PICTURES / f"{name}.png"))


def views(name: str, volume: Any, segmentation: Any, *, overlay: Any = None, at: Any = None) -> None:
    """Save slice and 3D views, drawn by draw_views.py."""
    import slicer
    from HiEndMAESegmentationLib.scene.export import write_scan
    from HiEndMAESegmentationLib.scene.nodes import segments_of, temporary_label_map

    python = os.environ.get("HIENDMAE_VIEWS_PYTHON")
    if not python:
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        labels = np.zeros(slicer.util.arrayFromVolume(volume).shape, np.int16)
        records = []
        for value, segment in enumerate(segments_of(segmentation), 1):
            labels[slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, segment.id, volume) > 0] = value
            records.append({"value": value, "name": segment.name, "colour": segment.color})
        (folder / "names.json").write_text(json.dumps({"labels": records}), encoding="utf-8")
        write_scan(volume, folder / "scan.nii")
        with temporary_label_map(volume, labels) as node:
            write_scan(node, folder / "labels.nii")
        line = [python, str(Path(__file__).with_name("draw_views.py")), str(PICTURES / f"{name}.png")]
        line += [str(folder / file) for file in ("scan.nii", "labels.nii", "names.json")]
        if overlay is not None:
            write_scan(overlay, folder / "map.nii")
            line.append(str(folder / "map.nii"))
        if at is not None:
            line += ["--at", *map(str, at)]
        result = subprocess.run(line, capture_output=True, check=False)
        if result.returncode:
            sys.stderr.write(result.stderr.decode("utf-8", "replace")[-500:])


def main(budget: str, model: Path | None) -> None:
    """Click through the module and save a picture of each state."""
    engine = os.environ.get("HIENDMAE_ENGINE_PYTHON", sys.executable)
    start(engine_python=engine)

    data = os.environ.get("HIENDMAE_DATA")
    PICTURES.mkdir(parents=True, exist_ok=True)
    widget, parent = load_module(REPOSITORY / "HiEndMAESegmentation" / "HiEndMAESegmentation.py")
    parent.resize(WIDTH, 800)
    parent.show()
    picture = Photographer(widget, parent)
    picture("empty", "train", "apply")
    volumes, labels = real_patients(Path(data)) if data else digital_patients(engine)
    widget.session.parameters.budget = budget
    train(picture, volumes[0], labels)
    if model is not None:
        widget.session.parameters.model = widget.session.library.import_model(model).key
        widget.session.models_changed()
    segment_and_refine(picture, volumes[1])
    check_computer_and_fail(picture)
    widget.cleanup()


def wait_for_job(widget: Any, seconds: float) -> None:
    """Wait until no job is running."""
    module_help.wait(lambda: not widget.session.busy, seconds)


def train(picture: Photographer, labelled: Any, labels: Any) -> None:
    """Label the first scan, and train on it."""
    widget = picture.widget
    module_help.COLORS.update(COLORS)
    names = {value: name for value, name in NAMES.items() if (labels == value).any()}
    segmentation = module_help.draw_segments(labelled, labels, names)
    segmentation.SetName("My labels")
    widget.session.parameters.teachSegmentation = segmentation

    def has_trained_for(share: float) -> bool:
        ui = widget.train.strip.ui
        in_training = ui.progressLabel.text.startswith("Training")
        return not widget.session.busy or (in_training and ui.progressBar.value >= share * ui.progressBar.maximum)

    picture("train", "train")
    views("labelled", labelled, segmentation)
    widget.train.ui.trainButton.click()
    module_help.wait(lambda: has_trained_for(0.3), 4000)
    picture("training", "train")
    wait_for_job(widget, 4000)
    picture("trained", "train")


def segment_and_refine(picture: Photographer, other: Any) -> None:
    """Segment the other scans, and continue training with the first result."""
    widget = picture.widget
    queue = widget.apply.queue
    widget.session.parameters.keepLargest = True
    widget.apply.ui.applyButton.click()
    module_help.wait(lambda: queue.cases[0].state == "done" or not widget.session.busy, 600)
    picture("segmenting", "apply")
    wait_for_job(widget, 600)
    picture("segmented", "apply")
    result = queue.results[0]
    views("result", other, result)
    review = next((entry for entry in widget.apply.review_list.entries if entry.volume is other), None)
    if review:
        views("uncertainty", other, result, overlay=review.overlay, at=review.slice.center)
    widget.session.parameters.corrected = result
    picture("improve", "refine")
    widget.refine.steps = 40
    widget.refine.ui.refineButton.click()
    wait_for_job(widget, 600)
    picture("improved", "refine")


def check_computer_and_fail(picture: Photographer) -> None:
    """Show the models and the check of the computer, then an error message."""
    import slicer

    widget = picture.widget
    picture("models", "models")
    widget.models.ui.doctorButton.click()
    wait_for_job(widget, 300)
    picture("computer", "models")
    failed = {"v": 1, "event": "failed", "code": "out_of_memory", "message": "Full.", "advice": ""}
    program = Path(slicer.app.temporaryPath) / "engine.py"
    program.write_text(f"print({json.dumps(failed)!r})", encoding="utf-8")
    use_engine(sys.executable, str(program))
    widget.apply.ui.applyButton.click()
    wait_for_job(widget, 60)
    picture("problem", "apply")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", default="1min")
    parser.add_argument(
        "--model", type=Path, help="segment with this model, which was trained longer on the same labels"
    )
    options = parser.parse_args()
    main(options.budget, options.model)
