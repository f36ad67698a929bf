"""What all families have in common, as a base: a VAE's latents and a diffusers pipeline's parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from workers.denoising.families.family import Conditioning, Encoding, ModelSpec
from workers.denoising.families.folder import fingerprint
from workers.denoising.families.latents import decode
from workers.denoising.families.retrieval import Retrieval

Tensors = Mapping[str, Tensor]


class LatentDiffusion:
    """A loaded model without its encoding and its denoiser, which each family adds.

    With them it is the `Family` port. Not thread-safe.
    """

    has_classifier_free_guidance = True

    def __init__(
        self, pipeline: Any, retrieval: Retrieval, *, folder: Path, spec: ModelSpec, denoiser: Any
    ) -> None:
        """Take over the parts of a diffusers pipeline; `denoiser` is its UNet or transformer."""
        self.vae = pipeline.vae
        self.scheduler: Any = pipeline.scheduler
        self.vae_scale_factor: int = pipeline.vae_scale_factor
        self.device: torch.device = pipeline.device
        self.dtype: torch.dtype = denoiser.dtype
        self.spec = spec
        self.revision = fingerprint(folder)
        self.retrieval = retrieval
        self.embedder = retrieval.embedder
        self.num_channels_latents: int = denoiser.config.in_channels

    def embedding(self, prompts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Retrieval vectors [B, embedder.dim] of unit length."""
        return self.retrieval.vectors(prompts)

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        factor = self.vae_scale_factor
        return (self.num_channels_latents, height // factor, width // factor)

    def schedule(self, num_inference_steps: int, height: int, width: int) -> dict[str, Any]:
        return {}

    def condition(
        self, conditioning: Conditioning, *, height: int, width: int, guidance_scale: float
    ) -> Conditioning:
        return conditioning

    def draw_noise(self, height: int, width: int, generator: torch.Generator) -> Tensor:
        shape = (1, *self.latent_shape(height, width))
        return torch.randn(shape, generator=generator, dtype=self.dtype)

    def decode(self, latents: Tensor) -> npt.NDArray[np.uint8]:
        return decode(self.vae, latents)


def encodings(
    prompt: Tensors, negative_prompt: Tensors, embedding: npt.NDArray[np.float32]
) -> list[Encoding]:
    """One encoding a row, of tensors [B, ...] by name and retrieval vectors [B, dim].

    Copies, or each encoding would keep the whole batch alive.
    """
    return [
        Encoding(
            conditioning=Conditioning(
                prompt={name: rows[row].clone() for name, rows in prompt.items()},
                negative_prompt={name: rows[row].clone() for name, rows in negative_prompt.items()},
            ),
            embedding=embedding[row].copy(),
        )
        for row in range(len(embedding))
    ]
