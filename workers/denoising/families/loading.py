"""Loading a model of any supported family."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import diffusers
import torch
import transformers

from workers.denoising.errors import UnsupportedModel
from workers.denoising.families import (
    flux,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
)
from workers.denoising.families.family import Family
from workers.denoising.families.folder import open_folder
from workers.denoising.families.parts import Placement

logger = logging.getLogger(__name__)

# By the class that a folder's model_index.json names.
LOADERS: dict[str, Callable[[Path, Placement], Family]] = {
    stable_diffusion.PIPELINE_CLASS: stable_diffusion.load,
    stable_diffusion_xl.PIPELINE_CLASS: stable_diffusion_xl.load,
    stable_diffusion_3.PIPELINE_CLASS: stable_diffusion_3.load,
    flux.PIPELINE_CLASS: flux.load,
}
# Half precision on a GPU, not measured there: bfloat16 for weights that were published in it.
GPU_DTYPES: dict[str, torch.dtype] = {
    stable_diffusion.PIPELINE_CLASS: torch.float16,
    stable_diffusion_xl.PIPELINE_CLASS: torch.float16,
    stable_diffusion_3.PIPELINE_CLASS: torch.bfloat16,
    flux.PIPELINE_CLASS: torch.bfloat16,
}


def load(
    path_or_id: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    scheduler: str | None = None,
) -> Family:
    """Load a diffusers folder, or a hub id (downloaded once), onto the device.

    `dtype` is float32 on a CPU where it is not given, else the family's own (GPU_DTYPES).
    `scheduler` names a supported class to use instead of the model's own, with its configuration.
    Turns the progress bars of diffusers and transformers off, for the whole process.
    Raises UnsupportedModel, UnsupportedScheduler.
    """
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    folder, pipeline_class = open_folder(path_or_id)
    if pipeline_class not in LOADERS:
        raise UnsupportedModel(
            f"{path_or_id} is a {pipeline_class}; supported: {', '.join(LOADERS)}"
        )
    device = torch.device(device)
    if dtype is None:
        dtype = torch.float32 if device.type == "cpu" else GPU_DTYPES[pipeline_class]
    placement = Placement(device=device, dtype=dtype, scheduler=scheduler)
    family = LOADERS[pipeline_class](folder, placement)
    logger.info("loaded %s, revision %s", path_or_id, family.revision[:16])
    return family
