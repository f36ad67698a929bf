"""Train the denoiser on latents, and the text encoder with it."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import loop, networks
from models.libraries import diffusers, transformers
from models.rendering import GRID, box
from models.scenes import POSITIONS, SIZES, draw_caption
from models.stages import vae
from models.stages.workspace import Workspace

logger = logging.getLogger(__name__)

EMPTY_SHARE = 0.1  # captions left out, for classifier-free guidance
FULL_SHARE = 0.7  # captions that name everything, as the evaluation's prompts do
NOISE_BIAS = 0.75  # exponent below 1: more of the timesteps near pure noise
SUBJECT_WEIGHT = 3.0  # of the error inside the subject's box, against 1 outside
TEXT_RATE = 0.2  # the text encoder's learning rate, as a share of the denoiser's

BOXES = [(size, position) for size in SIZES for position in POSITIONS]


class UnetLearner(loop.Learner):
    """Predict the velocity v = sqrt(a) noise - sqrt(1-a) latents (Salimans & Ho 2022, app. D)."""

    def __init__(self, work: Workspace) -> None:
        self.scenes, self.latents = work.scenes(), vae.load_latents(work)
        self.tokenizer = work.tokenizer()
        torch.manual_seed(work.config.unet.seed)
        self.text_encoder = networks.build_text_encoder(work.config.networks, self.tokenizer)
        self.text_encoder.load_state_dict(text_tower(work))
        self.unet = networks.build_unet(work.config.networks)
        if work.init_from:
            start_from(self.unet, work)
        self.unet = self.unet.to(memory_format=torch.channels_last)
        self._predict: Any = torch.compile(self.unet) if work.is_compiled else self.unet
        self.alphas_cumprod: Tensor = networks.build_scheduler().alphas_cumprod
        self.weights = subject_weights()
        super().__init__(
            work.config.unet,
            {"unet": self.unet, "text_encoder": self.text_encoder},
            rate_factors={"text_encoder": TEXT_RATE},
        )

    def loss(self, rng: np.random.Generator, noise: torch.Generator) -> Tensor:
        """Return the mean squared error of the velocity over one batch."""
        rows = rng.integers(len(self.scenes), size=self.config.batch_size)
        latents = torch.from_numpy(self.latents[rows]).float()
        timesteps = stratified_timesteps(len(rows), noise)
        alpha = self.alphas_cumprod[timesteps][:, None, None, None]
        epsilon = torch.randn(latents.shape, generator=noise)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * epsilon
        velocity = alpha.sqrt() * epsilon - (1 - alpha).sqrt() * latents
        tokens = self._tokens(rows, rng)
        with torch.autocast("cpu", torch.bfloat16):
            states = self.text_encoder(tokens).last_hidden_state
            predicted = self._predict(
                noisy.contiguous(memory_format=torch.channels_last),
                timesteps,
                encoder_hidden_states=states.float(),
            ).sample
        weight = self.weights[[self._box(row) for row in rows]]
        loss: Tensor = (weight * (predicted.float() - velocity).square()).mean()
        return loss

    def _box(self, row: int) -> int:
        scene = self.scenes.scene(row)
        return BOXES.index((scene.size, scene.position))

    def _tokens(self, rows: np.ndarray[Any, Any], rng: np.random.Generator) -> Tensor:
        """Return (B, 32) ids of fresh captions, padded as the pipeline pads its prompts."""
        texts = [
            ""
            if rng.random() < EMPTY_SHARE
            else draw_caption(self.scenes.scene(row), rng, full_share=FULL_SHARE).text
            for row in rows
        ]
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        ids: Tensor = tokens.input_ids
        return ids


def stratified_timesteps(count: int, noise: torch.Generator) -> Tensor:
    """Draw one timestep from each of `count` parts of 0..999: less variance per batch.

    The parts are narrower towards the noise, where subject and place are decided.
    """
    places = (torch.arange(count) + torch.rand(count, generator=noise)) / count
    return (places**NOISE_BIAS * 1000).long().clamp(max=999)


def subject_weights() -> Tensor:
    """Return (15, 1, 16, 16): each cell's weight in the loss, of mean 1, by size and place.

    Backgrounds are learned within a thousand steps, subjects are not, and a small one covers a
    fifth of the cells.
    """
    weights = torch.ones(len(BOXES), 1, networks.LATENT_SIDE, networks.LATENT_SIDE)
    for index, (size, position) in enumerate(BOXES):
        x, y, side = (pixels // GRID for pixels in box(size, position))
        weights[index, :, max(y, 0) : y + side, max(x, 0) : x + side] = SUBJECT_WEIGHT
    return weights / weights.mean((1, 2, 3), keepdim=True)


def text_tower(work: Workspace) -> dict[str, Tensor]:
    """Return the text encoder's first weights: an earlier model's, or the contrastive tower's."""
    if work.init_from and not work.checkpoint("clip").exists():
        encoder = transformers().CLIPTextModel.from_pretrained(
            work.init_from / "text_encoder", local_files_only=True
        )
        earlier: dict[str, Tensor] = encoder.float().state_dict()
        return earlier
    weights = loop.averaged(work.require(work.checkpoint("clip"), "clip"), "clip")
    prefix = "text_model."
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def start_from(unet: Any, work: Workspace) -> None:
    """Take an earlier denoiser; a pooled text condition that it lacks starts as nothing."""
    if work.init_from is None:
        return
    folder = work.init_from / "unet"
    earlier = (
        diffusers().UNet2DConditionModel.from_pretrained(folder, local_files_only=True).float()
    )
    absent, unknown = unet.load_state_dict(earlier.state_dict(), strict=False)
    if unknown or any(not name.startswith("add_embedding.") for name in absent):
        raise ValueError(f"{folder} has another shape: {absent[:3]}, {unknown[:3]}")
    if absent:
        torch.nn.init.zeros_(unet.add_embedding.norm2.weight)


def run(work: Workspace) -> None:
    """Train the denoiser."""
    loop.run(UnetLearner(work), work.checkpoint("unet"), name="unet")
