"""Loading the parts of a diffusers folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors import SafetensorError

from workers.denoising.errors import UnsupportedModel
from workers.denoising.schedulers import check_supported, replacement


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """How a model is to be loaded."""

    device: torch.device
    dtype: torch.dtype
    scheduler: str | None = None  # a supported class to use instead of the model's own


def load_pipeline(
    folder: Path, placement: Placement, *, is_flow_matching: bool, **parts: Any
) -> Any:
    """The folder's diffusers pipeline, on the device and frozen, its scheduler checked.

    `parts` replace the folder's own; None leaves one out. Raises UnsupportedModel and
    UnsupportedScheduler.
    """
    pipeline_class: Any = diffusers.DiffusionPipeline
    try:
        pipeline = pipeline_class.from_pretrained(
            folder, dtype=placement.dtype, local_files_only=True, **parts
        )
    # A part is missing, does not fit, or is cut off.
    except (ImportError, OSError, ValueError, SafetensorError) as error:
        raise UnsupportedModel(f"{folder} cannot be loaded: {error}") from error
    if placement.scheduler is not None:
        pipeline.scheduler = replacement(
            placement.scheduler, pipeline.scheduler, is_flow_matching=is_flow_matching
        )
    check_supported(pipeline.scheduler, is_flow_matching=is_flow_matching)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    return pipeline.to(placement.device)


def without_missing(folder: Path, names: tuple[str, ...]) -> dict[str, None]:
    """The parts of these names that the folder does not have, as `parts` that leave them out."""
    return {name: None for name in names if not (folder / name).is_dir()}


def load_clip(folder: Path, placement: Placement) -> Any:
    """The whole CLIP model that a folder may bring for retrieval; None where it has none."""
    if not (folder / "clip" / "config.json").is_file():
        return None
    clip: Any = transformers.CLIPModel.from_pretrained(
        folder / "clip", dtype=placement.dtype, local_files_only=True
    )
    return clip.requires_grad_(False).to(placement.device).eval()


def refuse_guidance_distilled(folder: Path, unet: Any) -> None:
    """Raise UnsupportedModel for a UNet that is told the guidance scale (as consistency models)."""
    if unet.config.time_cond_proj_dim is not None:
        raise UnsupportedModel(f"{folder}: guidance-distilled models are not supported")
