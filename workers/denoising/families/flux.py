"""Flux 1, from any diffusers folder with a FluxPipeline: dev (guided) and schnell (not guided).

`guidance_scale` is the distilled guidance that dev is told in its own pass; schnell is told none.
Neither takes a second row, and neither takes a negative prompt: classifier-free guidance on top
(diffusers' `true_cfg_scale`) is not supported.

Not measured on a GPU. The published weights are meant for bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from workers.denoising.errors import InvalidRequest
from workers.denoising.families.family import Conditioning, Encoding, ModelSpec
from workers.denoising.families.flow_matching import time_shift
from workers.denoising.families.folder import read_spec
from workers.denoising.families.latent_diffusion import LatentDiffusion, encodings
from workers.denoising.families.parts import Placement, load_clip, load_pipeline
from workers.denoising.families.retrieval import Retrieval
from workers.denoising.families.text_encoders import ClipTextEncoder, T5TextEncoder

PIPELINE_CLASS = "FluxPipeline"
NUM_T5_TOKENS = 512
PATCH_SIZE = 2  # latents a side of one token
TRAINED_SAMPLE_SIZE = 128  # latents a side; the transformer's configuration does not say it


class Flux(LatentDiffusion):
    """A loaded Flux model: the `Family` port. Not thread-safe.

    Latents are [C, h, w] everywhere but inside `denoiser`, where they are packed into one token of
    4 C numbers for each 2 x 2 of them, as diffusers' pipeline keeps them all the time.
    """

    has_classifier_free_guidance = False

    def __init__(self, pipeline: Any, clip: Any, *, folder: Path) -> None:
        """Take over the parts of a diffusers pipeline; `clip` is a CLIPModel or None."""
        self.transformer = pipeline.transformer
        self.is_guided: bool = self.transformer.config.guidance_embeds
        self.text = ClipTextEncoder(pipeline.tokenizer, pipeline.text_encoder)
        self.t5 = T5TextEncoder(
            pipeline.tokenizer_2, pipeline.text_encoder_2, num_tokens=NUM_T5_TOKENS
        )
        spec = spec_of(folder, pipeline.vae_scale_factor, self.transformer.config)
        retrieval = Retrieval(self.text, clip, folder=folder, part="text_encoder")
        super().__init__(pipeline, retrieval, folder=folder, spec=spec, denoiser=self.transformer)
        self.num_channels_latents //= PATCH_SIZE**2

    def encode(self, prompts: Sequence[str], negative_prompts: Sequence[str]) -> list[Encoding]:
        """Conditioning [512, dim] of T5 and [dim] of CLIP, and retrieval vector, of each prompt."""
        if any(negative_prompts):
            raise InvalidRequest("Flux takes no negative prompt: its guidance is distilled")
        pooled = self.text.pooled(self.text.encode(prompts))
        return encodings(
            {"prompt_embeds": self.t5.encode(prompts), "pooled_prompt_embeds": pooled},
            {},
            self.retrieval.vectors(prompts, pooled),
        )

    def schedule(self, num_inference_steps: int, height: int, width: int) -> dict[str, Any]:
        config = self.scheduler.config
        _, latent_height, latent_width = self.latent_shape(height, width)
        num_image_tokens = latent_height * latent_width // PATCH_SIZE**2
        shift = time_shift(config, num_image_tokens, max_shift=1.15)
        if config.get("use_flow_sigmas"):  # of a multistep solver, which makes its own
            return shift
        return {"sigmas": np.linspace(1.0, 1 / num_inference_steps, num_inference_steps), **shift}

    def condition(
        self, conditioning: Conditioning, *, height: int, width: int, guidance_scale: float
    ) -> Conditioning:
        """Add `guidance`, a scalar, where the model is told it."""
        if not self.is_guided:
            return conditioning
        guidance = torch.tensor(guidance_scale, dtype=torch.float32, device=self.device)
        return Conditioning(
            prompt={**conditioning.prompt, "guidance": guidance},
            negative_prompt=conditioning.negative_prompt,
        )

    def denoiser(
        self, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]
    ) -> Tensor:
        prompt_embeds = conditioning["prompt_embeds"]
        height, width = (side // PATCH_SIZE for side in latents.shape[-2:])
        prediction = self.transformer(
            hidden_states=pack(latents),
            timestep=timesteps.to(latents.dtype) / 1000,
            guidance=conditioning.get("guidance"),
            pooled_projections=conditioning["pooled_prompt_embeds"],
            encoder_hidden_states=prompt_embeds,
            txt_ids=prompt_embeds.new_zeros(prompt_embeds.shape[1], 3),
            img_ids=image_ids(height, width, device=latents.device).to(prompt_embeds.dtype),
            return_dict=False,
        )[0]
        return unpack(prediction, height, width)


def pack(latents: Tensor) -> Tensor:
    """Tokens [B, h/2 w/2, 4 C] of latents [B, C, h, w]."""
    return pixel_unshuffle(latents, PATCH_SIZE).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Latents [B, C, 2 height, 2 width] of tokens [B, height width, 4 C]."""
    patches = tokens.transpose(1, 2).reshape(len(tokens), -1, height, width)
    return pixel_shuffle(patches, PATCH_SIZE)


def image_ids(height: int, width: int, *, device: torch.device) -> Tensor:
    """Each token's place [height width, 3]: 0, its row, its column."""
    sides = (torch.arange(side, device=device) for side in (1, height, width))
    return torch.cartesian_prod(*sides)


def spec_of(folder: Path, vae_scale_factor: int, config: Mapping[str, Any]) -> ModelSpec:
    """Defaults and limits; `config` is the denoiser's, of the loaded part or of its file."""
    is_guided = config["guidance_embeds"]
    return read_spec(
        folder,
        unit=vae_scale_factor * PATCH_SIZE,
        trained_size=TRAINED_SAMPLE_SIZE * vae_scale_factor,
        num_inference_steps=28 if is_guided else 4,
        guidance_scale=3.5 if is_guided else 0.0,
    )


def load(folder: Path, placement: Placement) -> Flux:
    """Load the model. Raises UnsupportedModel, UnsupportedScheduler."""
    pipeline = load_pipeline(folder, placement, is_flow_matching=True)
    return Flux(pipeline, load_clip(folder, placement), folder=folder)
