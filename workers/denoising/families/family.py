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

    All families have `prompt_embeds` [tokens, dim], all but Stable Diffusion 1 and 2 also
    `pooled_prompt_embeds` [dim]. What depends on the job besides comes in `Family.condition`.
    The engine stacks each name over the batch and never looks inside.
    """

    prompt: Mapping[str, Tensor]
    negative_prompt: Mapping[str, Tensor]  # empty where the family has no such guidance

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
    """A loaded model, in pieces that the engine calls one by one.

        encode(prompts)                 once a prompt
        condition(..., size, guidance)  once a job: adds what depends on more than its prompt
        denoiser(...)                   once a step, over the rows of all jobs in the batch
        decode(latents)                 once a job

    All methods but `latent_shape` and `schedule` belong to the thread that owns the device.
    """

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

    @property
    def has_classifier_free_guidance(self) -> bool:
        """Whether a guidance scale above 1 asks for a second row, without the prompt."""

    def encode(self, prompts: Sequence[str], negative_prompts: Sequence[str]) -> list[Encoding]:
        """Conditioning and retrieval vector of each prompt, in order.

        Raises InvalidRequest for a negative prompt that the family has no use for.
        """

    def embedding(self, prompts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Retrieval vectors [B, embedder.dim] of unit length."""

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Shape [C, h, w] of one job's latents, never packed into tokens, without batch axis."""

    def schedule(self, num_inference_steps: int, height: int, width: int) -> dict[str, Any]:
        """What the job's scheduler needs for its timesteps besides their number."""

    def condition(
        self, conditioning: Conditioning, *, height: int, width: int, guidance_scale: float
    ) -> Conditioning:
        """A prompt's conditioning completed with what depends on the job: its size, its guidance.

        Changes nothing in place: jobs may share an encoding.
        """

    def draw_noise(self, height: int, width: int, generator: torch.Generator) -> Tensor:
        """Unit noise [1, *latent_shape] on the CPU, drawn in the order of diffusers' pipeline."""

    def denoiser(
        self, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]
    ) -> Tensor:
        """The model's prediction [B, *latent_shape], one timestep [B] a row.

        What is the same for all rows of a batch, such as position ids, follows from the shapes.
        """

    def decode(self, latents: Tensor) -> npt.NDArray[np.uint8]:
        """Images [B, height, width, 3] of latents [B, *latent_shape]."""
