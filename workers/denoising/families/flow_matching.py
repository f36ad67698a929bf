"""The timesteps of flow-matching models, which depend on the image's size."""

from __future__ import annotations

from typing import Any

from diffusers.pipelines.flux.pipeline_flux import calculate_shift


def time_shift(config: Any, num_image_tokens: int, *, max_shift: float) -> dict[str, float]:
    """`mu` of a scheduler with dynamic shifting; empty where the configuration's shift is static.

    Larger images get more of their steps at high noise (Esser et al. 2024, Stable Diffusion 3,
    "resolution-dependent shifting of timestep schedules"). As in diffusers' pipelines, mu lies on
    a line over the number of tokens, through two points of the scheduler's configuration;
    `max_shift` is the pipeline's own default for a configuration without it.
    """
    if not config.get("use_dynamic_shifting"):
        return {}
    mu: float = calculate_shift(
        num_image_tokens,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", max_shift),
    )
    return {"mu": mu}
