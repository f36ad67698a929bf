"""Stable Diffusion 1.x and 2.x, from any diffusers folder with a StableDiffusionPipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from workers.denoising.families.family import Encoding, ModelSpec
from workers.denoising.families.folder import read_spec
from workers.denoising.families.latent_diffusion import LatentDiffusion, encodings
from workers.denoising.families.parts import (
    Placement,
    load_clip,
    load_pipeline,
    refuse_guidance_distilled,
)
from workers.denoising.families.retrieval import Retrieval
from workers.denoising.families.text_encoders import ClipTextEncoder

PIPELINE_CLASS = "StableDiffusionPipeline"


class StableDiffusion(LatentDiffusion):
    """A loaded Stable Diffusion model: the `Family` port. Not thread-safe."""

    def __init__(self, pipeline: Any, clip: Any, *, folder: Path) -> None:
        """Take over the parts of a diffusers pipeline; `clip` is a CLIPModel or None."""
        self.unet = pipeline.unet
        self.text = ClipTextEncoder(pipeline.tokenizer, pipeline.text_encoder)
        spec = spec_of(folder, pipeline.vae_scale_factor, self.unet.config)
        retrieval = Retrieval(self.text, clip, folder=folder, part="text_encoder")
        super().__init__(pipeline, retrieval, folder=folder, spec=spec, denoiser=self.unet)

    def encode(self, prompts: Sequence[str], negative_prompts: Sequence[str]) -> list[Encoding]:
        """Conditioning [tokens, dim] and retrieval vector of each prompt; long ones are cut."""
        encoded = self.text.encode(prompts)
        return encodings(
            {"prompt_embeds": encoded.last_hidden_state},
            {"prompt_embeds": self.text.encode(negative_prompts).last_hidden_state},
            self.retrieval.vectors(prompts, self.text.pooled(encoded)),
        )

    def denoiser(
        self, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]
    ) -> Tensor:
        prediction: Tensor = self.unet(
            latents,
            timesteps,
            encoder_hidden_states=conditioning["prompt_embeds"],
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
        guidance_scale=7.5,
    )


def load(folder: Path, placement: Placement) -> StableDiffusion:
    """Load the model. Raises UnsupportedModel, UnsupportedScheduler."""
    pipeline = load_pipeline(folder, placement, is_flow_matching=False, safety_checker=None)
    refuse_guidance_distilled(folder, pipeline.unet)
    return StableDiffusion(pipeline, load_clip(folder, placement), folder=folder)
