"""The parts of figures: an empty figure, a curve, a slice with its labels, bars for the scores (matplotlib)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from HiEndMAECore.errors import InputError, MissingDependencyError
from HiEndMAECore.io.atomic import atomic_path

PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}  # the axis of a volume (X, Y, Z) that a slice of the plane fixes
_DIRECTIONS = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}  # left, right, top and bottom of the image
TEXT_COLOR, SECONDARY_COLOR, ACCENT_COLOR = "#1d2733", "#6b7785", "#2f6fb0"
DPI = 120

Curve = Sequence[tuple[int, float]]
Rectangle = tuple[float, float, float, float]  # left, bottom, width and height as shares of the figure


class LabelledStructure(Protocol):
    """A structure as figures need it; `io.structure.Structure` is one."""

    @property
    def value(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def color(self) -> tuple[int, int, int]: ...


def new_figure(width: float, height: float, title: str) -> Any:
    """Return an empty figure with a title. It needs no display and does not change the state of pyplot.

    Args:
        width: Width in inches.
        height: Height in inches.
        title: The title; a long one gets smaller letters.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError.of("matplotlib", "to draw figures") from error
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    size = 19 * min(1.0, 90 / max(1, len(title)))
    figure.text(0.016, 0.962, title, fontsize=size, fontweight="bold", color=TEXT_COLOR, va="center")
    return figure


def save_figure(figure: Any, path: str | Path) -> None:
    """Write a figure to a PNG file, completely or not at all.

    Raises:
        InputError: `output_unwritable`.
    """
    path = Path(path)
    try:
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=DPI)
    except OSError as error:
        message = f"{path} cannot be written ({error.strerror})."
        raise InputError("output_unwritable", message, "Choose another place, or free some space.") from error


