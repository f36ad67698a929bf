"""Sprites of our own, so that no test needs npm: a coloured shape for every subject."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from models.rendering import Pixels
from models.scenes import SUBJECTS

DESIGNS = ("glossy", "flat", "modern", "high-contrast")
SIDE = 64  # pixels


def drawn_sprites() -> dict[str, Pixels]:
    """Return `{design/subject: (64, 64, 4) RGBA}`: polygons that differ in sides and colour."""
    sprites = {}
    for number, subject in enumerate(SUBJECTS):
        for index, design in enumerate(DESIGNS):
            image = Image.new("RGBA", (SIDE, SIDE))
            colour = (number * 4, 255 - number * 4, 60 * index, 255)
            shape = (SIDE / 2, SIDE / 2, SIDE / 2 - 4)
            ImageDraw.Draw(image).regular_polygon(shape, 3 + number % 7, fill=colour)
            sprites[f"{design}/{subject}"] = np.asarray(image, dtype=np.uint8)
    return sprites
