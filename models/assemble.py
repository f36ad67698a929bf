"""Write the shipped folders from a run's checkpoints: float16, no trace of the machine."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from models import loop, networks
from models.judge_net import JudgeNet
from models.libraries import diffusers, transformers
from models.rendering import SIDE
from models.sampling import GUIDANCE_SCALE, NUM_STEPS
from models.scenes import STYLES, SUBJECTS
from models.stages import vae
from models.stages.workspace import Workspace

logger = logging.getLogger(__name__)

RECOMMENDED = {
    "height": SIDE,
    "width": SIDE,
    "size_min": SIDE,
    "size_max": SIDE,
    "num_inference_steps": NUM_STEPS,
    "guidance_scale": GUIDANCE_SCALE,
}  # what a worker offers when a job does not say
ATLAS_SIDE = 64  # pixels of a sprite in the atlas that ships with the judge


def pipeline(work: Workspace, folder: Path) -> None:
    """Write the diffusers folder and its CLIP from the averaged weights."""
    tokenizer = work.tokenizer()
    unet = networks.build_unet(work.config.networks)
    text_encoder = networks.build_text_encoder(work.config.networks, tokenizer)
    checkpoint = work.require(work.checkpoint("unet"), "unet")
    unet.load_state_dict(loop.averaged(checkpoint, "unet"))
    text_encoder.load_state_dict(loop.averaged(checkpoint, "text_encoder"))
    built = diffusers().StableDiffusionPipeline(
        vae=vae.trained(work) if work.checkpoint("decoder").exists() else vae.encoder_of(work),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=networks.build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    built.to(dtype=torch.float16).save_pretrained(folder)
    _save_clip(work, tokenizer, folder / "clip")
    (folder / "nirvana.json").write_text(json.dumps(RECOMMENDED, indent=2) + "\n")
    for config in folder.rglob("*.json"):
        _forget_paths(config)
    logger.info("wrote %s from step %d", folder, loop.load_checkpoint(checkpoint)["step"])


def _save_clip(work: Workspace, tokenizer: Any, folder: Path) -> None:
    """Write this run's towers, or copy those of the model it started from.

    To the byte: embeddings of another CLIP are another scope, and a cache would start anew.
    """
    if work.init_from and not work.checkpoint("clip").exists():
        shutil.copytree(work.init_from / "clip", folder, dirs_exist_ok=True)
        return
    clip = networks.build_clip(work.config.networks, tokenizer)
    clip.load_state_dict(loop.averaged(work.require(work.checkpoint("clip"), "clip"), "clip"))
    clip.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers().CLIPImageProcessor(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    ).save_pretrained(folder)


def judge(work: Workspace, folder: Path) -> None:
    """Write the judge and an atlas of the generator's sprites, to draw fresh pictures from."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = work.require(work.checkpoint("judge"), "judge")
    channels = work.config.networks.judge_channels
    net = JudgeNet(channels)
    net.load_state_dict(loop.averaged(checkpoint, "judge"))
    save_file(
        {name: _as_shipped(tensor) for name, tensor in net.state_dict().items()},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps({"channels": channels}) + "\n")
    write_atlas(work, folder / "sprites.png")


def write_atlas(work: Workspace, path: Path) -> None:
    """Write one picture of all sprites: a row for each style, a column for each subject."""
    sprites = work.sprites()
    size = (ATLAS_SIDE, ATLAS_SIDE)
    rows = [
        np.concatenate(
            [np.asarray(_resize(sprites[f"{style}/{subject}"], size)) for subject in SUBJECTS],
            axis=1,
        )
        for style in STYLES
    ]
    Image.fromarray(np.concatenate(rows)).save(path, optimize=True)


def read_atlas(path: Path) -> dict[str, np.ndarray[Any, np.dtype[np.uint8]]]:
    """Return `{style/subject: (64, 64, 4) RGBA}` from the atlas."""
    atlas = np.asarray(Image.open(path).convert("RGBA"), dtype=np.uint8)
    side = ATLAS_SIDE
    return {
        f"{style}/{subject}": atlas[
            row * side : (row + 1) * side, column * side : (column + 1) * side
        ]
        for row, style in enumerate(STYLES)
        for column, subject in enumerate(SUBJECTS)
    }


def _resize(rgba: np.ndarray[Any, np.dtype[np.uint8]], size: tuple[int, int]) -> Image.Image:
    premultiplied = Image.fromarray(rgba).convert("RGBa")
    return premultiplied.resize(size, Image.Resampling.LANCZOS).convert("RGBA")


def _as_shipped(tensor: torch.Tensor) -> torch.Tensor:
    shipped = tensor.half() if tensor.is_floating_point() else tensor
    return shipped.contiguous()


def _forget_paths(config: Path) -> None:
    """Drop where the weights came from: it names a folder of the machine that trained them."""
    fields = json.loads(config.read_text())
    if fields.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(fields, indent=2) + "\n")


def run(work: Workspace) -> None:
    """Write `model/` and, where the run trained one, `judge/` into the run's folder."""
    pipeline(work, work.folder / "model")
    if work.checkpoint("judge").exists() or not work.init_from:
        judge(work, work.folder / "judge")
