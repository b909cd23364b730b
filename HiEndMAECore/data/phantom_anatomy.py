"""The anatomy of a digital patient: organs are painted from the outside inwards, a later one replaces an earlier one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from .phantom_shapes import (
    Array,
    Point,
    ellipsoid,
    rod,
    rotate,
    rotation_matrix,
    smooth_intersection,
    smooth_union,
    trunk_section,
)
from .phantom_structures import AORTA, LEFT_KIDNEY, LIVER, PHANTOM_STRUCTURES, RIGHT_KIDNEY, SPINE, SPLEEN, STOMACH


class PatientPainter:
    """Paints one patient.

    The coordinates x (to the patient's right), y (anterior) and z (superior) are those of the standard patient in mm, arrays
    of the grid's shape (X, Y, Z); the origin is the middle of the abdomen.
    """

    def __init__(self, seed: int, shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
        self.rng = np.random.default_rng(seed)
        self.spacing = spacing
        self.axes = [((np.arange(n) - (n - 1) / 2) * s).astype(np.float32) for n, s in zip(shape, spacing)]
        self.edge = float(np.mean(spacing))  # partial volume: a border is blurred over about one voxel
        self.hu = np.full(shape, -1000.0, np.float32)
        self.labels = np.zeros(shape, np.uint8)
        self.world: Point = tuple(np.meshgrid(*self.axes, indexing="ij"))  # type: ignore[assignment]
        self.x, self.y, self.z = self._into_standard_patient()

    def uniform(self, low: float, high: float) -> float:
        """Draw a number."""
        return float(self.rng.uniform(low, high))

    def field(self, wavelength: float) -> Array:
        """Draw a smooth random field of mean 0 and standard deviation about 1.

        It is made of cubic B-splines on a lattice that is fixed in mm, so that the anatomy does not depend on the grid (within
        300 mm of the center).
        """
        step = wavelength / 2
        knots = np.arange(-int(300 / step) - 2, int(300 / step) + 3)
        values = self.rng.standard_normal((knots.size,) * 3).astype(np.float32)
        for axis in self.axes:
            t = np.abs(axis[:, None] / step - knots[None])
            basis = np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.where(t < 2, (2 - t) ** 3 / 6, 0)).astype(np.float32)
            values = np.tensordot(values, basis, axes=(0, 1))  # contracts the first axis, appends the new one
        return values * np.float32(2.6)  # a sum of splines is quieter than its coefficients

    def _into_standard_patient(self) -> Point:
        """Map world mm to standard patient mm: position and tilt on the table, build, and a smooth deformation."""
        shift = np.array([self.uniform(-14, 14), self.uniform(-16, 16), self.uniform(-38, 38)])
        turn = rotation_matrix(self.uniform(-7, 7), self.uniform(-7, 7), self.uniform(-11, 11))
        self.build = np.array([self.uniform(0.9, 1.1), self.uniform(0.9, 1.14), self.uniform(0.88, 1.12)])
        matrix = (turn / self.build).T.astype(np.float32)
        moved = [w - np.float32(s) + self.field(150) * np.float32(5) for w, s in zip(self.world, shift)]
        return tuple(sum(m * c for m, c in zip(row, moved)) for row in matrix)  # type: ignore[return-value]

    def frame(self, center: Sequence[float], *, wander: float = 10, stretch: float = 0.14, turn: float = 12) -> Point:
        """Return coordinates around an organ, displaced at random: `wander` mm, `stretch` of its size, `turn` degrees."""
        c = [value + self.uniform(-wander, wander) for value in center]
        size = self.uniform(1 - stretch, 1 + stretch)
        scale = [size * self.uniform(1 - stretch / 2, 1 + stretch / 2) for _ in range(3)]
        matrix = rotation_matrix(*(self.uniform(-turn, turn) for _ in range(3))).T / np.array(scale)[:, None]
        moved = [p - np.float32(v) for p, v in zip((self.x, self.y, self.z), c)]
        return tuple(sum(np.float32(m) * q for m, q in zip(row, moved)) for row in matrix)  # type: ignore[return-value]

    def paint(self, distance: Array, hu: Array | float, label: int | None = 0) -> None:
        """Fill the inside (distance < 0, in mm) with `hu`, blended at the border; label None keeps the labels."""
        cover = np.clip(0.5 - distance / (1.2 * self.edge), 0, 1)
        self.hu += cover * (hu - self.hu)
        if label is not None:
            self.labels[distance < 0] = label

    def hollow(self, distance: Array, level: float, *, wall: float, fluid: Array | float, label: int = 0) -> None:
        """Paint a hollow organ of a supine patient: enhancing wall of 3 mm, fluid, and gas above a level (world y, mm)."""
        self.paint(distance, wall, label)
        self.paint(distance + 3, fluid, None)
        self.paint(np.maximum(distance + 3, level - self.world[1]), -960, None)

    def patient(self) -> tuple[Array, Array]:
        """Paint all organs and return HU (X, Y, Z) float32 and labels (X, Y, Z) uint8."""
        self.phase = self.uniform(0.2, 1)  # 0 arterial, 1 portal venous
        self.grain = self.field(9)  # tissue texture, shared by all organs in different strength
        self.place_spine()
        spaces = [self.perirenal_space(side) for side in (1, -1)]
        spinal = np.hypot(*self.spine_uv) - 36
        self.retroperitoneum = np.minimum.reduce([spinal, *(fat for _, fat in spaces)])  # no other organ lies there
        self.trunk()
        self.bowel()
        self.chest()
        self.stomach()
        self.liver()
        self.spleen()
        self.kidney(RIGHT_KIDNEY, spaces[0][0])
        self.kidney(LEFT_KIDNEY, spaces[1][0])
        self.vessels()
        self.remove_fragments()
        self.spine()
        return self.scanned(), self.labels

    def by_phase(self, arterial: float, portal: float) -> float:
        """Return HU between the two contrast phases, with a random part for each patient."""
        return arterial + (portal - arterial) * self.phase + self.uniform(-6, 6)

    def place_spine(self) -> None:
        """Choose coordinates (u right, v anterior) around the middle of the vertebral bodies, and the girth of these."""
        curve, lordosis = self.uniform(-9, 9), self.uniform(-5, 8)
        u = self.x - curve * np.sin(self.z / 70 + self.uniform(0, 3))
        self.spine_uv = u, self.y + 46 - lordosis * np.cos(self.z / 75)
        self.girth = self.uniform(0.88, 1.12)

    def trunk(self) -> None:
        """Paint table, skin, subcutaneous fat, muscle wall and its fat planes, visceral fat, back and psoas muscles, ribs."""
        x, y, z, rng = self.x, self.y, self.z, self.uniform
        taper = 1 + 0.0004 * z - 0.0000035 * (z - 40) ** 2
        self.wall = trunk_section(x / taper, y / taper, 136, 96)
        self.cavity = trunk_section(x / taper, (y - 4) / taper, 122, 80)
        fat = rng(6, 24)
        thickness = 1 - 0.35 * np.clip(y / 90, -1, 1)  # fat is thicker behind and at the flanks than in front
        body = self.wall - fat * thickness * (1 + 0.15 * self.field(160))
        body = np.maximum(body, 8 - np.hypot(x, y + 104 + fat * 1.3))  # the furrow of the back
        bed = self.world[1] - 0.0009 * self.world[0] ** 2
        bed -= bed[body < 0].min() + 3
        self.paint(np.maximum(np.abs(bed + 10) - 10, np.abs(self.world[0]) - 190), -870)
        for surface in (1, 20):
            self.paint(np.maximum(np.abs(bed + surface) - 1.2, np.abs(self.world[0]) - 190), 60)
        self.paint(body, 10)
        self.paint(body + 2.5, -106 + 5 * self.grain)
        self.muscle = 58 + 9 * self.grain
        self.paint(self.wall, self.muscle)
        self.paint(np.maximum(np.abs(self.wall + 4.5) - 0.7, -y - 60), -60)
        self.paint(np.maximum(np.abs(self.wall + 9.5) - 0.6, -y - 60), -50)
        self.paint(np.hypot(x, y - 92) - 5, -40)  # linea alba
        self.paint(self.cavity, -104 + 6 * self.grain)
        back_muscle = np.minimum(*(ellipsoid((x - s * 33, y + 76, z * 0), (29, 19, 1)) for s in (-1, 1)))
        self.paint(np.maximum(back_muscle - 1.5, self.wall + 2), -30)
        self.paint(np.maximum(back_muscle, self.wall + 2), self.muscle - 6)
        down = np.clip(20 - z, 0, 150)
        for side in (-1, 1):
            thick = 5 + 0.16 * down
            psoas = np.hypot((x - side * (34 + 0.12 * down)) / 0.9, y + 44) - thick
            self.paint(np.maximum(psoas, z - 20), self.muscle)
        slope = z + 0.55 * y + 8 * np.cos(x / 60)  # ribs run downwards to the front
        pitch, start = rng(25, 30), rng(-42, -22)
        phase = np.mod(slope - start, pitch) - pitch / 2
        rib = np.hypot((self.wall + 7) * 1.15, phase * 0.72) - 4.6
        limits = np.maximum.reduce([start - slope, y - 72 - 0.25 * z, 24 - np.abs(x), y - 0.9 * z - 40])
        self.paint(np.maximum(rib, limits), np.where(y > 52, 130, 520))
        self.paint(np.maximum(rib + 2.6, limits), np.where(y > 52, 110, 220))

    def bowel(self) -> None:
        """Paint unlabelled structures: small bowel loops, colon with gas and feces, mesenteric vessels, pancreas."""
        x, y, z, rng = self.x, self.y, self.z, self.uniform
        region = np.maximum.reduce([self.cavity + 6, z - 10 - 0.3 * y, -y - 8])
        a, b = self.field(56), self.field(56)
        loops = (np.sqrt(a**2 + b**2) - 0.82) * 17  # the lines where two random fields vanish are winding tubes
        self.hollow(np.maximum(loops, region), 62, wall=self.by_phase(80, 105), fluid=22 + 14 * self.field(30))
        vessels = (np.sqrt(self.field(44) ** 2 + (a - 1.0) ** 2) - 0.16) * 16
        self.paint(np.maximum(vessels, region - 6), self.by_phase(150, 150))
        haustra = 1 + 0.16 * np.cos(z / 4.5) * np.cos(x / 4.5)
        feces = np.clip(-120 + 190 * self.field(11), -700, 70)
        for side, top in ((1, -22), (-1, 20)):
            cx, cy = side * rng(92, 102), rng(-38, -12)
            tube = np.hypot(x - cx - 5 * np.sin(z / 20), (y - cy)) - rng(15, 20) * haustra
            tube = np.maximum(smooth_intersection(tube, z - top - rng(-8, 8), 10), self.cavity + 2)
            self.hollow(tube, cy + rng(0, 25), wall=75, fluid=feces)
        sag = rng(-40, -12) + 0.0022 * x**2
        transverse = np.hypot(z - sag, y - 58 + 0.002 * x**2) - rng(14, 18) * haustra
        transverse = np.maximum.reduce([transverse, np.abs(x) - 92, self.cavity + 2])
        self.hollow(transverse, rng(48, 64), wall=75, fluid=feces)
        u, v, w = self.frame((0, 8, -4), wander=8)
        gland = np.hypot(v - 10 * np.cos(u / 34), w + 0.2 * u) - 11 + 1.6 * self.grain + 0.0016 * u**2
        self.paint(np.maximum(gland, np.abs(u) - 62), self.by_phase(110, 98) + 12 * self.grain)

    def chest(self) -> None:
        """Paint lungs above the two domes of the diaphragm, their vessels, mediastinum, heart, esophagus."""
        x, y, z, rng = self.x, self.y, self.z, self.uniform
        domes = []
        for side, height in ((1, rng(66, 88)), (-1, rng(56, 78))):
            u, v = (x - side * 62) / 66, (y - 8) / 78
            domes.append(height - 46 * (u**2 + v**2) - 16 * np.clip(-v, 0, 2) ** 2)
        self.dome = smooth_intersection(domes[0], domes[1], 14)
        self.below = z - self.dome + 2.5  # negative inside the abdomen
        mediastinum = ellipsoid((x + 2, y + 6, z * 0), (30, 92, 1))
        mediastinum = np.minimum(mediastinum, ellipsoid((x, y + 84, z * 0), (52, 32, 1)))  # beside the spine
        chest = np.maximum(self.cavity + 1, self.dome - z)
        self.paint(np.maximum(self.cavity, self.dome - 3.5 - z), self.muscle)  # diaphragm and chest wall lining
        self.paint(chest, -90)
        lung = smooth_intersection(chest, -mediastinum, 6)
        u, v, w = self.frame((-26, 34, 116), wander=8, stretch=0.1)
        heart = ellipsoid((u, v, w), (56, 44, 46))
        lung = np.maximum(lung, 6 - heart)
        air = -850 - 0.5 * (y - 20) + 22 * self.grain
        self.paint(lung, air)
        branches = (np.sqrt(self.field(56) ** 2 + self.field(56) ** 2) - 0.13) * 24
        twigs = (np.sqrt(self.field(30) ** 2 + self.field(30) ** 2) - 0.12) * 12
        self.paint(np.maximum(branches, lung + 3), 20, None)
        self.paint(np.maximum(twigs, lung + 4), -330, None)
        above = self.dome + 1 - z
        self.paint(np.maximum(heart, above), 75)
        chamber = np.minimum(ellipsoid((u + 18, v + 4, w), (26, 26, 34)), ellipsoid((u - 22, v - 4, w), (24, 28, 34)))
        self.paint(np.maximum(chamber, above), self.by_phase(250, 150))
        esophagus = np.hypot((x + 4) / 1.3, y + 6) - 6
        self.paint(np.maximum(esophagus, 50 - z), 50)

    def stomach(self) -> None:
        """Paint fundus, body and antrum with their contents."""
        u, v, w = self.frame((-58, 14, 28), wander=9, turn=14)
        fundus = ellipsoid((u + 6, v + 8, w - 16), (38, 40, 34))
        body = ellipsoid(rotate((u - 10, v - 26, w + 12), 25, 0, -30), (25, 24, 46))
        antrum = ellipsoid((u - 46, v - 30, w + 34), (34, 17, 17))
        bag = smooth_union(smooth_union(fundus, body, 12), antrum, 10) + 1.2 * self.field(40)
        bag = np.maximum.reduce([smooth_intersection(bag, 2 - self.retroperitoneum, 6), self.cavity + 3, self.below])
        inside = self.world[1][bag < 0]
        level = float(np.quantile(inside, self.uniform(0.6, 0.9))) if inside.size else 0.0
        self.paint(bag - 3, -104)
        meal = self.uniform(5, 45) + 14 * self.field(14)
        self.hollow(bag, level, wall=self.by_phase(95, 110), fluid=meal, label=STOMACH)

    def liver(self) -> None:
        """Paint both lobes, portal and hepatic veins, and the gallbladder."""
        u, v, w = self.frame((70, 4, 22), wander=9, stretch=0.12, turn=9)
        right = ellipsoid((u, v, w), (73, 88, 86))
        left = ellipsoid(rotate((u + 66, v - 34, w - 20), 0, 18, -8), (72, 44, 36))
        liver = smooth_union(right, left, 16)
        hollow_below = ellipsoid((u + 50, v + 6, w + 64), (68, 62, 56))  # the visceral surface
        liver = smooth_intersection(liver, -hollow_below, 10) + 1.5 * self.field(60)
        liver = smooth_intersection(liver, -self.retroperitoneum, 8)
        liver = np.maximum.reduce([smooth_intersection(liver, self.cavity + 3, 4), self.below])
        tissue = self.by_phase(76, 114)
        self.paint(liver - 2, -95)
        self.paint(liver, tissue + 7 * self.grain, LIVER)
        portal = np.minimum(
            rod((u, v, w), (-46, -8, -12), (2, -2, 4), 6.5), rod((u, v, w), (2, -2, 4), (34, -22, 14), 4.5)
        )
        portal = np.minimum(portal, rod((u, v, w), (2, -2, 4), (26, 34, 8), 4.5))
        portal = np.minimum(portal, rod((u, v, w), (-22, -4, -2), (-62, 40, 22), 4.5))
        veins = [rod((u, v, w), (-34, -38, 48), end, 4.5) for end in ((38, -34, 20), (16, 38, 26), (-56, 26, 34))]
        twigs = (np.sqrt(self.field(50) ** 2 + self.field(50) ** 2) - 0.11) * 20
        self.paint(np.maximum(np.minimum(portal, twigs), liver + 5), tissue + 12 + 38 * self.phase, None)
        self.paint(np.maximum(np.minimum.reduce(veins), liver + 4), tissue - 14 + 62 * self.phase, None)
        bladder = ellipsoid(rotate((u + 24, v - 38, w + 36), -25, 15, 0), (15, 15, 30))
        self.paint(np.maximum(bladder, self.cavity + 4), 60)
        self.paint(np.maximum(bladder + 1.5, self.cavity + 5), 8)

    def spleen(self) -> None:
        """Paint the spleen, mottled in the arterial phase."""
        u, v, w = self.frame((-92, -32, 34), wander=9, stretch=0.16, turn=14)
        body = ellipsoid(rotate((u, v, w), 18, 12, 14), (38, 52, 56))
        spleen = smooth_intersection(body, -ellipsoid((u - 42, v - 18, w + 2), (28, 42, 48)), 7)
        spleen = smooth_intersection(spleen, -self.retroperitoneum, 8)
        spleen = np.maximum.reduce([smooth_intersection(spleen, self.cavity + 3, 4), self.below]) + 0.8 * self.field(40)
        stripes = (1 - self.phase) * 16 * np.sin(2.2 * self.field(32))  # arterial-phase mottling
        self.paint(spleen - 2.5, -100)
        self.paint(spleen, self.by_phase(118, 126) + 5 * self.grain + stripes, SPLEEN)

    def perirenal_space(self, side: int) -> tuple[Point, Array]:
        """Return coordinates of a kidney (u lateral, v anterior, w superior) and the distance to the fat around it."""
        u, v, w = self.frame((side * 62, -34, -22 if side > 0 else -6), wander=9, stretch=0.12, turn=9)
        u, v, w = rotate((side * u, v, w), 12, -10, 24)  # upper pole medial and behind, hilum forward
        return (u, v, w), ellipsoid((u + 4, v + 24, w), (34, 52, 60))

    def kidney(self, label: int, coordinates: Point) -> None:
        """Paint cortex, medulla with columns, sinus fat, pelvis and vessels; the label has neither sinus nor pelvis."""
        u, v, w = coordinates
        bean = ellipsoid((u, v, w), (27, 25, 52))
        kidney = smooth_intersection(bean, -ellipsoid((u + 24, v, w), (17, 13, 21)), 5) + 0.9 * self.field(34)
        self.paint(kidney - 6, -106)  # perirenal fat
        self.paint(kidney, self.by_phase(205, 190) + 8 * self.grain, label)
        columns = 1.8 * np.cos(w / 5) * np.cos(v / 5)
        self.paint(kidney + 7 + columns, self.by_phase(95, 172) + 8 * self.grain, None)
        sinus = ellipsoid((u + 10, v, w), (15, 9, 26))
        self.paint(sinus, -70 + 20 * self.grain)
        self.paint(rod(coordinates, (-4, 0, 4), (-28, 2, -8), 5.5), 14)
        vessel = rod(coordinates, (-12, 1, 2), (-54, 7, 6), 3.6)
        self.paint(np.maximum(vessel, -bean - 14), self.by_phase(130, 160))

    def vessels(self) -> None:
        """Paint the vena cava, and the aorta with the celiac and mesenteric trunks (the branches are not labelled)."""
        x, y, z, rng = self.x, self.y, self.z, self.uniform
        cx, cy = rng(18, 28), rng(-20, -10)
        cava = np.hypot((x - cx - 4 * np.sin(z / 50)) / 1.25, y - cy - 0.1 * np.clip(z, 0, 90)) - rng(8.5, 11)
        self.paint(np.maximum(cava, z - 88), self.by_phase(85, 150))
        radius = rng(9.5, 13) * (1 + 0.0008 * np.clip(z, -140, 140))
        u, v = self.spine_uv  # the aorta lies on the spine, higher up to its left
        high = np.clip(z - 10, 0, 140)
        u = u + rng(4, 16) + rng(-6, 6) * np.sin(z / 55) + 0.10 * high
        v = v - 17 * self.girth - radius - rng(2, 5) + 0.12 * high
        lumen = self.by_phase(320, 170)
        for level, drop in ((rng(14, 24), 0.35), (rng(-6, 6), 1.1)):
            branch = np.hypot(u, z - level + drop * np.clip(v, 0, 34)) - 3.6
            self.paint(np.maximum(branch, np.abs(v - 17) - 17), lumen - 30)
        self.paint(np.hypot(u, v) - radius - 2, -80)
        self.paint(np.hypot(u, v) - radius, lumen, AORTA)

    def spine(self) -> None:
        """Paint vertebral bodies with cortex and discs, arches, transverse and spinous processes, an unlabelled canal."""
        rng, z = self.uniform, self.z
        u, v = (c / self.girth for c in self.spine_uv)
        pitch = rng(29, 34)
        level = np.mod(z - rng(0, pitch), pitch) - pitch / 2  # 0 mid-vertebra, +- pitch/2 mid-disc
        column = ellipsoid((u, v, z * 0), (22.5, 18, 1)) - 0.5 + 2.2 * np.cos(level / pitch * 2 * np.pi)  # waisted
        column = smooth_intersection(column, -np.hypot(u, v + 25) + 9.5, 3)
        bone = smooth_intersection(column, np.abs(level) - pitch / 2 + 4.2, 2)
        ring = (np.hypot(u, v + 24) + np.maximum(0.87 * np.abs(u) - 0.5 * (v + 24), v + 24)) / 2 + 1.5
        arch = np.maximum(np.abs(ring - 12.5) - 3.6, np.abs(level + 2) - 10)
        spinous = np.maximum.reduce([np.abs(u) - 3.9, np.abs(level + 4 - 0.35 * (v + 40)) - 9, -v - 62, v + 34])
        transverse = np.hypot(v + 21 + 0.14 * np.abs(u), level - 1) - 6 + 0.03 * np.abs(u)
        transverse = np.maximum.reduce([transverse, np.abs(u) - 38, 9 - np.abs(u)])
        canal = np.hypot(u, (v + 25) * 1.1) - 9
        processes = np.maximum(np.minimum.reduce([arch, spinous, transverse]), -canal)
        self.paint(column - 1.5, -70)
        self.paint(column, 88 + 5 * self.grain, SPINE)
        self.paint(processes, 430, SPINE)
        self.paint(processes + 2.6, 300, None)
        self.paint(bone, 430, SPINE)
        self.paint(bone + 2.4, rng(140, 210) + 26 * self.grain, None)
        self.paint(canal, -20)
        self.paint(canal + 3, 38)

    def remove_fragments(self) -> None:
        """Turn pieces that a neighbor cut off an organ to fat."""
        for structure in PHANTOM_STRUCTURES:
            pieces, count = ndimage.label(self.labels == structure.value)
            if count > 1:
                fragments = (pieces > 0) & (pieces != np.bincount(pieces.ravel())[1:].argmax() + 1)
                self.hu[fragments], self.labels[fragments] = -100, 0

    def scanned(self) -> Array:
        """Return the image with the point spread and in-plane noise of a scanner, in whole HU from -1024."""
        blur = [0.45 * 3.0 / s for s in self.spacing]
        noise = ndimage.gaussian_filter(self.rng.standard_normal(self.hu.shape, dtype=np.float32), (0.75, 0.75, 0.4))
        noise *= self.uniform(9, 15) / noise.std()
        hu = ndimage.gaussian_filter(self.hu, blur) + noise
        return np.clip(np.round(hu), -1024, 3071).astype(np.float32)
