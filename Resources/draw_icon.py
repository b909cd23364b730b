"""Draws the icon of the extension and of its module: `python Resources/draw_icon.py` (needs PySide6).

The patches of a masked autoencoder, most of them hidden; where they are seen, an organ with its outline.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from PySide6.QtCore import QPointF, QRectF, Qt
from PySide6.QtGui import QBrush, QColor, QGuiApplication, QImage, QLinearGradient, QPainter, QPainterPath, QPen

REPOSITORY = Path(__file__).resolve().parents[1]
PLACES = ("Resources/HiEndMAE.png", "HiEndMAESegmentation/Resources/Icons/HiEndMAESegmentation.png")
SIZE, SCALE = 128, 4
SEEN = {(1, 1), (2, 1), (0, 2), (1, 2), (2, 2), (3, 2), (1, 3), (3, 0)}  # (column, row) of the patches that are shown


def organ() -> QPainterPath:
    """A kidney-like outline in the icon's 128 units."""
    path = QPainterPath(QPointF(46, 30))
    path.cubicTo(72, 14, 104, 34, 104, 66)
    path.cubicTo(104, 98, 78, 116, 54, 106)
    path.cubicTo(36, 98, 42, 84, 52, 76)
    path.cubicTo(62, 68, 60, 60, 48, 54)
    path.cubicTo(34, 48, 34, 38, 46, 30)
    path.closeSubpath()
    return path


def draw() -> QImage:
    """The icon, drawn large and scaled down."""
    image = QImage(SIZE * SCALE, SIZE * SCALE, QImage.Format.Format_ARGB32_Premultiplied)
    image.fill(Qt.GlobalColor.transparent)
    painter = QPainter(image)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    painter.scale(SCALE, SCALE)
    frame = QPainterPath()
    frame.addRoundedRect(QRectF(3, 3, 122, 122), 20, 20)
    ground = QLinearGradient(0, 0, 128, 128)
    ground.setColorAt(0, QColor("#16324f"))
    ground.setColorAt(1, QColor("#0b1c30"))
    painter.fillPath(frame, QBrush(ground))
    painter.setClipPath(frame)
    shape = organ()
    edge, gap, first = 26.0, 3.0, 7.5
    for column in range(4):
        for row in range(4):
            place = QRectF(first + column * (edge + gap), first + row * (edge + gap), edge, edge)
            patch = QPainterPath()
            patch.addRoundedRect(place, 4, 4)
            painter.fillPath(patch, QColor("#31506f") if (column, row) in SEEN else QColor("#1d3753"))
            if (column, row) in SEEN:
                painter.fillPath(patch.intersected(shape), QColor("#ff8f5a"))
    painter.setPen(
        QPen(QColor("#ffd9c2"), 3.6, Qt.PenStyle.SolidLine, Qt.PenCapStyle.RoundCap, Qt.PenJoinStyle.RoundJoin)
    )
    painter.drawPath(shape)
    painter.end()
    smooth = Qt.TransformationMode.SmoothTransformation
    return image.scaled(SIZE, SIZE, Qt.AspectRatioMode.KeepAspectRatio, smooth)


if __name__ == "__main__":
    application = QGuiApplication([])
    for place in PLACES:
        (REPOSITORY / place).parent.mkdir(parents=True, exist_ok=True)
        draw().save(str(REPOSITORY / place))
