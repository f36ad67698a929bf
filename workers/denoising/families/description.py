"""What a model folder says of itself, read without loading its weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers

from workers.denoising.errors import UnsupportedModel, UnsupportedScheduler
from workers.denoising.families import (
    flux,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
)
from workers.denoising.families.family import ModelSpec
from workers.denoising.families.folder import open_folder
from workers.denoising.schedulers import check_supported, replacement

WEIGHT_SUFFIXES = (".safetensors", ".bin")

SpecReader = Callable[[Path, int, Mapping[str, Any]], ModelSpec]
# By the class that a folder's model_index.json names: the denoiser's folder and the spec's reader.
DENOISERS: dict[str, tuple[str, SpecReader]] = {
    stable_diffusion.PIPELINE_CLASS: ("unet", stable_diffusion.spec_of),
    stable_diffusion_xl.PIPELINE_CLASS: ("unet", stable_diffusion_xl.spec_of),
    stable_diffusion_3.PIPELINE_CLASS: ("transformer", stable_diffusion_3.spec_of),
    flux.PIPELINE_CLASS: ("transformer", flux.spec_of),
}


def describe(path_or_id: str | Path, *, scheduler: str | None = None) -> ModelSpec:
    """Defaults and limits, as the loaded model would have them; fetches a hub's model.

    `scheduler` is to be used instead of the model's own. Raises UnsupportedModel and
    UnsupportedScheduler: at start, not when the first job comes.
    """
    folder, pipeline_class = open_folder(path_or_id)
    if pipeline_class not in DENOISERS:
        raise UnsupportedModel(
            f"{path_or_id} is a {pipeline_class}; supported: {', '.join(DENOISERS)}"
        )
    part, spec_of = DENOISERS[pipeline_class]
    try:
        _check_scheduler(folder, scheduler, is_flow_matching=part == "transformer")
        vae_config = _config(folder / "vae" / "config.json")
        vae_scale_factor = 2 ** (len(vae_config["block_out_channels"]) - 1)
        return spec_of(folder, vae_scale_factor, _config(folder / part / "config.json"))
    except (LookupError, NotImplementedError, TypeError) as error:
        raise UnsupportedModel(f"{folder} has a configuration that fails: {error!r}") from error


def _check_scheduler(folder: Path, name: str | None, *, is_flow_matching: bool) -> None:
    config = _config(folder / "scheduler" / "scheduler_config.json")
    own_class = getattr(diffusers, config["_class_name"], None)
    if own_class is None:
        raise UnsupportedScheduler(f"diffusers has no {config['_class_name']}")
    scheduler = own_class.from_config(config)
    if name is not None:
        scheduler = replacement(name, scheduler, is_flow_matching=is_flow_matching)
    check_supported(scheduler, is_flow_matching=is_flow_matching)


def weights_bytes(path_or_id: str | Path) -> int:
    """Size of a folder's weight files, about the memory that the model will take.

    Fetches a hub's model. Raises UnsupportedModel.
    """
    folder, _ = open_folder(path_or_id)
    files = [path for path in folder.rglob("*") if path.suffix in WEIGHT_SUFFIXES]
    return sum(path.stat().st_size for path in files)


def _config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"{path} cannot be read: {error}") from error
    return config
