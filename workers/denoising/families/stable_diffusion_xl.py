"""Stable Diffusion XL, from any diffusers folder with a StableDiffusionXLPipeline.

Not measured on a GPU: half precision, and the VAE's float32 there, are as diffusers does them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workers.denoising.errors import UnsupportedModel
from workers.denoising.families.family import Conditioning, Encoding, ModelSpec
from workers.denoising.families.folder import read_spec
from workers.denoising.families.latent_diffusion import LatentDiffusion, encodings
from workers.denoising.families.parts import (
    Placement,
    load_clip,
    load_pipeline,
    refuse_guidance_distilled,
    without_missing,
)
from workers.denoising.families.retrieval import Retrieval
from workers.denoising.families.text_encoders import ClipTextEncoder

PIPELINE_CLASS = "StableDiffusionXLPipeline"


class StableDiffusionXL(LatentDiffusion):
    """A loaded SDXL model: the `Family` port. Not thread-safe.

    Each job is told to the UNet as an uncropped image of its own size (Podell et al. 2023, SDXL,
    section 2.2), as the pipeline does where it is not told otherwise.
    """

    def __init__(self, pipeline: Any, clip: Any, *, folder: Path) -> None:
        """Take over the parts of a diffusers pipeline; `clip` is a CLIPModel or None."""
        self.unet = pipeline.unet
        self.texts = {
            part: ClipTextEncoder(tokenizer, encoder)
            for part, tokenizer, encoder in (
                ("text_encoder", pipeline.tokenizer, pipeline.text_encoder),
                ("text_encoder_2", pipeline.tokenizer_2, pipeline.text_encoder_2),
            )
            if encoder is not None
        }
        self.pooling_part = self._find_pooling_part(folder)
        self.zeros_for_empty: bool = pipeline.config.force_zeros_for_empty_prompt
        spec = spec_of(folder, pipeline.vae_scale_factor, self.unet.config)
        text = self.texts[self.pooling_part]
        retrieval = Retrieval(text, clip, folder=folder, part=self.pooling_part)
        super().__init__(pipeline, retrieval, folder=folder, spec=spec, denoiser=self.unet)

    def _find_pooling_part(self, folder: Path) -> str:
        for part, text in self.texts.items():
            if text.is_projected:
                return part
        raise UnsupportedModel(f"{folder} has no text encoder with a projection (text_encoder_2)")

    def encode(self, prompts: Sequence[str], negative_prompts: Sequence[str]) -> list[Encoding]:
        """Conditioning [tokens, dims of both] and [dim], and retrieval vector, of each prompt."""
        prompt = self._encode_text(prompts)
        return encodings(
            prompt,
            self._encode_negative(negative_prompts, like=prompt),
            self.retrieval.vectors(prompts, prompt["pooled_prompt_embeds"]),
        )

    def _encode_text(self, texts: Sequence[str]) -> dict[str, Tensor]:
        encoded = {part: text.encode_penultimate(texts) for part, text in self.texts.items()}
        return {
            "prompt_embeds": torch.cat([states for states, _ in encoded.values()], dim=-1),
            "pooled_prompt_embeds": encoded[self.pooling_part][1],
        }

    def _encode_negative(
        self, negative_prompts: Sequence[str], *, like: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Zeros where there is no negative prompt, if the model was trained so."""
        if not self.zeros_for_empty:
            return self._encode_text(negative_prompts)
        negative = {name: torch.zeros_like(rows) for name, rows in like.items()}
        given = [row for row, text in enumerate(negative_prompts) if text]
        if given:
            for name, rows in self._encode_text([negative_prompts[row] for row in given]).items():
                negative[name][given] = rows
        return negative

    def condition(
        self, conditioning: Conditioning, *, height: int, width: int, guidance_scale: float
    ) -> Conditioning:
        """Add `time_ids` [6]: original size, crop's corner and target size in pixels."""
        like = conditioning.prompt["prompt_embeds"]
        time_ids = torch.tensor((height, width, 0, 0, height, width), dtype=like.dtype)
        added = {"time_ids": time_ids.to(like.device)}
        return Conditioning(
            prompt={**conditioning.prompt, **added},
            negative_prompt={**conditioning.negative_prompt, **added},
        )

    def denoiser(
        self, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]
    ) -> Tensor:
        prediction: Tensor = self.unet(
            latents,
            timesteps,
            encoder_hidden_states=conditioning["prompt_embeds"],
            added_cond_kwargs={
                "text_embeds": conditioning["pooled_prompt_embeds"],
                "time_ids": conditioning["time_ids"],
            },
            return_dict=False,
        )[0]
        return prediction


def spec_of(folder: Path, vae_scale_factor: int, config: Mapping[str, Any]) -> ModelSpec:
    """Defaults and limits; `config` is the denoiser's, of the loaded part or of its file."""
    return read_spec(
        folder,
        unit=vae_scale_factor,
        trained_size=config["sample_size"] * vae_scale_factor,
        num_inference_steps=50,
        guidance_scale=5.0,
    )


def load(folder: Path, placement: Placement) -> StableDiffusionXL:
    """Load the model. Raises UnsupportedModel, UnsupportedScheduler."""
    optional = ("text_encoder", "tokenizer")
    pipeline = load_pipeline(
        folder,
        placement,
        is_flow_matching=False,
        add_watermarker=False,
        **without_missing(folder, optional),
    )
    refuse_guidance_distilled(folder, pipeline.unet)
    if pipeline.vae.dtype == torch.float16 and pipeline.vae.config.force_upcast:
        pipeline.vae.to(torch.float32)  # its activations overflow half precision
    return StableDiffusionXL(pipeline, load_clip(folder, placement), folder=folder)
