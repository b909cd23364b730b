"""Laterality: which structures are mirror images of each other, and whether a mirrored scan is still a possible patient.

Both are decided by names (`kidney_left`, `LeftParotid`, `Parotid_L`) and by the position of structures about the midsagittal
plane of the body. The first axis of arrays is the right-left direction of the patient, as on the network's grid.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

_SIDE_OF_WORD = {
    **dict.fromkeys(("left", "l", "lt", "sin", "sinister", "links", "linke", "linker", "linkes"), "left"),
    **dict.fromkeys(("right", "r", "rt", "dex", "dexter", "rechts", "rechte", "rechter", "rechtes"), "right"),
    **dict.fromkeys(("gauche", "izquierdo", "izquierda", "sinistro", "sinistra", "esquerdo", "esquerda"), "left"),
    **dict.fromkeys(("droit", "droite", "derecho", "derecha", "destro", "destra", "direito", "direita"), "right"),
}
_SHORT_SIDES = {"l", "r", "lt", "rt", "sin", "dex"}  # these are a side only as the first or last part of a name
_ONE_SIDED_ORGANS = {"liver", "spleen", "heart", "stomach", "gallbladder", "pancreas", "duodenum", "colon", "appendix"}
_NAME_PARTS = re.compile(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|[^\W_]+")
_MIN_CORRELATION = 0.5  # correlation of a scan with its mirror image from which on it has a midsagittal plane
_GENERIC_NAME = re.compile(
    r"(structure|segment|label|region|roi|class|object|mask|organ)?[\W_]*(\d+|[a-z])?", re.IGNORECASE
)
# Short words for directions other than left and right: two names that differ in them are no pair.
_OTHER_DIRECTIONS = ("med", "lat", "in", "out", "inn", "ext", "int", "inf", "sup", "ant", "pos", "up", "low", "top")
_MAX_MEAN_DIFFERENCE = 0.1  # of the intensity range: the means of a pair differ by less (42 HU on CT)
_OFF_MIDLINE = 0.04  # of the body's width: a center further from the midsagittal plane is clearly off it
_MIN_OVERLAP = 0.15  # Dice of one structure's mirror image with the other of a pair
_MAX_SIZE_RATIO = 2.5  # one structure of a pair is at most this many times as large as the other
_SEARCH_VOXELS = 64  # the plane is searched on a grid of about this many voxels along an axis


def split_side(name: str) -> tuple[str, str]:
    """Split the side from the name of a structure.

    A side is a whole part of the name or its beginning: `L5` is a vertebra, and `cleft` has no side.

    Args:
        name: The name, in one of several languages and spellings.

    Returns:
        The side ("left", "right" or "") and the rest in lower case: `LeftParotid` gives ("left", "parotid").
    """
    parts = [part.lower() for part in _NAME_PARTS.findall(name)]
    for index, part in enumerate(parts):
        if part in _SIDE_OF_WORD and (part not in _SHORT_SIDES or (len(parts) > 1 and index in (0, len(parts) - 1))):
            return _SIDE_OF_WORD[part], " ".join(parts[:index] + parts[index + 1 :])
    for side in ("left", "right"):
        if parts and parts[0].startswith(side) and len(parts[0]) > len(side) + 2:
            return side, " ".join([parts[0][len(side) :], *parts[1:]])
    return "", " ".join(parts)


def names_with_side(names: Iterable[str]) -> list[str]:
    """Return the names that contain a side."""
    return [name for name in names if split_side(name)[0]]


def lateral_pairs(names: Sequence[str]) -> list[tuple[int, int]]:
    """Return the indices (left, right) of names that are equal except for the side."""
    indices: dict[tuple[str, str], int] = {}
    for index, name in enumerate(names):
        indices.setdefault(split_side(name), index)
    lefts = [(index, rest) for (side, rest), index in indices.items() if side == "left"]
    return [(index, indices["right", rest]) for index, rest in lefts if ("right", rest) in indices]


def may_be_pair(one: str, other: str) -> bool:
    """Return whether two names may belong to the left and right structure of one organ.

    They may when both are generic (`Segment_1`), or differ in one short part that may be a side in another language. Names
    such as `aorta` and `IVC`, or medial and lateral parts, may not.

    Args:
        one: Name of a structure.
        other: Name of another structure.
    """
    if _GENERIC_NAME.fullmatch(one) and _GENERIC_NAME.fullmatch(other):
        return True
    parts = [[part.lower() for part in _NAME_PARTS.findall(name)] for name in (one, other)]
    if len(parts[0]) != len(parts[1]) or len(parts[0]) < 2:
        return False
    different = [pair for pair in zip(*parts) if pair[0] != pair[1]]
    return len(different) == 1 and all(
        part.isalpha() and len(part) <= 3 and part not in _OTHER_DIRECTIONS for part in different[0]
    )


@dataclass(frozen=True)
class Mirroring:
    """Whether crops may be mirrored from right to left, and which classes are exchanged then.

    Attributes:
        allowed: Whether crops may be mirrored.
        swaps: Pairs of classes to exchange, 1 for the first structure.
        reason: One sentence for the log.
    """

    allowed: bool
    swaps: tuple[tuple[int, int], ...]
    reason: str


def decide_mirroring(names: Sequence[str], scans: Sequence[tuple[np.ndarray, np.ndarray]]) -> Mirroring:
    """Decide whether crops of labelled scans may be mirrored.

    A structure on one side alone forbids it, because no patient has, for example, the liver on the left. So does a scan
    without a recognizable midsagittal plane, because the sides of its structures are unknown.

    Args:
        names: Names of the classes 1 to K.
        scans: Image (H, W, D) and classes (H, W, D) of every labelled scan.

    Returns:
        The decision, with the pairs of classes to exchange.
    """
    for name in names:
        side, rest = split_side(name)
        if not side and set(rest.split()) & _ONE_SIDED_ORGANS:
            return Mirroring(False, (), f"off: '{name}' lies on one side of the body")
    pairs = lateral_pairs(names)
    paired = {index for pair in pairs for index in pair}
    unpaired = sorted({names.index(name) for name in names_with_side(names)} - paired)
    if unpaired:
        return Mirroring(False, (), f"off: '{names[unpaired[0]]}' is labelled on one side alone")
    bodies = []
    for image, classes in scans:
        body = _LateralPositions.measure(image, classes, len(names))
        if body is None:
            return Mirroring(False, (), "off: a scan shows no mid-plane of the body")
        bodies.append(body)
    return _decide_by_position(names, pairs, bodies)


def _decide_by_position(
    names: Sequence[str], pairs: list[tuple[int, int]], bodies: Sequence[_LateralPositions]
) -> Mirroring:
    """Check the pairs of names by their positions, and find pairs among the structures whose names contain no side."""
    for left, right in pairs:
        if not all(body.opposite(left, right) for body in bodies):
            return Mirroring(
                False, (), f"off: '{names[left]}' and '{names[right]}' are not mirror images of each other"
            )
    pairs = list(pairs)
    for index in range(len(names)):
        paired = {member for pair in pairs for member in pair}
        if index in paired or not any(body.off_midline(index) for body in bodies):
            continue
        partner = _find_partner(index, names, paired, bodies)
        if partner is None:
            return Mirroring(False, (), f"off: '{names[index]}' lies on one side of the body")
        pairs.append((index, partner))
    if not pairs:
        return Mirroring(True, (), "on: all structures lie in the middle of the body")
    exchanged = ", ".join(f"'{names[left]}' and '{names[right]}'" for left, right in pairs[:4])
    more = f" and {len(pairs) - 4} more pairs" if len(pairs) > 4 else ""
    return Mirroring(True, tuple((a + 1, b + 1) for a, b in pairs), f"flip and swap: {exchanged}{more} change places")


def _find_partner(
    index: int, names: Sequence[str], paired: set[int], bodies: Sequence[_LateralPositions]
) -> int | None:
    """Return the later structure that is the mirror image of this one in every scan; the best of several, None if none."""
    partners = [
        other
        for other in range(index + 1, len(names))
        if other not in paired
        and may_be_pair(names[index], names[other])
        and all(body.mirrored(index, other) for body in bodies)
    ]
    return max(partners, key=lambda other: sum(body.overlap(index, other) for body in bodies), default=None)


def midsagittal_plane(image: np.ndarray) -> float | None:
    """Find the midsagittal plane of a scan: the plane about which its mirror image correlates best with it.

    The plane is searched in the middle half of the first axis, at half voxels of a subsampled scan.

    Args:
        image: (H, W, D), the first axis along right-left.

    Returns:
        The position along the first axis in voxels; None when no position correlates enough.
    """
    steps = [max(1, n // _SEARCH_VOXELS) for n in image.shape]
    n = image.shape[0] // steps[0]
    thin = image[: n * steps[0]].reshape(n, steps[0], *image.shape[1:]).mean(1)[:, :: steps[1], :: steps[2]]
    best, plane = _MIN_CORRELATION, None
    for twice in range(n // 2, 3 * n // 2):  # twice the position of the plane, because it may lie between two voxels
        first, last = max(0, twice - n + 1), min(n - 1, twice)
        part = thin[first : last + 1]
        correlation = _correlation(part, part[::-1])
        if correlation > best:
            best, plane = correlation, (twice / 2 + 0.5) * steps[0] - 0.5
    return plane


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return the Pearson correlation of two arrays; 0 when one of them is constant."""
    a, b = one - one.mean(), other - other.mean()
    size = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / size if size > 0 else 0.0


