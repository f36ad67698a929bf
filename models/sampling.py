"""Deterministic DDIM over a batch of prompts, from noise or from another prompt's state.

The loop is StableDiffusionPipeline's own, opened up so that states can be kept and taken over.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.libraries import diffusers

NUM_STEPS = 50
GUIDANCE_SCALE = 4.0
SMALL = Path(__file__).parent / "small"
CARD = Path(__file__).parent / "card"  # numbers and figures: no part of the model's folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished batch and the states that were asked for."""

    latents: Tensor  # (B, 4, 16, 16), after the last step
    states: Mapping[int, Tensor] = field(default_factory=dict)  # by steps done, 1..N


def load_pipeline(folder: Path = SMALL) -> Any:
    """Load the pipeline in float32, offline and silent."""
    pipeline = diffusers().StableDiffusionPipeline.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_noise(seeds: Sequence[int]) -> Tensor:
    """Return (B, 4, 16, 16), each row from its own seed, so that a batch changes no picture."""
    rows = [torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(s)) for s in seeds]
    return torch.cat(rows)


@torch.no_grad()
def denoise(
    pipeline: Any,
    prompts: Sequence[str],
    latents: Tensor,
    *,
    start: int = 0,
    keep: Collection[int] = (),
    guidance_scale: float = GUIDANCE_SCALE,
) -> Run:
    """Take steps `start`..50 from `latents`, keeping the states after the step counts `keep`."""
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(NUM_STEPS)
    empty = [""] * len(prompts)
    positive, negative = pipeline.encode_prompt(
        list(prompts), "cpu", 1, True, negative_prompt=empty
    )
    conditions, states = torch.cat([negative, positive]), {}
    for done, timestep in enumerate(scheduler.timesteps[start:], start=start + 1):
        with torch.autocast("cpu", torch.bfloat16):
            both = pipeline.unet(
                torch.cat([latents, latents]), timestep, encoder_hidden_states=conditions
            ).sample
        without, with_prompt = both.float().chunk(2)
        guided = without + guidance_scale * (with_prompt - without)
        latents = scheduler.step(guided, timestep, latents).prev_sample
        if done in keep:
            states[done] = latents
    return Run(latents=latents, states=states)


@torch.no_grad()
def decode(pipeline: Any, latents: Tensor) -> Tensor:
    """Return (B, 3, 64, 64) in -1..1."""
    images: Tensor = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    return images.clamp(-1, 1)


def generate(
    pipeline: Any, prompts: Sequence[str], seeds: Sequence[int], *, batch_size: int = 32
) -> Tensor:
    """Draw one picture for each prompt and seed, (B, 3, 64, 64) in -1..1."""
    parts = []
    for first in range(0, len(prompts), batch_size):
        rows = slice(first, first + batch_size)
        run = denoise(pipeline, prompts[rows], draw_noise(seeds[rows]))
        parts.append(decode(pipeline, run.latents))
    return torch.cat(parts)
