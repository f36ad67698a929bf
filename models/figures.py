"""Grids of pictures with the prompts beside them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw
from torch import Tensor

from models.dataset import to_pixels
from models.rendering import SIDE

LABEL_WIDTH = 210  # pixels
LABEL_COLUMNS = 34  # characters
GAP = 3  # pixels
HEAD_HEIGHT = 14  # pixels


def picture_grid(
    rows: Sequence[Sequence[Tensor]], *, labels: Sequence[str], heads: Sequence[str] = ()
) -> Image.Image:
    """Lay out pictures (3, 64, 64) in -1..1 at their own size: a label before each row."""
    step, top = SIDE + GAP, HEAD_HEIGHT if heads else 0
    width = LABEL_WIDTH + step * max(len(row) for row in rows)
    grid = Image.new("RGB", (width, top + step * len(rows)), "white")
    draw = ImageDraw.Draw(grid)
    for column, head in enumerate(heads):
        draw.text((LABEL_WIDTH + step * column, 1), head, fill="black")
    for index, (row, label) in enumerate(zip(rows, labels, strict=True)):
        y = top + step * index
        lines = [part for line in label.split("\n") for part in textwrap.wrap(line, LABEL_COLUMNS)]
        draw.multiline_text((3, y), "\n".join(lines), fill="black", spacing=1)
        for column, picture in enumerate(row):
            pixels = to_pixels(picture[None])[0]
            grid.paste(Image.fromarray(pixels), (LABEL_WIDTH + step * column, y))
    return grid
