"""From latents to pixels: the same in all families."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def decode(vae: Any, latents: Tensor) -> npt.NDArray[np.uint8]:
    """Images [B, height, width, 3] of latents [B, C, h, w], by an AutoencoderKL.

    Runs in the VAE's own dtype, which may be wider than the latents'.
    """
    pixels = vae.decode(denormalize(vae.config, latents.to(vae.dtype)), return_dict=False)[0]
    levels = (pixels / 2 + 0.5).clamp(0, 1).float().mul(255).round()
    images: npt.NDArray[np.uint8] = levels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return images


def denormalize(config: Any, latents: Tensor) -> Tensor:
    """The VAE's own latents, of those that the denoiser works on: unit variance, zero mean."""
    unscaled: Tensor = latents / config.scaling_factor
    if config.latents_mean is not None and config.latents_std is not None:
        mean, std = (
            torch.tensor(values, device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )
        return unscaled * std + mean
    shift: float = config.shift_factor or 0.0
    return unscaled + shift
