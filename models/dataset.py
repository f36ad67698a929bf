"""Pictures drawn once, with their scenes; captions are drawn anew each time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.rendering import SIDE, Pixels
from models.scenes import BACKGROUNDS, POSITIONS, SIZES, STYLES, SUBJECTS, Scene

COLUMNS = ("subject", "style", "size", "background", "position")
VALUES: dict[str, tuple[str, ...]] = {
    "subject": SUBJECTS,
    "style": STYLES,
    "size": tuple(SIZES),
    "background": BACKGROUNDS,
    "position": tuple(POSITIONS),
}

Draw = Callable[[np.random.Generator], tuple[Pixels, Scene]]


class SceneDataset:
    """`pixels.npy` (N, 64, 64, 3) and `scenes.npy` (N, 5), indices into VALUES, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.pixels: Pixels = np.load(folder / "pixels.npy", mmap_mode="r")
        self.labels: NDArray[np.uint8] = np.load(folder / "scenes.npy")

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, rows: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """Return (B, 3, 64, 64) in -1..1."""
        return to_images(np.stack([self.pixels[row] for row in rows]))

    def scene(self, row: int) -> Scene:
        """Return what the row shows."""
        named = zip(COLUMNS, self.labels[row], strict=True)
        return Scene(**{column: VALUES[column][index] for column, index in named})


def write(folder: Path, num_scenes: int, seed: int, draw: Draw) -> None:
    """Draw a data set; it is complete or absent, never half written."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pixels = np.empty((num_scenes, SIDE, SIDE, 3), dtype=np.uint8)
    labels = np.empty((num_scenes, len(COLUMNS)), dtype=np.uint8)
    for row in range(num_scenes):
        pixels[row], scene = draw(rng)
        labels[row] = [VALUES[column].index(getattr(scene, column)) for column in COLUMNS]
    save_array(folder / "scenes.npy", labels)
    save_array(folder / "pixels.npy", pixels)


def save_array(path: Path, array: NDArray[np.generic]) -> None:
    """Write a .npy so that a reader sees all of it or nothing."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, array)
    partial.replace(path)


def to_images(pixels: Pixels) -> Tensor:
    """Turn (B, 64, 64, 3) bytes into (B, 3, 64, 64) in -1..1, as the VAE and the CLIP take it."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(images: Tensor) -> Pixels:
    """Turn (B, 3, 64, 64) in -1..1 into (B, 64, 64, 3) bytes."""
    scaled = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return np.asarray(scaled.permute(0, 2, 3, 1).cpu().numpy())
