"""Train the judge on its own pictures; the generator's are never shown to it."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models import loop
from models.dataset import COLUMNS
from models.judge_net import JUDGED, JudgeNet
from models.stages.workspace import Workspace

logger = logging.getLogger(__name__)

BLUR_SHARE = 0.6
NOISE_SHARE = 0.4
LABEL_SMOOTHING = 0.05


class JudgeLearner(loop.Learner):
    """Cross-entropy of every attribute over softened pictures."""

    def __init__(self, work: Workspace) -> None:
        self.scenes = work.scenes("judge")
        torch.manual_seed(work.config.judge.seed)
        self.judge = JudgeNet(work.config.networks.judge_channels)
        super().__init__(work.config.judge, {"judge": self.judge})

    def loss(self, rng: np.random.Generator, noise: torch.Generator) -> Tensor:
        """Return the sum over the attributes."""
        rows = rng.integers(len(self.scenes), size=self.config.batch_size)
        images = augment(self.scenes.images(rows), rng, noise)
        labels = torch.from_numpy(self.scenes.labels[rows].astype(np.int64))
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.judge(images.contiguous(memory_format=torch.channels_last))
        losses = [
            functional.cross_entropy(
                logits[name].float(),
                labels[:, COLUMNS.index(name)],
                label_smoothing=LABEL_SMOOTHING,
            )
            for name in JUDGED
        ]
        return torch.stack(losses).sum()


def augment(images: Tensor, rng: np.random.Generator, noise: torch.Generator) -> Tensor:
    """Imitate a small generator's faults: softness of several strengths, grain, faded colour."""
    if rng.random() < BLUR_SHARE:
        images = blur(images, float(rng.uniform(0.4, 1.6)))
    if rng.random() < BLUR_SHARE / 2:
        images = warp(images, noise, amount=float(rng.uniform(0, 0.05)))
    if rng.random() < NOISE_SHARE:
        grain = torch.randn(images.shape, generator=noise)
        images = images + blur(grain, 0.7) * float(rng.uniform(0, 0.25))
    return (images * float(rng.uniform(0.85, 1.1))).clamp(-1, 1)


def blur(images: Tensor, sigma: float) -> Tensor:
    """Blur with a Gaussian of `sigma` pixels."""
    places = torch.arange(-3, 4).float()
    weights = torch.exp(-places.square() / (2 * sigma**2))
    weights = (weights / weights.sum()).expand(3, 1, 1, 7)
    padded = functional.pad(images, (3, 3, 3, 3), mode="replicate")
    rows = functional.conv2d(padded, weights, groups=3)
    return functional.conv2d(rows, weights.transpose(2, 3), groups=3)


def warp(images: Tensor, noise: torch.Generator, *, amount: float) -> Tensor:
    """Bend smoothly by up to about `amount` of the picture's side: wobbly outlines."""
    count, _, height, width = images.shape
    coarse = torch.randn(count, 2, 6, 6, generator=noise) * amount
    bend = functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    straight = functional.affine_grid(
        torch.eye(2, 3).expand(count, 2, 3), [count, 3, height, width], False
    )
    grid = straight + bend.permute(0, 2, 3, 1)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def run(work: Workspace) -> None:
    """Train the judge."""
    loop.run(JudgeLearner(work), work.checkpoint("judge"), name="judge")
