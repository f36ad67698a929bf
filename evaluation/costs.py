"""Steps as GPU time and money."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What a denoising step takes and a GPU costs: measure the first, look up the second."""

    seconds_per_step: float
    gpu_price_per_hour: float | None = None

    def gpu_hours(self, num_steps: int) -> float:
        """Denoising only: text encoder and VAE run on every job, hit or miss."""
        return num_steps * self.seconds_per_step / 3_600

    def money(self, num_steps: int) -> float | None:
        """In the currency of the price; None without one."""
        if self.gpu_price_per_hour is None:
            return None
        return self.gpu_hours(num_steps) * self.gpu_price_per_hour
