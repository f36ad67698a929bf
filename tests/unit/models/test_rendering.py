"""Where sprites land and what lies behind them."""

from __future__ import annotations

import numpy as np
import pytest

from models.rendering import SIDE, Renderer, paint_background
from models.scenes import BACKGROUNDS, POSITIONS, SIZES, Scene
from tests.unit.models.drawings import drawn_sprites


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(drawn_sprites())


def scene(*, position: str, size: str = "small", background: str = "white") -> Scene:
    return Scene(subject="robot", style="flat", size=size, background=background, position=position)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("size", SIZES)
def test_the_subject_stands_where_the_scene_says(
    renderer: Renderer, position: str, size: str
) -> None:
    pixels = renderer.render(scene(position=position, size=size), np.random.default_rng(1))
    rows, columns = np.nonzero(np.ptp(pixels.astype(int), axis=2) > 90)
    across, down = np.sign(POSITIONS[position])
    middle = SIDE / 2
    assert abs(columns.mean() - middle) < 6 or np.sign(columns.mean() - middle) == across
    assert abs(rows.mean() - middle) < 6 or np.sign(rows.mean() - middle) == down
    if across:
        assert abs(columns.mean() - middle) > 6
    if down:
        assert abs(rows.mean() - middle) > 6


def test_the_same_seed_draws_the_same_picture(renderer: Renderer) -> None:
    first, second = (
        renderer.render(scene(position="at the top"), np.random.default_rng(9)) for _ in range(2)
    )
    assert np.array_equal(first, second)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_background_fills_the_picture(background: str) -> None:
    canvas = paint_background(background, np.random.default_rng(0))
    assert canvas.shape == (SIDE, SIDE, 3)
    assert canvas.min() >= 0
    assert canvas.max() <= 255
