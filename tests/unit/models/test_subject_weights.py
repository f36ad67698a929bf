"""The denoiser's loss looks at the subject first."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.rendering import GRID, Renderer
from models.scenes import Scene
from models.stages.unet import BOXES, SUBJECT_WEIGHT, subject_weights
from tests.unit.models.drawings import drawn_sprites


def test_every_picture_counts_the_same() -> None:
    weights = subject_weights()
    assert weights.shape == (len(BOXES), 1, 16, 16)
    assert torch.allclose(weights.mean((1, 2, 3)), torch.ones(len(BOXES)))


@pytest.mark.parametrize(("size", "position"), BOXES)
def test_the_subject_lies_where_the_loss_weighs_most(size: str, position: str) -> None:
    scene = Scene(subject="robot", style="flat", size=size, background="white", position=position)
    pixels = Renderer(drawn_sprites()).render(scene, np.random.default_rng(1))
    rows, columns = np.nonzero(np.ptp(pixels.astype(int), axis=2) > 90)
    weights = subject_weights()[BOXES.index((size, position)), 0]
    assert weights.max() / weights.min() == pytest.approx(SUBJECT_WEIGHT)
    assert (weights[rows // GRID, columns // GRID] == weights.max()).all()
