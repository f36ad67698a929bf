"""Stable Diffusion 1.x and 2.x, from any diffusers folder with a StableDiffusionPipeline."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import Tensor

from workers.denoising.errors import UnsupportedModel, UnsupportedScheduler
from workers.denoising.families.family import (
    Conditioning,
    Embedder,
    Encoding,
)
from workers.denoising.families.folder import fingerprint, local_folder, read_spec
from workers.denoising.solvers import SUPPORTED, check_supported

logger = logging.getLogger(__name__)

PIPELINE_CLASS = "StableDiffusionPipeline"


class StableDiffusion:
    """A loaded Stable Diffusion model: the `Family` port. Not thread-safe."""

    def __init__(self, pipeline: Any, clip: Any, *, folder: Path) -> None:
        """Take over the parts of a diffusers pipeline; `clip` is a CLIPModel or None."""
        self.unet = pipeline.unet
        self.vae = pipeline.vae
        self.tokenizer = pipeline.tokenizer
        self.text_encoder = pipeline.text_encoder
        self.clip = clip
        for module in (self.unet, self.vae, self.text_encoder, *([clip] if clip else [])):
            module.requires_grad_(False)
        self.scheduler: Any = pipeline.scheduler
        self.vae_scale_factor: int = pipeline.vae_scale_factor
        self.device: torch.device = pipeline.device
        self.dtype: torch.dtype = pipeline.unet.dtype
        self.spec = read_spec(folder, self.vae_scale_factor, pipeline.unet.config.sample_size)
        self.revision = fingerprint(folder)
        self.embedder = self._describe_embedder(folder)

    def _describe_embedder(self, folder: Path) -> Embedder:
        if self.clip is not None:
            weights, dim = folder / "clip", self.clip.config.projection_dim
            return Embedder(id=f"clip-text-projected:{fingerprint(weights)[:16]}", dim=dim)
        weights, dim = folder / "text_encoder", self.text_encoder.config.hidden_size
        return Embedder(id=f"text-encoder-pooled:{fingerprint(weights)[:16]}", dim=dim)

    def encode(self, prompts: Sequence[str], negative_prompts: Sequence[str]) -> list[Encoding]:
        """Conditioning [tokens, dim] and retrieval vector of each prompt; long ones are cut."""
        encoded = self._encode_text(prompts)
        negative = self._encode_text(negative_prompts).last_hidden_state
        embedding = self._embed(prompts, encoded)
        return [
            Encoding(
                conditioning=Conditioning(
                    prompt={"prompt_embeds": encoded.last_hidden_state[row]},
                    negative_prompt={"prompt_embeds": negative[row]},
                ),
                embedding=embedding[row],
            )
            for row in range(len(prompts))
        ]

    def embedding(self, prompts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Retrieval vectors [B, embedder.dim] of unit length (NIRVANA, NSDI'24, section 4)."""
        return self._embed(prompts, None if self.clip else self._encode_text(prompts))

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        channels = self.unet.config.in_channels
        return (channels, height // self.vae_scale_factor, width // self.vae_scale_factor)

    def draw_noise(self, height: int, width: int, generator: torch.Generator) -> Tensor:
        shape = (1, *self.latent_shape(height, width))
        return torch.randn(shape, generator=generator, dtype=self.dtype)

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

    def decode(self, latents: Tensor) -> npt.NDArray[np.uint8]:
        pixels = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]
        levels = (pixels / 2 + 0.5).clamp(0, 1).float().mul(255).round()
        images: npt.NDArray[np.uint8] = levels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return images

    def _encode_text(self, texts: Sequence[str]) -> Any:
        """The text encoder's output over tokens padded to full length, as diffusers does it."""
        tokens = self._tokenize(texts)
        uses_mask = getattr(self.text_encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask if uses_mask else None
        return self.text_encoder(tokens.input_ids, attention_mask=mask)

    def _embed(self, prompts: Sequence[str], encoded: Any) -> npt.NDArray[np.float32]:
        if self.clip is not None:
            tokens = self._tokenize(prompts)
            encoded = self.clip.get_text_features(tokens.input_ids, tokens.attention_mask)
        pooled: Tensor = encoded.pooler_output.float()
        unit: npt.NDArray[np.float32] = torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()
        return unit

    def _tokenize(self, texts: Sequence[str]) -> Any:
        return self.tokenizer(
            list(texts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).to(self.device)


def load(
    path_or_id: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    scheduler: str | None = None,
) -> StableDiffusion:
    """Load a diffusers folder, or a hub id (downloaded once), onto the device.

    `scheduler` names a supported class to use instead of the model's own, with its configuration.
    Turns the progress bars of diffusers and transformers off, for the whole process.
    Raises UnsupportedModel, UnsupportedScheduler.
    """
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    folder = local_folder(path_or_id, PIPELINE_CLASS)
    pipeline = _load_pipeline(folder, dtype)
    if scheduler is not None:
        pipeline.scheduler = _replacement(scheduler, pipeline.scheduler)
    check_supported(pipeline.scheduler)
    pipeline.to(device)
    model = StableDiffusion(pipeline, _load_clip(folder, device, dtype), folder=folder)
    logger.info("loaded %s, revision %s", path_or_id, model.revision[:16])
    return model


def _load_pipeline(folder: Path, dtype: torch.dtype) -> Any:
    pipeline_class: Any = diffusers.StableDiffusionPipeline
    try:
        pipeline = pipeline_class.from_pretrained(
            folder, dtype=dtype, local_files_only=True, safety_checker=None
        )
    except (OSError, ValueError) as error:  # a part is missing or does not fit
        raise UnsupportedModel(f"{folder} cannot be loaded: {error}") from error
    if pipeline.unet.config.time_cond_proj_dim is not None:
        raise UnsupportedModel(f"{folder}: guidance-distilled models are not supported")
    return pipeline


def _load_clip(folder: Path, device: str | torch.device, dtype: torch.dtype) -> Any:
    """The contrastive model whose text features retrieve better, where the folder has one."""
    if not (folder / "clip" / "config.json").is_file():
        return None
    clip: Any = transformers.CLIPModel.from_pretrained(
        folder / "clip", dtype=dtype, local_files_only=True
    )
    return clip.to(device).eval()


def _replacement(name: str, scheduler: Any) -> Any:
    if name not in SUPPORTED:
        raise UnsupportedScheduler(
            f"scheduler {name} is refused; supported: {', '.join(SUPPORTED)}"
        )
    return getattr(diffusers, name).from_config(scheduler.config)
