"""Train the autoencoder, then its decoder alone, and encode every picture once."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import loop, networks
from models.dataset import SceneDataset, save_array
from models.libraries import diffusers
from models.rendering import GRID, SIDE
from models.stages.workspace import Workspace

logger = logging.getLogger(__name__)

CROP_SIDE = 32  # pixels; three times as many crops as whole pictures fit into a second
CROP_SHARE = 0.7  # of the steps
KL_WEIGHT = 3e-4
LATENT_NOISE = 0.08  # standard deviation added while the decoder trains alone: the UNet's errors
ENCODE_BATCH = 64


class VaeLearner(loop.Learner):
    """Encoder and decoder together: crops first, then whole pictures."""

    def __init__(self, work: Workspace) -> None:
        self.scenes, self.step = work.scenes(), 0
        torch.manual_seed(work.config.vae.seed)
        self.vae = networks.build_vae(work.config.networks).to(memory_format=torch.channels_last)
        super().__init__(work.config.vae, {"vae": self.vae})

    def advance(self, step: int) -> float:
        """Remember the step: whether to crop depends on it."""
        self.step = step
        return super().advance(step)

    def loss(self, rng: np.random.Generator, noise: torch.Generator) -> Tensor:
        """Return the distance between the pictures and their reconstructions, and the KL."""
        images = self.scenes.images(rng.integers(len(self.scenes), size=self.config.batch_size))
        if self.step < CROP_SHARE * self.config.num_steps:
            left, top = (GRID * rng.integers((SIDE - CROP_SIDE) // GRID + 1, size=2)).tolist()
            images = images[:, :, top : top + CROP_SIDE, left : left + CROP_SIDE]
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = self.vae.encode(images).latent_dist
            decoded = self.vae.decode(posterior.sample(generator=noise)).sample
        divergence = posterior.kl().float().mean() / posterior.mean[0].numel()
        loss: Tensor = picture_distance(decoded.float(), images) + KL_WEIGHT * divergence
        return loss


class DecoderLearner(loop.Learner):
    """The decoder alone, whole pictures, the encoder and so the latents fixed."""

    def __init__(self, work: Workspace) -> None:
        self.scenes, self.latents = work.scenes(), load_latents(work)
        self.vae = encoder_of(work)
        self.vae.requires_grad_(False)
        self.vae.decoder.requires_grad_(True)
        self.vae.post_quant_conv.requires_grad_(True)
        super().__init__(work.config.decoder, {"vae": self.vae})

    def loss(self, rng: np.random.Generator, noise: torch.Generator) -> Tensor:
        """Return the distance between the pictures and what slightly wrong latents decode to."""
        rows = rng.integers(len(self.scenes), size=self.config.batch_size)
        latents = torch.from_numpy(self.latents[rows]).float()
        latents = latents + torch.randn(latents.shape, generator=noise) * LATENT_NOISE
        latents = latents.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            decoded = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        return picture_distance(decoded.float(), self.scenes.images(rows))


def picture_distance(decoded: Tensor, images: Tensor) -> Tensor:
    """Absolute, squared and edge differences: the last one is what counters blur."""
    error = decoded - images
    edges = (error[..., 1:] - error[..., :-1]).abs().mean()
    edges = edges + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return error.abs().mean() + 0.5 * edges + 0.3 * error.square().mean()


def psnr(decoded: Tensor, images: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in -1..1."""
    return 10 * math.log10(4 / float((decoded.clamp(-1, 1) - images).square().mean()))


def encoder_of(work: Workspace) -> Any:
    """Return the autoencoder whose encoder the latents come from, scaled to unit variance."""
    if work.init_from:
        vae = (
            diffusers()
            .AutoencoderKL.from_pretrained(work.init_from / "vae", local_files_only=True)
            .float()
        )
    else:
        weights = loop.averaged(work.require(work.checkpoint("vae"), "vae"), "vae")
        vae = networks.build_vae(work.config.networks)
        vae.load_state_dict(weights)
        vae.register_to_config(scaling_factor=_unit_scale(vae, work.scenes()))
    return vae.to(memory_format=torch.channels_last)


def trained(work: Workspace) -> Any:
    """Return the finished autoencoder, with the refined decoder."""
    vae = encoder_of(work)
    vae.load_state_dict(loop.averaged(work.require(work.checkpoint("decoder"), "vae"), "vae"))
    return vae.eval()


@torch.no_grad()
def _unit_scale(vae: Any, scenes: SceneDataset) -> float:
    images = scenes.images(range(min(256, len(scenes))))
    return 1 / float(vae.encode(images).latent_dist.mode().std())


@torch.no_grad()
def encode_all(work: Workspace) -> None:
    """Write every picture's mean latents: the denoiser never sees pixels."""
    vae, scenes = encoder_of(work).eval(), work.scenes()
    latents = np.empty((len(scenes), 4, networks.LATENT_SIDE, networks.LATENT_SIDE), np.float16)
    for first in range(0, len(scenes), ENCODE_BATCH):
        rows = range(first, min(first + ENCODE_BATCH, len(scenes)))
        images = scenes.images(rows).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            mean = vae.encode(images).latent_dist.mode()
        latents[first : rows.stop] = (mean.float() * vae.config.scaling_factor).half().numpy()
    save_array(work.latents_path, latents)
    logger.info(
        "encoded %d pictures, standard deviation %.3f",
        len(scenes),
        latents[:999].astype(np.float32).std(),
    )


def load_latents(work: Workspace) -> NDArray[np.float16]:
    """Read the latents into memory."""
    latents: NDArray[np.float16] = np.load(work.require(work.latents_path, "vae"))
    return latents


def run(work: Workspace) -> None:
    """Train both parts; with a model to start from, its encoder is kept and not trained."""
    if not work.init_from:
        loop.run(VaeLearner(work), work.checkpoint("vae"), name="vae")
    if not work.latents_path.exists():
        encode_all(work)
    loop.run(DecoderLearner(work), work.checkpoint("decoder"), name="decoder")
