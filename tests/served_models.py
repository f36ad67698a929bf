"""What a GPU worker would announce, for tests that play the worker."""

from __future__ import annotations

from typing import Final

from producer.models import ServedModel

SMALL: Final = ServedModel(
    slug="small",
    is_default=True,
    num_inference_steps=20,
    guidance_scale=4.0,
    height=64,
    width=64,
    size_multiple=8,
    size_min=32,
    size_max=128,
    seconds_per_step=0.5,
    jobs_in_flight=4,
)
