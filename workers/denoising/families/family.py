"""The port between the engine and a model family: what every module of this folder offers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conditioning:
    """What the denoiser is told about one prompt: tensors by diffusers' names, without batch axis.

    Stable Diffusion has `prompt_embeds` [tokens, dim] alone; families with pooled embeddings or
    time ids add theirs. The engine stacks each name over the batch and never looks inside.
    """

    prompt: Mapping[str, Tensor]
    negative_prompt: Mapping[str, Tensor]

    @property
    def shape(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Names and shapes: jobs whose conditioning has the same shape can share a batch."""
        return tuple((name, tuple(tensor.shape)) for name, tensor in sorted(self.prompt.items()))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Encoding:
    """One encoded prompt."""

    conditioning: Conditioning  # on the model's device
    embedding: npt.NDArray[np.float32]  # [embedder.dim], unit length


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedder:
    """Where retrieval vectors come from; vectors of different ids are never compared."""

    id: str
    dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model's defaults and limits, for jobs that leave a choice open or ask for too much."""

    unit: int  # pixels; height and width are multiples of it
    height: int  # pixels
    width: int  # pixels
    size_min: int  # pixels a side
    size_max: int  # pixels a side
    num_inference_steps: int
    guidance_scale: float


class Family(Protocol):
    """A loaded model. All methods but `latent_shape` belong to the thread that owns the device."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def embedder(self) -> Embedder: ...

    @property
    def revision(self) -> str:
        """A fingerprint of the weights and configuration (see folder.fingerprint)."""

    @property
    def scheduler(self) -> Any:
        """The model's own diffusers scheduler: a template, never stepped."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype:
        """Of latents and conditioning."""

    def encode(self, prompts: Sequence[str], negative_prompts: Sequence[str]) -> list[Encoding]:
        """Conditioning and retrieval vector of each prompt, in order."""

    def embedding(self, prompts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Retrieval vectors [B, embedder.dim] of unit length."""

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Shape of one job's latents, without batch axis."""

    def draw_noise(self, height: int, width: int, generator: torch.Generator) -> Tensor:
        """Unit noise [1, *latent_shape] on the CPU, drawn in the order of diffusers' pipeline."""

    def denoiser(
        self, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]
    ) -> Tensor:
        """The model's prediction [B, *latent_shape], one timestep [B] a row."""

    def decode(self, latents: Tensor) -> npt.NDArray[np.uint8]:
        """Images [B, height, width, 3] of latents [B, *latent_shape]."""
