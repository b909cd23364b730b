"""Signed distance functions of the shapes that digital patients are drawn from: negative inside, in mm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Array = np.ndarray
Point = tuple[Array, Array, Array]


def ellipsoid(p: Point, radii: Sequence[float]) -> Array:
    """Return the distance to an ellipsoid around the origin, exact to first order at its surface."""
    scaled = [q / np.float32(r) for q, r in zip(p, radii)]
    k = np.sqrt(sum(q * q for q in scaled))
    slope = np.sqrt(sum((q / np.float32(r)) ** 2 for q, r in zip(scaled, radii)))
    return k * (k - 1) / np.maximum(slope, np.float32(1e-6))


def trunk_section(x: Array, y: Array, half_width: float, half_depth: float) -> Array:
    """Return the distance to the cross-section of the trunk, a superellipse that is fuller at the flanks than an ellipse."""
    k = (np.abs(x / half_width) ** 2.5 + np.abs(y / half_depth) ** 2.5) ** 0.4
    return (k - 1) * np.float32(half_depth) * (1 + 0.3 * np.abs(x) / half_width)


def rod(p: Point, start: Sequence[float], end: Sequence[float], radius: float) -> Array:
    """Return the distance to a rod with round ends."""
    a, d = np.array(start, np.float32), np.array(end, np.float32) - np.array(start, np.float32)
    moved = [q - c for q, c in zip(p, a)]
    t = np.clip(sum(m * c for m, c in zip(moved, d)) / float(d @ d), 0, 1)
    return np.sqrt(sum((m - t * c) ** 2 for m, c in zip(moved, d))) - radius


def smooth_union(a: Array, b: Array, rounding: float) -> Array:
    """Return the union of two shapes with a fillet of about `rounding` mm."""
    h = np.clip(rounding - np.abs(a - b), 0, None) / rounding
    return np.minimum(a, b) - h * h * (rounding / 4)


def smooth_intersection(a: Array, b: Array, rounding: float) -> Array:
    """Return the intersection of two shapes with a fillet of about `rounding` mm."""
    return -smooth_union(-a, -b, rounding)


def rotation_matrix(about_x: float, about_y: float, about_z: float) -> Array:
    """Return the rotation matrix (3, 3) for angles in degrees."""
    (a, b, c), (d, e, f) = (fn(np.radians([about_x, about_y, about_z])) for fn in (np.cos, np.sin))
    rx, ry = np.array([[1, 0, 0], [0, a, -d], [0, d, a]]), np.array([[b, 0, e], [0, 1, 0], [-e, 0, b]])
    return np.array([[c, -f, 0], [f, c, 0], [0, 0, 1]]) @ ry @ rx


def rotate(p: Point, about_x: float, about_y: float, about_z: float) -> Point:
    """Return coordinates in a frame that is rotated by these angles in degrees."""
    matrix = rotation_matrix(about_x, about_y, about_z).T.astype(np.float32)
    return tuple(sum(m * q for m, q in zip(row, p)) for row in matrix)  # type: ignore[return-value]
