"""Which models this worker's settings name, and how one of them gets onto the device."""

from __future__ import annotations

from typing import Final

import torch
from safetensors import SafetensorError

from producer.models import ServedModel
from workers.denoising.failures import typed
from workers.denoising.families import loading
from workers.denoising.families.description import describe, weights_bytes
from workers.denoising.families.family import Family
from workers.denoising.modules import arrange, memory_bytes, unload
from workers.denoising.threads import run_apart
from workers.model_pool import ModelPool
from workers.served_models import ServedModels
from workers.settings import WorkerSettings

# What a folder's configuration and weights can make the libraries raise; all fail the job.
LOADING_ERRORS: Final = (
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)


def describe_models(settings: WorkerSettings) -> ServedModels:
    """Read what each model is, without loading it; raises DenoisingError where one cannot serve."""
    return ServedModels(
        describe_model(settings, slug, path) for slug, path in settings.model_paths.items()
    )


def describe_model(settings: WorkerSettings, slug: str, path: str) -> ServedModel:
    """Tell clients what a model takes."""
    spec = describe(path, scheduler=settings.scheduler)
    return ServedModel(
        slug=slug,
        is_default=slug == settings.model,
        num_inference_steps=spec.num_inference_steps,
        guidance_scale=spec.guidance_scale,
        height=spec.height,
        width=spec.width,
        size_multiple=spec.unit,
        size_min=spec.size_min,
        size_max=min(spec.size_max, settings.image_size_max),
        seconds_per_step=0.0,
        jobs_in_flight=settings.jobs_in_flight,
    )


def open_pool(settings: WorkerSettings) -> ModelPool:
    """Make the pool of all models; none is loaded yet."""
    return ModelPool(
        settings.model_paths,
        load=lambda slug: run_apart(lambda: load_family(settings, slug)),
        measure=memory_bytes,
        estimate=lambda slug: weights_bytes(settings.model_paths[slug]),
        unload=unload,
        memory_bytes_max=settings.models_memory_bytes,
    )


def load_family(settings: WorkerSettings, slug: str) -> Family:
    """Load a model onto the device; raises DenoisingError where that fails."""
    dtype = None if settings.latent_dtype == "auto" else getattr(torch, settings.latent_dtype)
    try:
        family = loading.load(
            settings.model_paths[slug],
            device=choose_device(settings),
            dtype=dtype,
            scheduler=settings.scheduler,
        )
        arrange(family, channels_last=settings.channels_last, compiled=settings.compile_denoiser)
    except LOADING_ERRORS as error:
        raise typed(error) from error
    return family


def choose_device(settings: WorkerSettings) -> torch.device:
    """The device of all models."""
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)
