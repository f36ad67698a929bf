"""Retrieval vectors: what the cache compares prompts by (NIRVANA, NSDI'24, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from workers.denoising.families.family import Embedder
from workers.denoising.families.folder import fingerprint
from workers.denoising.families.text_encoders import ClipTextEncoder


class Retrieval:
    """Vectors of the folder's own CLIP model, if it has one, or of a text encoder of the model.

    `text` is that text encoder, `part` its subfolder, `clip` the CLIPModel of `clip/` or None,
    which uses the same tokenizer. A whole CLIP model is trained to compare, a bare text encoder's
    pooled vector is not; one with a projection comes close.
    """

    def __init__(self, text: ClipTextEncoder, clip: Any, *, folder: Path, part: str) -> None:
        self._text = text
        self._clip = clip
        if clip is not None:
            kind, part, dim = "clip-text-projected", "clip", clip.config.projection_dim
        else:
            kind = "text-encoder-projected" if text.is_projected else "text-encoder-pooled"
            dim = text.pooled_dim
        weights = fingerprint(folder / part)[:16]
        self.embedder = Embedder(id=f"{kind}:{weights}", dim=dim)

    def vectors(
        self, prompts: Sequence[str], pooled: Tensor | None = None
    ) -> npt.NDArray[np.float32]:
        """Unit vectors [B, embedder.dim]; `pooled` are the text encoder's [B, dim], if known."""
        if self._clip is not None:
            tokens = self._text.tokenize(prompts)
            features = self._clip.get_text_features(tokens.input_ids, tokens.attention_mask)
            pooled = features.pooler_output
        elif pooled is None:
            pooled = self._text.pooled(self._text.encode(prompts))
        assert pooled is not None
        unit = torch.nn.functional.normalize(pooled.float(), dim=-1)
        vectors: npt.NDArray[np.float32] = unit.cpu().numpy()
        return vectors
