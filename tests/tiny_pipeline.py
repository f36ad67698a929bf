"""A text-to-image pipeline with random weights and under 100,000 parameters, for tests.

Its pictures are noise of 16x16 pixels (latents 4x8x8), but every part is real: a CLIP tokenizer
that takes any text, a text encoder, a UNet with cross attention, a VAE and a scheduler, in a
standard diffusers folder.
"""

# mypy: disable-error-code="no-untyped-call"
# diffusers' constructors carry no annotations.

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
)

NUM_TOKENS = 16  # length of the conditioning; longer prompts are truncated
EMBED_DIM = 16  # width of the conditioning, and of the retrieval vectors
CLIP_PROJECTION_DIM = 12  # width of the retrieval vectors of a folder with clip/

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def build_tiny_pipeline(
    folder: Path, *, scheduler: Any = None, with_clip: bool = False, seed: int = 0
) -> Path:
    """Write the pipeline to `folder` and return it; the same seed gives the same weights.

    `scheduler` is any diffusers scheduler (DDIM by default); `with_clip` adds a `clip/` subfolder
    with a CLIPModel. Torch's global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        pipeline: Any = StableDiffusionPipeline(
            vae=tiny_vae(),
            text_encoder=CLIPTextModel(CLIPTextConfig(**tiny_text_config(tokenizer))),
            tokenizer=tokenizer,
            unet=_unet(),
            scheduler=scheduler or tiny_ddim_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(folder)
        if with_clip:
            _clip(tokenizer).save_pretrained(folder / "clip")
            tokenizer.save_pretrained(folder / "clip")
    return folder


def tiny_ddim_scheduler(**config: Any) -> DDIMScheduler:
    """DDIM as Stable Diffusion 1.x configures it."""
    return DDIMScheduler(**{**BETAS, "clip_sample": False, "steps_offset": 1, **config})


def tiny_tokenizer() -> CLIPTokenizer:
    """Bytes alone, inside and at the end of a word: no merges, and any text is tokenised."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{byte}</w>" for byte in alphabet), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=NUM_TOKENS)


def tiny_text_config(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": EMBED_DIM,
        "intermediate_size": 2 * EMBED_DIM,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": NUM_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=EMBED_DIM,
        attention_head_dim=2,
        norm_num_groups=4,
    )


def tiny_vae(**config: Any) -> AutoencoderKL:
    return AutoencoderKL(
        sample_size=16,
        block_out_channels=(4, 8),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        norm_num_groups=4,
        **config,
    )


def _clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    vision: dict[str, Any] = {
        "image_size": 16,
        "patch_size": 8,
        "hidden_size": EMBED_DIM,
        "intermediate_size": 2 * EMBED_DIM,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    return CLIPModel(
        CLIPConfig(
            text_config=CLIPTextConfig(**tiny_text_config(tokenizer)).to_dict(),
            vision_config=CLIPVisionConfig(**vision).to_dict(),
            projection_dim=CLIP_PROJECTION_DIM,
        )
    )