def remove_axes(axes: Any) -> None:
    """Remove the ticks and the frame of axes."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def radiological_slice(volume: np.ndarray, plane: str, index: int) -> np.ndarray:
    """Return a slice of a volume (X, Y, Z) in RAS order as an image (rows, columns), with row 0 at the top.

    The patient's right, or in sagittal slices the patient's front, is on the image's left.
    """
    return np.take(volume, index, axis=PLANES[plane]).T[::-1, ::-1]


def best_slice(labels: np.ndarray, plane: str, structures: Sequence[LabelledStructure]) -> int:
    """Return the index of the slice that shows most structures, each rated by its area relative to its largest section.

    Args:
        labels: Label map (X, Y, Z) in RAS order.
        plane: A key of `PLANES`.
        structures: The structures of the label map.

    Returns:
        The index; that of the middle slice when there is no labelled voxel.
    """
    axis = PLANES[plane]
    steps = [max(1, n // 128) for n in labels.shape]
    steps[axis] = 1  # every slice counts, but not every voxel of a slice
    sampled = labels[tuple(slice(None, None, step) for step in steps)]
    other_axes = tuple(a for a in range(3) if a != axis)
    rating = np.zeros(labels.shape[axis])
    for structure in structures:
        areas = np.count_nonzero(sampled == structure.value, axis=other_axes)
        rating += np.sqrt(areas / max(1, areas.max()))
    return int(rating.argmax()) if rating.any() else labels.shape[axis] // 2


class SliceDrawing:
    """The scan of a figure, with its label maps and how they are drawn.

    Args:
        image: Scan (X, Y, Z) in RAS order, in the units of `window`.
        labels: Label map on the same grid, drawn in the structures' colors.
        spacing: Voxel edges in mm.
        structures: The structures of the label map.
        reference: Label map drawn as thin white lines, or None.
        window: Lowest and highest intensity.
    """

    def __init__(
        self,
        image: np.ndarray,
        labels: np.ndarray,
        *,
        spacing: Sequence[float],
        structures: Sequence[LabelledStructure],
        reference: np.ndarray | None,
        window: tuple[float, float],
    ) -> None:
        self.image, self.labels, self.reference = image, labels, reference
        self.spacing, self.structures, self.window = spacing, structures, window

    def draw(self, figure: Any, rectangle: Rectangle, plane: str, *, overlay: bool = True) -> None:
        """Draw the best slice of a plane on a black panel.

        Args:
            figure: A matplotlib figure.
            rectangle: Place of the panel.
            plane: A key of `PLANES`.
            overlay: True to draw the labels over the scan.
        """
        remove_axes(figure.add_axes(rectangle, facecolor="black"))  # stays black where the slice does not reach
        axes = figure.add_axes(rectangle)
        index = best_slice(self.labels if self.reference is None else self.reference, plane, self.structures)
        picture = radiological_slice(self.image, plane, index)
        across, up = (self.spacing[a] for a in range(3) if a != PLANES[plane])
        height, width = picture.shape[0] * up, picture.shape[1] * across
        low, high = self.window
        extent = (0, width, height, 0)
        axes.imshow(picture, cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="bicubic")
        centers = (np.arange(picture.shape[1]) + 0.5) * across, (np.arange(picture.shape[0]) + 0.5) * up
        if overlay:
            self._draw_contours(axes, radiological_slice(self.labels, plane, index), centers, colored=True)
        if overlay and self.reference is not None:
            self._draw_contours(axes, radiological_slice(self.reference, plane, index), centers, colored=False)
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        remove_axes(axes)
        name = f"{plane} {index}" + ("" if overlay else " without the overlay")
        _annotate(figure, rectangle, name, _DIRECTIONS[plane])

    def _draw_contours(
        self, axes: Any, labels: np.ndarray, centers: tuple[np.ndarray, np.ndarray], *, colored: bool
    ) -> None:
        """Draw the outline of each structure in a slice (rows, columns): tinted in its color, or as a thin white line."""
        from scipy.ndimage import gaussian_filter

        for structure in self.structures:
            mask = gaussian_filter((labels == structure.value).astype(np.float32), 0.5)  # no stairs in the outline
            if mask.max() <= 0.5:
                continue
            color = tuple(c / 255 for c in structure.color) if colored else (1.0, 1.0, 1.0)
            if colored:
                axes.contourf(*centers, mask, levels=[0.5, 2], colors=[color], alpha=0.36)
            axes.contour(*centers, mask, levels=[0.5], colors=[color], linewidths=1.6 if colored else 0.9)


def _annotate(figure: Any, rectangle: Rectangle, name: str, directions: str) -> None:
    """Write the name of a panel and the directions of the patient (left, right, top, bottom) at its edges."""
    from matplotlib.patheffects import withStroke

    left, bottom, width, height = rectangle
    style = {"va": "center", "fontsize": 10, "path_effects": [withStroke(linewidth=2.5, foreground="black")]}
    for letter, (x, y) in zip(directions, ((0.03, 0.5), (0.97, 0.5), (0.5, 0.965), (0.5, 0.035))):
        figure.text(left + x * width, bottom + y * height, letter, color="#ffd866", ha="center", **style)
    figure.text(left + 0.02 * width, bottom + 0.035 * height, name, color="#c9d1d9", **style)


def draw_score_bars(
    figure: Any,
    rectangle: Rectangle,
    structures: Sequence[LabelledStructure],
    scores: Mapping[str, float | None] | None,
    volumes_ml: Mapping[str, float],
) -> None:
    """Draw a bar for each structure in its color.

    Args:
        figure: A matplotlib figure.
        rectangle: Place of the bars.
        structures: The structures, from top to bottom.
        scores: Dice by the name of the structure, None where there is none; without scores the volumes are drawn.
        volumes_ml: Volume by the name of the structure.
    """
    values = {s.name: (scores.get(s.name) if scores else volumes_ml[s.name]) for s in structures}
    known = [v for v in values.values() if v is not None]
    longest = 1.0 if scores else max([*known, 1e-6])
    axes = figure.add_axes(rectangle)
    size = min(11.0, 230 / max(1, len(structures)))
    for row, structure in enumerate(structures):
        value = values[structure.name]
        color = [c / 255 for c in structure.color]
        axes.barh(row, 1.0, height=0.5, color="#edf0f3")
        axes.barh(row, 0 if value is None else value / longest, height=0.5, color=color)
        axes.barh(row, 0.03, height=0.5, left=-0.06, color=color, clip_on=False)  # the color, where the bar is empty
        name = structure.name if len(structure.name) <= 22 else structure.name[:21] + "…"
        axes.text(-0.11, row, name, ha="right", va="center", fontsize=size, color=TEXT_COLOR)
        text = "n/a" if value is None else f"{value:.2f}" if scores else f"{value:.0f} ml"
        axes.text(1.05, row, text, ha="left", va="center", fontsize=size, color=TEXT_COLOR)
    heading = "Dice" if scores else "Volume"
    if scores and known:
        heading = f"Dice, mean {np.mean(known):.2f}"
    axes.text(1.05, -0.95, heading, ha="right", va="center", fontsize=13, fontweight="bold", color=TEXT_COLOR)
    axes.set_xlim(0, 1)
    axes.set_ylim(max(len(structures), 6) - 0.5, -1.2)
    remove_axes(axes)


def draw_curve(axes: Any, points: Curve, title: str, *, smooth: bool = False, log: bool = False) -> None:
    """Draw (step, value) points as a line.

    Args:
        axes: Matplotlib axes.
        points: The points; those that are not finite are skipped.
        title: Title of the axes.
        smooth: Draw a running mean over a twentieth of the run, and the values themselves in a pale color.
        log: Use a logarithmic axis if the values spread by more than a factor of 5.
    """
    steps, values = np.array([p[0] for p in points], float), np.array([p[1] for p in points], float)
    finite = np.isfinite(values)
    steps, values = steps[finite], values[finite]
    half = values.size // 40
    if log and values.size and values.min() > 0 and values.max() > 5 * values.min():
        axes.set_yscale("log")
    else:
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 5))
    if smooth and half:
        axes.plot(steps, values, color=ACCENT_COLOR, alpha=0.25, linewidth=0.8)
        window = np.ones(2 * half + 1)
        values = np.convolve(values, window, "same") / np.convolve(np.ones(values.size), window, "same")
    axes.plot(steps, values, color=ACCENT_COLOR, linewidth=1.8, marker="o" if values.size == 1 else None)
    axes.set_title(title, fontsize=12, color=TEXT_COLOR, loc="left", fontweight="bold", pad=14)
    axes.set_xlabel("step", fontsize=10, color=SECONDARY_COLOR)
    axes.locator_params(axis="x", nbins=5)  # more ticks would touch where steps have five digits
    axes.tick_params(colors=SECONDARY_COLOR, labelsize=9, which="both")
    axes.grid(True, color="#e6e9ed", linewidth=0.7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#c4cbd3")
