"""Train the contrastive pair of towers: CLIPScore, the retrieval embedding, the text encoder.

Trained first, because a text encoder that already tells captions apart is what makes the
denoiser draw subjects rather than backgrounds only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models import loop, networks
from models.dataset import COLUMNS
from models.libraries import transformers
from models.scenes import draw_caption
from models.stages.workspace import Workspace

GROUP = 4  # pictures in a batch that differ in one attribute only
GROUPED_SHARE = 0.6  # of the batch
# How often a group differs in each. Without such groups a caption's place and size are ignored:
# subject and background alone tell most pictures of a random batch apart.
DIFFERING = {"position": 0.5, "size": 0.2, "background": 0.1, "style": 0.1, "subject": 0.1}
SCALE_MAX = 4.2  # of the logarithm of the inverse temperature


class ClipLearner(loop.Learner):
    """Contrast captions with pictures, many of which differ in a single attribute."""

    def __init__(self, work: Workspace) -> None:
        self.scenes, self.tokenizer = work.scenes(), work.tokenizer()
        torch.manual_seed(work.config.clip.seed)
        self.clip = networks.build_clip(work.config.networks, self.tokenizer)
        if work.init_from:
            _start_from(self.clip, work)
        else:
            self.clip.logit_scale.data.fill_(2.3)
        self.twins = {column: Twins(self.scenes.labels, column) for column in DIFFERING}
        super().__init__(work.config.clip, {"clip": self.clip})

    def loss(self, rng: np.random.Generator, noise: torch.Generator) -> Tensor:
        """Return the symmetric cross-entropy against every true pair, not the diagonal alone.

        A caption with dropped clauses is true of several pictures in the batch; punishing those
        would teach the towers to ignore what captions share.
        """
        rows = self._draw_rows(rng)
        scenes = [self.scenes.scene(row) for row in rows]
        captions = [draw_caption(scene, rng) for scene in scenes]
        truth = torch.tensor([[float(c.describes(s)) for s in scenes] for c in captions])
        tokens = self.tokenizer([c.text for c in captions], padding="longest", return_tensors="pt")
        images = soften(self.scenes.images(rows), rng, noise)
        with torch.autocast("cpu", torch.bfloat16):
            out = self.clip(input_ids=tokens.input_ids, pixel_values=images)
        logits = out.logits_per_text.float()
        loss = _soft_cross_entropy(logits, truth) + _soft_cross_entropy(logits.T, truth.T)
        self.clip.logit_scale.data.clamp_(0, SCALE_MAX)
        return loss / 2

    def _draw_rows(self, rng: np.random.Generator) -> list[int]:
        num_groups = int(GROUPED_SHARE * self.config.batch_size) // GROUP
        count = self.config.batch_size - GROUP * num_groups
        rows: list[int] = rng.integers(len(self.scenes), size=count).tolist()
        for column in rng.choice([*DIFFERING], size=num_groups, p=[*DIFFERING.values()]):
            rows += self.twins[column].draw(GROUP, rng)
        return rows


class Twins:
    """The rows of a data set grouped by all attributes but one."""

    def __init__(self, labels: NDArray[np.uint8], column: str) -> None:
        """Group `labels` (N, 5) by every column but `column`."""
        others = np.delete(labels, COLUMNS.index(column), axis=1)
        _, self._group, counts = np.unique(others, axis=0, return_inverse=True, return_counts=True)
        self._order = np.argsort(self._group, kind="stable")
        self._ends = np.cumsum(counts)
        self._counts = counts

    def draw(self, count: int, rng: np.random.Generator) -> list[int]:
        """Draw rows of one group, a row twice where the group is smaller than `count`."""
        group = self._group[rng.integers(len(self._group))]
        end, size = int(self._ends[group]), int(self._counts[group])
        places = end - size + rng.permutation(max(size, count))[:count] % size
        return [int(row) for row in self._order[places]]


def soften(images: Tensor, rng: np.random.Generator, noise: torch.Generator) -> Tensor:
    """Blur or roughen a batch, so that a generated picture's softness is nothing new."""
    if rng.random() < 0.35:
        small = functional.avg_pool2d(images, 2)
        images = functional.interpolate(small, scale_factor=2.0, mode="bilinear")
    if rng.random() < 0.5:
        images = images + torch.randn(images.shape, generator=noise) * rng.random() * 0.15
    return images


def _soft_cross_entropy(logits: Tensor, truth: Tensor) -> Tensor:
    return functional.cross_entropy(logits, truth / truth.sum(1, keepdim=True))


def _start_from(clip: Any, work: Workspace) -> None:
    """Take the towers of an earlier model, and the text tower its denoiser is used to."""
    if work.init_from is None:
        return
    earlier = transformers().CLIPModel.from_pretrained(
        work.init_from / "clip", local_files_only=True
    )
    clip.load_state_dict(earlier.float().state_dict())
    encoder = transformers().CLIPTextModel.from_pretrained(
        work.init_from / "text_encoder", local_files_only=True
    )
    clip.text_model.load_state_dict(encoder.float().state_dict())


def run(work: Workspace) -> None:
    """Train the towers."""
    loop.run(ClipLearner(work), work.checkpoint("clip"), name="clip")
