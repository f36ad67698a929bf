"""Tiny pipelines with random weights of SDXL, Stable Diffusion 3 and Flux, as tiny_pipeline's.

Widths are as small as each architecture allows; every part is real, two CLIP encoders and T5
included. Latents are 4x8x8 for pictures of 16x16 pixels.
"""

# mypy: disable-error-code="no-untyped-call"
# diffusers' constructors carry no annotations.

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tests.tiny_pipeline import (
    EMBED_DIM,
    build_tiny_pipeline,
    tiny_ddim_scheduler,
    tiny_text_config,
    tiny_tokenizer,
    tiny_vae,
)

PROJECTION_DIM = 12  # of the second CLIP encoder; the first of SD3 keeps EMBED_DIM
T5_DIM = 32


def build_tiny_family(name: str, folder: Path, *, scheduler: Any, seed: int = 0) -> Path:
    """Write a pipeline of the named family to `folder` and return it.

    The same seed gives the same weights. Torch's global random state is left as it was.
    """
    if name == "sd":
        return build_tiny_pipeline(folder, scheduler=scheduler, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BUILDERS[name](scheduler).save_pretrained(folder)
    return folder


def tiny_sdxl(scheduler: Any = None, **parts: Any) -> Any:
    tokenizer = tiny_tokenizer()
    pipeline: Any = StableDiffusionXLPipeline
    return pipeline(
        **{
            "vae": tiny_vae(),
            "text_encoder": CLIPTextModel(_clip_config(EMBED_DIM)),
            "text_encoder_2": CLIPTextModelWithProjection(_clip_config(PROJECTION_DIM)),
            "tokenizer": tokenizer,
            "tokenizer_2": tokenizer,
            "unet": _sdxl_unet(),
            "scheduler": scheduler or tiny_ddim_scheduler(),
            "add_watermarker": False,
            **parts,
        }
    )


def tiny_sd3(scheduler: Any = None, **parts: Any) -> Any:
    tokenizer = tiny_tokenizer()
    pipeline: Any = StableDiffusion3Pipeline
    return pipeline(
        **{
            "transformer": _sd3_transformer(),
            "scheduler": scheduler or diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
            "vae": tiny_vae(shift_factor=0.1),
            "text_encoder": CLIPTextModelWithProjection(_clip_config(EMBED_DIM)),
            "tokenizer": tokenizer,
            "text_encoder_2": CLIPTextModelWithProjection(_clip_config(PROJECTION_DIM)),
            "tokenizer_2": tokenizer,
            "text_encoder_3": _t5(),
            "tokenizer_3": tiny_t5_tokenizer(),
            **parts,
        }
    )


def tiny_flux(scheduler: Any = None, *, guidance_embeds: bool = True) -> Any:
    pipeline: Any = FluxPipeline
    return pipeline(
        transformer=_flux_transformer(guidance_embeds),
        scheduler=scheduler or diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=tiny_vae(shift_factor=0.1),
        text_encoder=CLIPTextModel(_clip_config(EMBED_DIM)),
        tokenizer=tiny_tokenizer(),
        text_encoder_2=_t5(),
        tokenizer_2=tiny_t5_tokenizer(),
    )


BUILDERS: dict[str, Callable[[Any], Any]] = {
    "sdxl": tiny_sdxl,
    "sd3": tiny_sd3,
    "flux": tiny_flux,
    "flux schnell": lambda scheduler: tiny_flux(scheduler, guidance_embeds=False),
}


def tiny_t5_tokenizer() -> T5Tokenizer:
    """Printable ASCII, a character a token; anything else is unknown."""
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    characters = [(chr(code), -2.0) for code in range(33, 127)]
    return T5Tokenizer(vocab=[*specials, *characters], extra_ids=0)


def _clip_config(projection_dim: int) -> CLIPTextConfig:
    config = tiny_text_config(tiny_tokenizer())
    return CLIPTextConfig(**{**config, "num_hidden_layers": 2, "projection_dim": projection_dim})


def _t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tiny_t5_tokenizer()),
            d_model=T5_DIM,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )


def _sdxl_unet() -> UNet2DConditionModel:
    time_dim = 4
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=2 * EMBED_DIM,
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        norm_num_groups=4,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=time_dim,
        projection_class_embeddings_input_dim=PROJECTION_DIM + 6 * time_dim,
    )


def _sd3_transformer() -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=T5_DIM,
        caption_projection_dim=16,
        pooled_projection_dim=EMBED_DIM + PROJECTION_DIM,
        pos_embed_max_size=16,
    )


def _flux_transformer(guidance_embeds: bool) -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=T5_DIM,
        pooled_projection_dim=EMBED_DIM,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(2, 2, 4),
    )
