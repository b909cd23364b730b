"""Figures of a run: a segmentation with its scores, and the progress of pretraining (PNG, needs matplotlib).

Slices follow the radiological convention: the patient's right is on the image's left, anterior or superior is at the top, and
sagittal slices look to the image's left. Volumes are NumPy arrays (X, Y, Z) in RAS order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .figure_parts import (
    DPI,
    SECONDARY_COLOR,
    TEXT_COLOR,
    Curve,
    LabelledStructure,
    Rectangle,
    SliceDrawing,
    draw_curve,
    draw_score_bars,
    new_figure,
    remove_axes,
    save_figure,
)

_MAX_RECONSTRUCTIONS = 4


def draw_result(
    path: str | Path,
    *,
    image: np.ndarray,
    spacing: Sequence[float],
    reference: np.ndarray | None,
    prediction: np.ndarray,
    structures: Sequence[LabelledStructure],
    losses: Curve = (),
    scores: Mapping[str, float | None] | None = None,
    title: str = "Segmentation",
    training_case: tuple[np.ndarray, np.ndarray] | None = None,
    training_spacing: Sequence[float] | None = None,
    window: tuple[float, float] = (0.0, 1.0),
) -> None:
    """Draw slices of a result, the Dice of each structure and the loss of fine-tuning, 1800 x 1100 pixels.

    Args:
        path: File to write.
        image: Scan (X, Y, Z) in the units of `window`: HU, or 0 to 1 when preprocessed.
        spacing: Voxel edges in mm.
        reference: Label map on the grid of `image`, or None.
        prediction: Label map on the grid of `image`.
        structures: The structures to draw.
        losses: (step, loss) of fine-tuning.
        scores: Dice by the name of the structure, None where the reference lacks it. Without scores, volumes in ml.
        title: Title of the figure.
        training_case: (scan, label map) of the labelled scan, drawn above the result.
        training_spacing: Its voxel edges in mm; None for those of the result.
        window: Lowest and highest intensity; by default those of a preprocessed scan.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        InputError: `output_unwritable`.
    """
    figure = new_figure(15, 1100 / DPI, title)
    result = SliceDrawing(image, prediction, spacing=spacing, structures=structures, reference=reference, window=window)
    if training_case is None:
        _draw_planes(figure, result)
    else:
        scan, labels = training_case
        training = SliceDrawing(
            scan, labels, spacing=training_spacing or spacing, structures=structures, reference=None, window=window
        )
        _draw_two_rows(figure, training, result)
    top = 0.90
    bottom = 0.40 if losses else max(0.03, top - 0.07 * (len(structures) + 2))
    voxel_ml = float(np.prod(spacing)) / 1000
    volumes_ml = {s.name: float(np.count_nonzero(prediction == s.value)) * voxel_ml for s in structures}
    draw_score_bars(figure, (0.832, bottom, 0.112, top - bottom), structures, scores, volumes_ml)
    if losses:
        axes = figure.add_axes((0.772, 0.075, 0.212, 0.235))
        draw_curve(axes, losses, "Fine-tuning loss", smooth=True, log=True)
    save_figure(figure, path)


def _legend(drawing: SliceDrawing) -> str:
    """Return what the colors of a result mean."""
    return "colored: segmentation" + (", white line: reference" if drawing.reference is not None else "")


def _draw_planes(figure: Any, result: SliceDrawing) -> None:
    """Draw the three planes of a result, and the axial slice once more without the overlay."""
    figure.text(0.016, 0.922, _legend(result), fontsize=12, color=SECONDARY_COLOR, va="center")
    width, height = 0.345, 0.435
    result.draw(figure, (0.369, 0.02, width, height), "axial", overlay=False)
    for plane, (left, bottom) in {
        "axial": (0.016, 0.465),
        "sagittal": (0.016, 0.02),
        "coronal": (0.369, 0.465),
    }.items():
        result.draw(figure, (left, bottom, width, height), plane)


def _draw_two_rows(figure: Any, training: SliceDrawing, result: SliceDrawing) -> None:
    """Draw the three planes of the training case above those of a result."""
    style = {"fontsize": 12, "color": SECONDARY_COLOR, "va": "center"}
    figure.text(0.016, 0.916, "Trained on this labelled scan", **style)
    figure.text(0.016, 0.459, f"Result on another scan ({_legend(result)})", **style)
    width, height = 0.226, 0.405
    for left, plane in ((0.016, "axial"), (0.252, "coronal"), (0.488, "sagittal")):
        training.draw(figure, (left, 0.49, width, height), plane)
        result.draw(figure, (left, 0.03, width, height), plane)


def draw_progress(
    path: str | Path,
    *,
    losses: Curve,
    validation_losses: Curve = (),
    rates: Curve = (),
    speeds: Curve = (),
    reconstructions: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]] = (),
    title: str = "Pretraining",
) -> None:
    """Draw loss, learning rate and speed of pretraining by step, and what the network reconstructs in masked patches.

    Args:
        path: File to write.
        losses: (step, loss).
        validation_losses: (step, loss on the fixed validation crops), drawn over the loss.
        rates: (step, learning rate).
        speeds: (step, crops per second).
        reconstructions: Up to four (original, masked, reconstructed), each (rows, columns) in 0 to 1, as displayed.
        title: Title of the figure.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        InputError: `output_unwritable`.
    """
    rows = list(reconstructions)[:_MAX_RECONSTRUCTIONS]
    figure = new_figure(15, 7.5, title)
    right = 0.48 if rows else 0.97
    small = [(curve, name) for curve, name in ((rates, "Learning rate"), (speeds, "Crops per second")) if curve]
    bottom, height = (0.43, 0.43) if small else (0.10, 0.76)
    _draw_losses(figure, (0.05, bottom, right - 0.05, height), losses, validation_losses)
    width = (right - 0.05 * max(1, len(small))) / max(1, len(small))
    for index, (curve, name) in enumerate(small):
        axes = figure.add_axes((0.05 + index * (width + 0.05), 0.09, width, 0.21))
        draw_curve(axes, curve, name, smooth=curve is speeds)
    _draw_reconstructions(figure, rows)
    save_figure(figure, path)


def _draw_losses(figure: Any, rectangle: Rectangle, losses: Curve, validation_losses: Curve) -> None:
    """Draw the loss of pretraining, and over it the loss on the validation crops."""
    axes = figure.add_axes(rectangle)
    draw_curve(axes, losses, "Reconstruction loss", smooth=True, log=True)
    if validation_losses:
        style = {"color": TEXT_COLOR, "linewidth": 1.4, "marker": "o", "markersize": 3}
        axes.plot(*zip(*validation_losses), label="on fixed validation crops", **style)
        axes.legend(frameon=False, fontsize=10, loc="upper right")


def _draw_reconstructions(figure: Any, rows: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
    """Draw one row of three images for each crop."""
    height = 0.84 / max(2, len(rows))
    for row, images in enumerate(rows):
        for column, (image, name) in enumerate(zip(images, ("original", "masked", "reconstructed"))):
            axes = figure.add_axes((0.52 + column * 0.157, 0.89 - (row + 1) * height, 0.152, height - 0.012))
            axes.set_facecolor("black")
            axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            remove_axes(axes)
            if row == 0:
                axes.set_title(name, fontsize=11, color=SECONDARY_COLOR)
