"""Train the contrastive pair of towers: CLIPScore, the retrieval embedding, the text encoder.

Trained first, because a text encoder that already tells captions apart is what makes the
denoiser draw subjects rather than backgrounds only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models import loop, networks
from models.dataset import SceneDataset
from models.libraries import transformers
from models.scenes import draw_caption
from models.stages.workspace import Workspace

GROUP = 4  # pictures of one subject in a batch: they differ in place, size, style, background
SCALE_MAX = 4.2  # of the logarithm of the inverse temperature


class ClipLearner(loop.Learner):
    """Contrast captions with pictures, half of the batch in groups of the same subject."""

    def __init__(self, work: Workspace) -> None:
        self.scenes, self.tokenizer = work.scenes(), work.tokenizer()
        torch.manual_seed(work.config.clip.seed)
        self.clip = networks.build_clip(work.config.networks, self.tokenizer)
        if work.init_from:
            _start_from(self.clip, work)
        else:
            self.clip.logit_scale.data.fill_(2.3)
        self.rows_of_subject = rows_by_subject(self.scenes)
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
        half = self.config.batch_size // 2
        rows = rng.integers(len(self.scenes), size=self.config.batch_size - half).tolist()
        present = [subject for subject, of in self.rows_of_subject.items() if len(of) >= GROUP]
        for _ in range(half // GROUP):
            group = self.rows_of_subject[int(rng.choice(present))] if present else rows
            rows += rng.choice(group, GROUP).tolist()
        return [int(row) for row in rows]


def rows_by_subject(scenes: SceneDataset) -> dict[int, list[int]]:
    """Group the rows by the subject's index."""
    groups: dict[int, list[int]] = {}
    for row, subject in enumerate(scenes.labels[:, 0].tolist()):
        groups.setdefault(subject, []).append(row)
    return groups


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
