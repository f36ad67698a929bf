"""Draw a scene: a sprite laid over a painted background, 64 x 64 pixels."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.scenes import COLOURS, LANDSCAPES, POSITIONS, SIZES, Scene

SIDE = 64  # pixels
GRID = 4  # pixels; one cell of the VAE's latents

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]


class Renderer:
    """Draws scenes from sprites, `{style/subject: (S, S, 4) RGBA uint8}`."""

    def __init__(self, sprites: Mapping[str, Pixels]) -> None:
        # Premultiplied alpha, or the transparent pixels' colour bleeds into the edge on resizing.
        self._sprites = {
            name: Image.fromarray(rgba, "RGBA").convert("RGBa") for name, rgba in sprites.items()
        }
        self._resized = lru_cache(maxsize=4096)(self._resize)

    def render(self, scene: Scene, rng: np.random.Generator) -> Pixels:
        """Draw the generator's pictures: boxes of three sides at five fixed places.

        A place is a whole cell (16 pixels) of the denoiser's coarsest level away from the middle,
        so that a sprite looks the same to every level wherever it stands: a small model learns
        this several times sooner than free placement.
        """
        x, y, side = box(scene.size, scene.position)
        canvas = paint_background(scene.background, rng)
        self.paste(canvas, f"{scene.style}/{scene.subject}", side=side, x=x, y=y)
        return to_pixels(canvas)

    def paste(
        self, canvas: Floats, sprite: str, *, side: int, x: int, y: int, is_flipped: bool = False
    ) -> None:
        """Lay a sprite over `canvas` (64, 64, 3) in place; what leaves the picture is cropped."""
        rgba = self._resized(sprite, side)
        if is_flipped:
            rgba = rgba[:, ::-1]
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + side, SIDE), min(y + side, SIDE)
        part = rgba[top - y : bottom - y, left - x : right - x]
        under = canvas[top:bottom, left:right]
        canvas[top:bottom, left:right] = under * (1 - part[..., 3:] / 255) + part[..., :3]

    def _resize(self, sprite: str, side: int) -> Floats:
        image = self._sprites[sprite].resize((side, side), Image.Resampling.LANCZOS)
        return np.asarray(image, dtype=np.float32)


def box(size: str, position: str) -> tuple[int, int, int]:
    """Return the left edge, the top edge and the side of a subject's box, in pixels of 64."""
    side = SIZES[size]
    middle = GRID * 2 * round((SIDE - side) / 2 / GRID / 2)
    right, down = POSITIONS[position]
    return middle + right, middle + down, side


def paint_background(
    background: str,
    rng: np.random.Generator,
    *,
    tint: float = 6.0,
    slope: float = 30.0,
    horizon: tuple[float, float] = (0.5, 0.7),
) -> Floats:
    """Paint (64, 64, 3) in 0..255: a plain colour with a slope of light, or sky and ground.

    `tint` is the standard deviation of the colours, `slope` the brightest corner's gain,
    `horizon` its range from the top as shares of the height.
    """
    if background in COLOURS:
        colour = np.array(COLOURS[background]) + rng.normal(0, tint, 3)
        angle = rng.uniform(0, 2 * np.pi)
        rows, columns = np.mgrid[0:SIDE, 0:SIDE] / SIDE - 0.5
        light = (columns * np.cos(angle) + rows * np.sin(angle)) * rng.uniform(0, slope)
        canvas = colour + light[..., None]
    else:
        canvas = _paint_landscape(background, rng, tint, rng.uniform(*horizon) * SIDE)
    painted: Floats = np.clip(canvas, 0, 255).astype(np.float32)
    return painted


def _paint_landscape(
    background: str, rng: np.random.Generator, tint: float, horizon: float
) -> NDArray[np.float64]:
    top, low, ground = (np.array(c) + rng.normal(0, tint, 3) for c in LANDSCAPES[background])
    rows = np.arange(SIDE)[:, None]
    sky = top + (low - top) * np.clip(rows / horizon, 0, 1)
    shaded = ground * (1 - 0.15 * np.clip((rows - horizon) / (SIDE - horizon), 0, 1))
    edge = np.clip(rows - horizon + 0.5, 0, 1)  # one antialiased row
    return np.repeat((sky * (1 - edge) + shaded * edge)[:, None], SIDE, axis=1)


def to_pixels(canvas: Floats) -> Pixels:
    """Round to bytes."""
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
