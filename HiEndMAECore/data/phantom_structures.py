"""The structures of digital patients."""

from __future__ import annotations

from HiEndMAECore.io.structure import Structure

LIVER, SPLEEN, RIGHT_KIDNEY, LEFT_KIDNEY, STOMACH, AORTA, SPINE = range(1, 8)
PHANTOM_STRUCTURES: tuple[Structure, ...] = (
    Structure(LIVER, "liver", (221, 130, 80)),
    Structure(SPLEEN, "spleen", (176, 112, 204)),
    Structure(RIGHT_KIDNEY, "right kidney", (112, 196, 108)),
    Structure(LEFT_KIDNEY, "left kidney", (64, 190, 200)),
    Structure(STOMACH, "stomach", (244, 150, 190)),
    Structure(AORTA, "aorta", (232, 62, 54)),
    Structure(SPINE, "vertebral column", (241, 214, 120)),
)