class _LateralPositions:
    """Positions of the structures of one scan about its midsagittal plane.

    Attributes:
        width: Width of the body in voxels along the first axis.
        classes: Class of each voxel (H, W, D).
        plane: Position of the midsagittal plane in voxels along the first axis.
        voxels: Voxel indices (N, 3) of each structure.
        means: Mean intensity of each structure, NaN for one that is absent.
    """

    def __init__(self, image: np.ndarray, classes: np.ndarray, count: int, plane: float) -> None:
        body = np.flatnonzero((image > 0).any(axis=(1, 2)))
        self.width = float(body[-1] - body[0] + 1) if len(body) else float(len(image))
        self.classes, self.plane = classes, plane
        self.voxels = [np.argwhere(classes == value) for value in range(1, count + 1)]
        self.means = [float(image[tuple(index.T)].mean()) if len(index) else np.nan for index in self.voxels]

    @classmethod
    def measure(cls, image: np.ndarray, classes: np.ndarray, count: int) -> _LateralPositions | None:
        """Return the positions, or None when the scan has no recognizable midsagittal plane."""
        plane = midsagittal_plane(image)
        return None if plane is None else cls(image, classes, count, plane)

    def offset(self, index: int) -> float:
        """Return the distance in voxels from the plane to the center of a structure."""
        return float(self.voxels[index][:, 0].mean()) - self.plane if len(self.voxels[index]) else 0.0

    def off_midline(self, index: int) -> bool:
        """Return whether a structure is clearly on one side."""
        return abs(self.offset(index)) > _OFF_MIDLINE * self.width

    def opposite(self, one: int, other: int) -> bool:
        """Return whether two structures lie about equally far on either side, or one of them is not in this scan."""
        if not (len(self.voxels[one]) and len(self.voxels[other])):
            return True
        a, b = self.offset(one), self.offset(other)
        return abs(a + b) <= 0.5 * abs(a - b)

    def overlap(self, one: int, other: int) -> float:
        """Return the Dice of the mirror image of one structure with the other."""
        x, y, z = self.voxels[one].T
        mirrored = np.floor(2 * self.plane - x + 0.5).astype(int)
        inside = (mirrored >= 0) & (mirrored < len(self.classes))
        common = int((self.classes[mirrored[inside], y[inside], z[inside]] == other + 1).sum())
        return 2.0 * common / max(1, len(self.voxels[one]) + len(self.voxels[other]))

    def mirrored(self, one: int, other: int) -> bool:
        """Return whether two structures are mirror images; False when only one of them is in this scan."""
        sizes = sorted((len(self.voxels[one]), len(self.voxels[other])))
        return (
            sizes[0] > 0
            and sizes[1] <= _MAX_SIZE_RATIO * sizes[0]
            and abs(self.means[one] - self.means[other]) < _MAX_MEAN_DIFFERENCE
            and self.opposite(one, other)
            and self.overlap(one, other) >= _MIN_OVERLAP
        )
