"""Stable Diffusion 3 and 3.5, from any diffusers folder with a StableDiffusion3Pipeline.

Not measured on a GPU. The published weights are meant for bfloat16 or float16.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from workers.denoising.errors import UnsupportedModel
from workers.denoising.families.family import Encoding, ModelSpec
from workers.denoising.families.flow_matching import time_shift
from workers.denoising.families.folder import read_spec
from workers.denoising.families.latent_diffusion import LatentDiffusion, encodings
from workers.denoising.families.parts import Placement, load_clip, load_pipeline, without_missing
from workers.denoising.families.retrieval import Retrieval
from workers.denoising.families.text_encoders import ClipTextEncoder, T5TextEncoder

PIPELINE_CLASS = "StableDiffusion3Pipeline"
OPTIONAL_PARTS = (
    "text_encoder",
    "tokenizer",
    "text_encoder_2",
    "tokenizer_2",
    "text_encoder_3",
    "tokenizer_3",
)
NUM_T5_TOKENS = 256


class StableDiffusion3(LatentDiffusion):
    """A loaded Stable Diffusion 3 model: the `Family` port. Not thread-safe.

    The denoiser's text is both CLIP encoders side by side, and T5 after them:

        [ clip 1 | clip 2 | 0 ]     num_tokens of CLIP    pooled: [ clip 1 | clip 2 ]
        [         T5          ]     256

    An encoder that the folder does not have leaves zeros, as where it was dropped in training
    (Esser et al. 2024, "flexible text encoders"). One of the two CLIP encoders is needed, for
    retrieval.
    """

    def __init__(self, pipeline: Any, clip: Any, *, folder: Path) -> None:
        """Take over the parts of a diffusers pipeline; `clip` is a CLIPModel or None."""
        self.transformer = pipeline.transformer
        self.num_clip_tokens: int = pipeline.tokenizer_max_length
        self.texts = tuple(
            encoder and ClipTextEncoder(tokenizer, encoder, num_tokens=self.num_clip_tokens)
            for tokenizer, encoder in (
                (pipeline.tokenizer, pipeline.text_encoder),
                (pipeline.tokenizer_2, pipeline.text_encoder_2),
            )
        )
        self.t5 = pipeline.text_encoder_3 and T5TextEncoder(
            pipeline.tokenizer_3, pipeline.text_encoder_3, num_tokens=NUM_T5_TOKENS
        )
        spec = spec_of(folder, pipeline.vae_scale_factor, self.transformer.config)
        retrieval = self._choose_retrieval(folder, clip)
        super().__init__(pipeline, retrieval, folder=folder, spec=spec, denoiser=self.transformer)

    def _choose_retrieval(self, folder: Path, clip: Any) -> Retrieval:
        """The second encoder's, where there are both: the first's projection does nothing."""
        first, second = self.texts
        if second is not None:
            return Retrieval(second, clip, folder=folder, part="text_encoder_2")
        if first is not None:
            return Retrieval(first, clip, folder=folder, part="text_encoder")
        raise UnsupportedModel(f"{folder} has no CLIP text encoder, which retrieval needs")

    def encode(self, prompts: Sequence[str], negative_prompts: Sequence[str]) -> list[Encoding]:
        """Conditioning [tokens, joint_attention_dim] and [pooled_dim], and retrieval vector."""
        prompt, pooled = self._encode_text(prompts)
        negative, _ = self._encode_text(negative_prompts)
        return encodings(prompt, negative, self.retrieval.vectors(prompts, pooled))

    def _encode_text(self, texts: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        """Conditioning rows, and the pooled vectors that retrieval goes by."""
        states, pooled = zip(*self._encode_clip(texts), strict=True)
        clip_states = torch.cat(states, dim=-1)
        width: int = self.transformer.config.joint_attention_dim
        clip_states = pad(clip_states, (0, width - clip_states.shape[-1]))
        rows = {
            "prompt_embeds": torch.cat([clip_states, self._encode_t5(texts, clip_states)], dim=1),
            "pooled_prompt_embeds": torch.cat(pooled, dim=-1),
        }
        return rows, pooled[0] if self.texts[1] is None else pooled[1]

    def _encode_clip(self, texts: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
        """States and pooled vectors of each of the two; zeros for one that is absent."""
        present = {n: text.encode_penultimate(texts) for n, text in enumerate(self.texts) if text}
        states, pooled = next(iter(present.values()))
        absent_dim = self.transformer.config.pooled_projection_dim - pooled.shape[-1]
        absent = (
            states.new_zeros(*states.shape[:-1], absent_dim),
            pooled.new_zeros(len(texts), absent_dim),
        )
        return [present.get(n, absent) for n in range(len(self.texts))]

    def _encode_t5(self, texts: Sequence[str], like: Tensor) -> Tensor:
        if self.t5 is None:
            return like.new_zeros(len(texts), NUM_T5_TOKENS, like.shape[-1])
        states: Tensor = self.t5.encode(texts)
        return states

    def schedule(self, num_inference_steps: int, height: int, width: int) -> dict[str, Any]:
        _, latent_height, latent_width = self.latent_shape(height, width)
        patch_size = self.transformer.config.patch_size
        num_image_tokens = (latent_height // patch_size) * (latent_width // patch_size)
        return time_shift(self.scheduler.config, num_image_tokens, max_shift=1.16)

    def denoiser(
        self, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]
    ) -> Tensor:
        prediction: Tensor = self.transformer(
            hidden_states=latents,
            timestep=timesteps,
            encoder_hidden_states=conditioning["prompt_embeds"],
            pooled_projections=conditioning["pooled_prompt_embeds"],
            return_dict=False,
        )[0]
        return prediction


def spec_of(folder: Path, vae_scale_factor: int, config: Mapping[str, Any]) -> ModelSpec:
    """Defaults and limits; `config` is the denoiser's, of the loaded part or of its file."""
    return read_spec(
        folder,
        unit=vae_scale_factor * config["patch_size"],
        trained_size=config["sample_size"] * vae_scale_factor,
        num_inference_steps=28,
        guidance_scale=7.0,
    )


def load(folder: Path, placement: Placement) -> StableDiffusion3:
    """Load the model. Raises UnsupportedModel, UnsupportedScheduler."""
    missing = without_missing(folder, OPTIONAL_PARTS)
    pipeline = load_pipeline(folder, placement, is_flow_matching=True, **missing)
    return StableDiffusion3(pipeline, load_clip(folder, placement), folder=folder)
