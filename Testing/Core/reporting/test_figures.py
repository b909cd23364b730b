"""Figures: complete, in the right orientation, readable without a reference, and clear about a missing matplotlib."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from HiEndMAECore.errors import InputError, MissingDependencyError
from HiEndMAECore.io.structure import Structure
from HiEndMAECore.preprocessing.defaults import CT_WINDOW_HU
from HiEndMAECore.reporting import figures
from HiEndMAECore.reporting.figure_parts import best_slice, radiological_slice

STRUCTURES = (Structure(1, "liver", (221, 130, 80)), Structure(2, "left kidney", (64, 190, 200)))
SHAPE, SPACING = (40, 32, 24), (2.0, 2.0, 4.0)
LOSSES = [(step, 2.0 / (step + 1)) for step in range(60)]


def make_case() -> dict:
    """Return a body with two blocks, the first on the patient's right."""
    image = np.full(SHAPE, -900.0, np.float32)
    image[4:36, 4:28] = 40
    labels = np.zeros(SHAPE, np.uint8)
    labels[24:34, 10:22, 6:18], labels[6:12, 8:16, 8:16] = 1, 2
    image[labels > 0] = 150
    return {
        "image": image,
        "spacing": SPACING,
        "prediction": labels,
        "structures": STRUCTURES,
        "window": CT_WINDOW_HU,
    }


def read_pixels(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return imread(path)[..., :3]


@pytest.mark.parametrize("axis_name", ["axial", "coronal"])
def test_radiological_slice_of_the_patients_right_is_on_the_left(axis_name: str) -> None:
    volume = np.zeros(SHAPE)
    volume[35, 28, 20] = 1  # right, anterior, superior
    index = 20 if axis_name == "axial" else 28
    row, column = np.argwhere(radiological_slice(volume, axis_name, index))[0]
    assert column == SHAPE[0] - 1 - 35, "right at the left"
    assert row < 6, "anterior or superior at the top"


def test_radiological_slice_sagittal_looks_to_the_left() -> None:
    volume = np.zeros(SHAPE)
    volume[35, 28, 20] = 1
    assert radiological_slice(volume, "sagittal", 35).shape == (24, 32)
    row, column = np.argwhere(radiological_slice(volume, "sagittal", 35))[0]
    assert (row, column) == (3, 3)


def test_draw_result_bright_blob_on_the_right_is_drawn_on_the_left(tmp_path: Path) -> None:
    scan = make_case()
    scan["image"] = np.full(SHAPE, -900.0, np.float32)
    scan["image"][28:34, 12:20, 6:18] = 250
    scan["prediction"] = np.zeros(SHAPE, np.uint8)
    figures.draw_result(
        tmp_path / "a.png",
        image=scan["image"],
        reference=None,
        prediction=scan["prediction"],
        spacing=SPACING,
        structures=STRUCTURES,
        window=CT_WINDOW_HU,
    )
    picture = read_pixels(tmp_path / "a.png")
    height, width = picture.shape[:2]
    left, bottom, wide, high = 0.016, 0.465, 0.345, 0.435  # the axial panel
    panel = picture[
        int((1 - bottom - high) * height) : int((1 - bottom) * height), int(left * width) : int((left + wide) * width)
    ]
    white = panel[3:-3, 3:-3].min(-1) > 0.9
    assert white[:, : white.shape[1] // 2].sum() > 1000 > 100 > white[:, white.shape[1] // 2 :].sum()


@pytest.mark.parametrize("with_reference", [True, False])
@pytest.mark.parametrize("with_training_case", [True, False])
def test_draw_result_draws_panels_structures_and_nothing_else(
    tmp_path: Path, with_reference: bool, with_training_case: bool
) -> None:
    scan = make_case()
    path = tmp_path / "new folder" / "result.png"
    figures.draw_result(
        path,
        **scan,
        reference=np.roll(scan["prediction"], 1, 0) if with_reference else None,
        losses=LOSSES if with_reference else [],
        scores={"liver": 0.91, "left kidney": None} if with_reference else None,
        title="One labelled scan",
        training_case=(scan["image"], scan["prediction"]) if with_training_case else None,
    )
    picture = read_pixels(path)
    assert picture.shape == (1100, 1800, 3)
    for structure in STRUCTURES:
        like = np.abs(picture - np.array(structure.color) / 255).max(-1) < 0.02
        assert like[:, :1290].sum() > 100, f"{structure.name} outlined in the panels"
        assert like[:, 1400:].sum() > 100, f"{structure.name} named with its color"
    assert 0.05 < (picture.max(-1) < 0.05).mean() < 0.9, "black panels on a light page"
    assert [p.name for p in path.parent.iterdir()] == ["result.png"], "no temporary file remains"


def test_best_slice_shows_most_structures() -> None:
    labels = np.zeros((30, 30, 30), np.uint8)
    labels[5:25, 5:25, 4:9] = 1
    labels[5:9, 5:9, 7:20] = 2
    assert best_slice(labels, "axial", STRUCTURES) in (7, 8)
    assert best_slice(np.zeros_like(labels), "coronal", STRUCTURES) == 15


def test_draw_progress_with_and_without_reconstructions(tmp_path: Path) -> None:
    rows = [(np.random.default_rng(i).random((16, 20)),) * 3 for i in range(3)]
    figures.draw_progress(
        tmp_path / "full.png",
        losses=[*LOSSES, (60, float("nan"))],
        validation_losses=[(0, 1.5), (30, 0.2), (60, 0.1)],
        rates=[(s, 1e-4) for s in range(60)],
        speeds=[(s, 30.0 + s % 3) for s in range(60)],
        reconstructions=rows,
    )
    figures.draw_progress(tmp_path / "first.png", losses=[(0, 1.5)], rates=[], speeds=[], reconstructions=[])
    full, first = read_pixels(tmp_path / "full.png"), read_pixels(tmp_path / "first.png")
    assert full.shape == first.shape == (900, 1800, 3)
    right = np.s_[200:800, 1000:]
    assert full[right].std() > 0.1
    assert first.std() > 0.01


def test_draw_progress_without_matplotlib_gives_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in [name for name in sys.modules if name.startswith("matplotlib.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match="to draw figures") as caught:
        figures.draw_progress(tmp_path / "a.png", losses=LOSSES)
    assert "pip install matplotlib" in caught.value.advice
    assert not list(tmp_path.iterdir())


def test_draw_progress_unwritable_path_raises_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        figures.draw_progress(tmp_path / "file" / "a.png", losses=LOSSES)
    assert caught.value.code == "output_unwritable"
