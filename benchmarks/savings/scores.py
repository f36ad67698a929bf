"""How good pictures are for their prompts: CLIPScore by the model's own CLIP, and the judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.savings.rows import Row
from benchmarks.savings.workload import Request
from models.scoring import CLIP, ClipScorer, Judge

BATCH: Final = 64  # pictures in one forward pass

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """Of an arm's pictures, in the order of its rows."""

    clip: Floats  #: [n], cosine of picture and prompt
    judge: Floats  #: [n], share of the attributes asked for that the judge finds
    features: Floats  #: [n, dim], the CLIP's, of unit length

    def take(self, at: Sequence[int]) -> Scores:
        """Some of them."""
        chosen = list(at)
        return Scores(
            clip=self.clip[chosen], judge=self.judge[chosen], features=self.features[chosen]
        )


class Scorer:
    """The two networks; neither is the generator, and the judge saw none of its pictures."""

    def __init__(self, clip: ClipScorer, judge: Judge) -> None:
        self._clip, self._judge = clip, judge

    @classmethod
    def load(cls, model: Path) -> Scorer:
        """Load the CLIP in the model's folder and the judge that ships with the project."""
        return cls(ClipScorer.load(model / CLIP.name), Judge.load())

    def score(self, folder: Path, rows: Sequence[Row], requests: Sequence[Request]) -> Scores:
        """Score each row's picture for what its own job asked for."""
        parts = [
            self._score_batch(folder, rows[first : first + BATCH], requests)
            for first in range(0, len(rows), BATCH)
        ]
        return Scores(
            clip=np.concatenate([part.clip for part in parts]),
            judge=np.concatenate([part.judge for part in parts]),
            features=np.concatenate([part.features for part in parts]),
        )

    def _score_batch(
        self, folder: Path, rows: Sequence[Row], requests: Sequence[Request]
    ) -> Scores:
        pictures = [Image.open(folder / row.picture).convert("RGB") for row in rows]
        asked = [requests[row.row] for row in rows]
        seen = self._clip.embed_images(pictures)
        said = self._clip.embed_texts([request.prompt for request in asked])
        right = self._judge.accuracy(pictures, [request.scene for request in asked])
        return Scores(
            clip=_floats((seen * said).sum(-1)),
            judge=np.array(list(right.values()), dtype=np.float64).mean(axis=0),
            features=_floats(seen),
        )


def _floats(tensor: torch.Tensor) -> Floats:
    found: Floats = tensor.double().numpy()
    return found
