"""What a model folder says of itself, read without loading its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers

from workers.denoising.errors import UnsupportedModel, UnsupportedScheduler
from workers.denoising.families.family import ModelSpec
from workers.denoising.families.folder import local_folder, read_spec
from workers.denoising.families.stable_diffusion import PIPELINE_CLASS
from workers.denoising.solvers import check_supported

WEIGHT_SUFFIXES = (".safetensors", ".bin")


def describe(path_or_id: str | Path) -> ModelSpec:
    """Defaults and limits, as the loaded model would have them; fetches a hub's model.

    Raises UnsupportedModel, UnsupportedScheduler: at start, not when the first job comes.
    """
    folder = local_folder(path_or_id, PIPELINE_CLASS)
    scheduler = _config(folder / "scheduler" / "scheduler_config.json")
    scheduler_class = getattr(diffusers, scheduler["_class_name"], None)
    if scheduler_class is None:
        raise UnsupportedScheduler(f"diffusers has no {scheduler['_class_name']}")
    check_supported(scheduler_class.from_config(scheduler))
    vae, unet = _config(folder / "vae" / "config.json"), _config(folder / "unet" / "config.json")
    vae_scale_factor = 2 ** (len(vae["block_out_channels"]) - 1)
    return read_spec(folder, vae_scale_factor, unet["sample_size"])


def weights_bytes(path_or_id: str | Path) -> int:
    """Size of a folder's weight files: about the memory that the model will take; else 0."""
    files = [path for path in Path(path_or_id).rglob("*") if path.suffix in WEIGHT_SUFFIXES]
    return sum(path.stat().st_size for path in files)


def _config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"{path} cannot be read: {error}") from error
    return config
