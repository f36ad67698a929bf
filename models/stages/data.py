"""Draw the generator's pictures and the judge's own."""

from __future__ import annotations

import logging

import numpy as np

from models import art, dataset
from models.rendering import SIDE, Pixels, Renderer, paint_background, to_pixels
from models.scenes import POSITIONS, Scene, draw_scene
from models.stages.workspace import Workspace

logger = logging.getLogger(__name__)

JUDGE_SIZES = {"small": (24, 31), "medium": (33, 41), "large": (44, 54)}  # pixels, inclusive
JUDGE_OFFSET = (9.0, 19.0)  # pixels from the middle along the named direction
JUDGE_DRIFT = 4.0  # pixels in every other direction
JUDGE_SEED = 7_000_000  # far from the generator's


def run(work: Workspace) -> None:
    """Make `sprites.npz` and both data sets, skipping what is there."""
    if not work.sprites_path.exists():
        work.sprites_path.parent.mkdir(parents=True, exist_ok=True)
        sprites = art.draw_sprites(work.art_folder)
        partial = work.sprites_path.with_suffix(".partial.npz")
        np.savez_compressed(partial, **sprites)  # type: ignore[arg-type]
        partial.replace(work.sprites_path)
    sprites = work.sprites()
    renderer, designs = Renderer(sprites), designs_of(sprites)

    def draw(rng: np.random.Generator) -> tuple[Pixels, Scene]:
        scene = draw_scene(rng)
        return renderer.render(scene, rng), scene

    def draw_for_judge(rng: np.random.Generator) -> tuple[Pixels, Scene]:
        scene = draw_scene(rng, with_held_out=True)
        return render_for_judge(renderer, designs, scene, rng), scene

    counts = work.config.data
    for name, count, seed, picture in (
        ("generator", counts.num_scenes, counts.seed, draw),
        ("judge", counts.num_judge_scenes, JUDGE_SEED + counts.seed, draw_for_judge),
    ):
        folder = work.folder / "scenes" / name
        if not (folder / "pixels.npy").exists():
            dataset.write(folder, count, seed, picture)
            logger.info("drew %d pictures for the %s", count, name)


def designs_of(sprites: dict[str, Pixels]) -> tuple[str, ...]:
    """Return the designs that the sprites come in."""
    return tuple(sorted({name.split("/")[0] for name in sprites}))


def render_for_judge(
    renderer: Renderer, designs: tuple[str, ...], scene: Scene, rng: np.random.Generator
) -> Pixels:
    """Draw with what the generator never sees: other designs, free sizes and places, mirrored.

    Half of the pictures keep the scene's own style, or the judge would never learn its drawings.
    """
    design = scene.style if rng.random() < 0.5 else str(rng.choice(designs))
    background = scene.background
    low, high = JUDGE_SIZES[scene.size]
    side = int(rng.integers(low, high + 1))
    x, y = _free_corner(scene.position, side, rng)
    canvas = paint_background(background, rng, tint=9.0, slope=60.0, horizon=(0.42, 0.78))
    if design == "high-contrast" and canvas.mean() < 90:
        design = scene.style  # black lines on a dark ground show nothing
    renderer.paste(
        canvas, f"{design}/{scene.subject}", side=side, x=x, y=y, is_flipped=rng.random() < 0.5
    )
    return to_pixels(canvas)


def _free_corner(position: str, side: int, rng: np.random.Generator) -> tuple[int, int]:
    """Draw the box's corner for a position, in pixels, off the generator's grid."""
    corner = []
    for direction in np.sign(POSITIONS[position]):
        drift = rng.uniform(-JUDGE_DRIFT, JUDGE_DRIFT)
        offset = direction * rng.uniform(*JUDGE_OFFSET) if direction else drift
        corner.append(round(SIDE / 2 + offset - side / 2))
    return corner[0], corner[1]
