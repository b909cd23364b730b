"""Pictures of a run: what was segmented, how well, and how the training went (PNG, needs matplotlib).

Slices follow the radiological convention: the patient's right on the image's left, anterior or superior at the top,
sagittal slices looking to the image's left. Volumes here are NumPy arrays (X, Y, Z) in RAS order.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from HiEndMAECore.errors import InputError, MissingDependencyError

PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}
_LETTERS = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}  # left, right, top, bottom of the image
_INK, _QUIET, _ACCENT = "#1d2733", "#6b7785", "#2f6fb0"
_DPI = 120

Curve = Sequence[tuple[int, float]]


class Labelled(Protocol):
    """What a picture needs of a structure; `volumes.volume.Structure` has it."""

    @property
    def value(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def color(self) -> tuple[int, int, int]: ...


def draw_result(
    path: str | Path,
    *,
    image: np.ndarray,
    spacing: Sequence[float],
    truth: np.ndarray | None,
    prediction: np.ndarray,
    structures: Sequence[Labelled],
    losses: Curve = (),
    scores: Mapping[str, float | None] | None = None,
    title: str = "Segmentation",
    teacher: tuple[np.ndarray, np.ndarray] | None = None,
    teacher_spacing: Sequence[float] | None = None,
    window: tuple[float, float] = (-175.0, 250.0),
) -> None:
    """One picture, 1800 x 1100 pixels: slices through the result, Dice per structure, the fine-tuning's loss.

    image: (X, Y, Z) in the units of `window` (HU, or 0 to 1 when prepared); truth and prediction: label maps on its
        grid. spacing: voxel edges in mm.
    losses: (step, loss).
    scores: Dice by structure name, None where the reference does not label it. Without scores, volumes in ml.
    teacher: image and labels of the one labelled scan, drawn above the result; its voxels are `teacher_spacing` mm
        (None: as the result's).
    Errors: MissingDependencyError without matplotlib.
    """
    figure = _figure(15, 1100 / _DPI)
    _heading(figure, title)
    legend = "coloured: segmentation" + (", white line: reference" if truth is not None else "")
    if teacher is None:
        figure.text(0.016, 0.922, legend, fontsize=12, color=_QUIET, va="center")
        places = {"axial": (0.016, 0.465), "sagittal": (0.016, 0.02), "coronal": (0.369, 0.465), "": (0.369, 0.02)}
        size = (0.345, 0.435)
        _slice(
            figure, (*places.pop(""), *size), "axial", image, prediction, spacing, structures, truth, window, bare=True
        )
    else:
        places, size = {"axial": (0.016, 0.03), "coronal": (0.252, 0.03), "sagittal": (0.488, 0.03)}, (0.226, 0.405)
        figure.text(0.016, 0.916, "Learned from the one labelled scan", fontsize=12, color=_QUIET, va="center")
        figure.text(0.016, 0.459, f"Result on another scan ({legend})", fontsize=12, color=_QUIET, va="center")
        for plane, (left, _) in places.items():
            _slice(figure, (left, 0.49, *size), plane, *teacher, teacher_spacing or spacing, structures, None, window)
    for plane, corner in places.items():
        _slice(figure, (*corner, *size), plane, image, prediction, spacing, structures, truth, window)
    top = 0.90
    bottom = 0.40 if losses else max(0.03, top - 0.07 * (len(structures) + 2))
    voxel_ml = float(np.prod(spacing)) / 1000
    volumes = {s.name: float(np.count_nonzero(prediction == s.value)) * voxel_ml for s in structures}
    _score_bars(figure, (0.832, bottom, 0.112, top - bottom), structures, scores, volumes)
    if losses:
        axes = figure.add_axes((0.772, 0.075, 0.212, 0.235))
        _curve(axes, losses, "Fine-tuning loss", smooth=True, log=True)
    _save(figure, path)


def draw_progress(
    path: str | Path,
    *,
    losses: Curve,
    watched: Curve = (),
    rates: Curve = (),
    speeds: Curve = (),
    reconstructions: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]] = (),
    title: str = "Pretraining",
) -> None:
    """How pretraining goes: loss, learning rate and speed (crops per second) by step, and what the network paints into
    the masked patches.

    watched: (step, loss on the same crops each time), drawn over the loss.
    reconstructions: up to four (original, masked, reconstructed), each (rows, columns) in 0 to 1, turned as seen.
    Errors: MissingDependencyError without matplotlib.
    """
    rows = list(reconstructions)[:4]
    figure = _figure(15, 7.5)
    _heading(figure, title)
    right = 0.48 if rows else 0.97
    small = [(c, n) for c, n in ((rates, "Learning rate"), (speeds, "Crops per second")) if c]
    place = (0.05, 0.43, right - 0.05, 0.43) if small else (0.05, 0.10, right - 0.05, 0.76)
    axes = figure.add_axes(place)
    _curve(axes, losses, "Reconstruction loss", smooth=True, log=True)
    if watched:
        axes.plot(
            *zip(*watched), color=_INK, linewidth=1.4, marker="o", markersize=3, label="on the same crops each time"
        )
        axes.legend(frameon=False, fontsize=10, loc="upper right")
    width = (right - 0.05 * max(1, len(small))) / max(1, len(small))
    for i, (curve, name) in enumerate(small):
        place = (0.05 + i * (width + 0.05), 0.09, width, 0.21)
        _curve(figure.add_axes(place), curve, name, smooth=curve is speeds)
    height = 0.84 / max(2, len(rows))
    for i, row in enumerate(rows):
        for j, (picture, name) in enumerate(zip(row, ("original", "masked", "reconstructed"))):
            axes = figure.add_axes((0.52 + j * 0.157, 0.89 - (i + 1) * height, 0.152, height - 0.012))
            axes.set_facecolor("black")
            axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            _bare(axes)
            if i == 0:
                axes.set_title(name, fontsize=11, color=_QUIET)
    _save(figure, path)


def radiological_slice(volume: np.ndarray, plane: str, index: int) -> np.ndarray:
    """The slice `index` of a volume (X, Y, Z) in RAS order as an image (rows, columns), row 0 at the top."""
    return np.take(volume, index, axis=PLANES[plane]).T[::-1, ::-1]


def best_slice(labels: np.ndarray, plane: str, structures: Sequence[Labelled]) -> int:
    """The slice that shows most structures, each best where its section is largest; the middle one if there is none."""
    axis = PLANES[plane]
    steps = [max(1, n // 128) for n in labels.shape]
    steps[axis] = 1  # only thinned out within the slices
    thin = labels[tuple(slice(None, None, step) for step in steps)]
    others = tuple(a for a in range(3) if a != axis)
    seen = np.zeros(labels.shape[axis])
    for structure in structures:
        areas = np.count_nonzero(thin == structure.value, axis=others)
        seen += np.sqrt(areas / max(1, areas.max()))
    return int(seen.argmax()) if seen.any() else labels.shape[axis] // 2


def _figure(width: float, height: float) -> Any:
    """A light figure of that many inches, drawn without a display and without touching pyplot's state."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError.of("matplotlib", "to draw figures") from error
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: str | Path) -> None:
    """Written beside and renamed: whoever looks at `path` never sees half a picture."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(part, format="png", dpi=_DPI)
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        message = f"{path} cannot be written ({error.strerror})."
        raise InputError("output_unwritable", message, "Choose another place, or free some space.") from error


def _heading(figure: Any, title: str) -> None:
    size = 19 * min(1.0, 90 / max(1, len(title)))
    figure.text(0.016, 0.962, title, fontsize=size, fontweight="bold", color=_INK, va="center")


def _bare(axes: Any) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _slice(
    figure: Any,
    place: tuple[float, float, float, float],
    plane: str,
    image: np.ndarray,
    labels: np.ndarray,
    spacing: Sequence[float],
    structures: Sequence[Labelled],
    truth: np.ndarray | None,
    window: tuple[float, float],
    *,
    bare: bool = False,
) -> None:
    """One slice on a black panel: labels tinted and outlined in their colours, truth as a thin white line; `bare` is
    the same slice without either, to judge for oneself."""
    from matplotlib.patheffects import withStroke
    from scipy.ndimage import gaussian_filter

    _bare(figure.add_axes(place, facecolor="black"))  # stays black where the slice does not reach
    axes = figure.add_axes(place)
    index = best_slice(labels if truth is None else truth, plane, structures)
    picture = radiological_slice(image, plane, index)
    across, up = (spacing[a] for a in range(3) if a != PLANES[plane])
    height, width = picture.shape[0] * up, picture.shape[1] * across
    box = (0, width, height, 0)
    axes.imshow(picture, cmap="gray", vmin=window[0], vmax=window[1], extent=box, interpolation="bicubic")
    centers = ((np.arange(picture.shape[1]) + 0.5) * across, (np.arange(picture.shape[0]) + 0.5) * up)
    layers = [] if bare else [(labels, True)] + ([] if truth is None else [(truth, False)])
    for layer, tinted in layers:
        drawn = radiological_slice(layer, plane, index)
        for structure in structures:
            mask = gaussian_filter((drawn == structure.value).astype(np.float32), 0.5)  # no stairs in the outline
            if mask.max() <= 0.5:
                continue
            color = tuple(c / 255 for c in structure.color) if tinted else (1.0, 1.0, 1.0)
            if tinted:
                axes.contourf(*centers, mask, levels=[0.5, 2], colors=[color], alpha=0.36)
            axes.contour(*centers, mask, levels=[0.5], colors=[color], linewidths=1.6 if tinted else 0.9)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    _bare(axes)
    left, bottom, wide, high = place
    style = {"va": "center", "fontsize": 10, "path_effects": [withStroke(linewidth=2.5, foreground="black")]}
    for letter, (x, y) in zip(_LETTERS[plane], ((0.03, 0.5), (0.97, 0.5), (0.5, 0.965), (0.5, 0.035))):
        figure.text(left + x * wide, bottom + y * high, letter, color="#ffd866", ha="center", **style)
    name = f"{plane} {index}" + (" without the overlay" if bare else "")
    figure.text(left + 0.02 * wide, bottom + 0.035 * high, name, color="#c9d1d9", **style)


def _score_bars(
    figure: Any,
    place: tuple[float, float, float, float],
    structures: Sequence[Labelled],
    scores: Mapping[str, float | None] | None,
    volumes: Mapping[str, float],
) -> None:
    """The structures with their colours, and a bar for each: Dice if there are scores, else volume."""
    values = {s.name: (scores.get(s.name) if scores else volumes[s.name]) for s in structures}
    known = [v for v in values.values() if v is not None]
    longest = 1.0 if scores else max([*known, 1e-6])
    axes = figure.add_axes(place)
    size = min(11.0, 230 / max(1, len(structures)))
    for row, structure in enumerate(structures):
        value = values[structure.name]
        color = [c / 255 for c in structure.color]
        axes.barh(row, 1.0, height=0.5, color="#edf0f3")
        axes.barh(row, 0 if value is None else value / longest, height=0.5, color=color)
        axes.barh(row, 0.03, height=0.5, left=-0.06, color=color, clip_on=False)  # tells the colour of an empty bar too
        name = structure.name if len(structure.name) <= 22 else structure.name[:21] + "…"
        axes.text(-0.11, row, name, ha="right", va="center", fontsize=size, color=_INK)
        text = "n/a" if value is None else f"{value:.2f}" if scores else f"{value:.0f} ml"
        axes.text(1.05, row, text, ha="left", va="center", fontsize=size, color=_INK)
    heading = "Dice" if scores else "Volume"
    if scores and known:
        heading = f"Dice, mean {np.mean(known):.2f}"
    axes.text(1.05, -0.95, heading, ha="right", va="center", fontsize=13, fontweight="bold", color=_INK)
    axes.set_xlim(0, 1)
    axes.set_ylim(max(len(structures), 6) - 0.5, -1.2)
    _bare(axes)


def _curve(axes: Any, points: Curve, title: str, *, smooth: bool = False, log: bool = False) -> None:
    """Points (step, value) as a line; `smooth` adds a running mean over a twentieth of the run, `log` takes a
    logarithmic axis where values spread widely."""
    steps, values = np.array([p[0] for p in points], float), np.array([p[1] for p in points], float)
    sound = np.isfinite(values)
    steps, values = steps[sound], values[sound]
    half = values.size // 40
    if log and values.size and values.min() > 0 and values.max() > 5 * values.min():
        axes.set_yscale("log")
    else:
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 5))
    if smooth and half:
        axes.plot(steps, values, color=_ACCENT, alpha=0.25, linewidth=0.8)
        window = np.ones(2 * half + 1)
        values = np.convolve(values, window, "same") / np.convolve(np.ones(values.size), window, "same")
    axes.plot(steps, values, color=_ACCENT, linewidth=1.8, marker="o" if values.size == 1 else None)
    axes.set_title(title, fontsize=12, color=_INK, loc="left", fontweight="bold", pad=14)
    axes.set_xlabel("step", fontsize=10, color=_QUIET)
    axes.locator_params(axis="x", nbins=5)  # five-figure steps would touch
    axes.tick_params(colors=_QUIET, labelsize=9, which="both")
    axes.grid(True, color="#e6e9ed", linewidth=0.7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#c4cbd3")
