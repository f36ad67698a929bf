"""Every pair of a family and a scheduler that it is served with, on tiny models."""

# mypy: disable-error-code="no-untyped-call"
# diffusers' constructors carry no annotations.

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import diffusers

from tests.tiny_families import build_tiny_family
from tests.tiny_pipeline import BETAS, tiny_ddim_scheduler
from workers.denoising.families import loading
from workers.denoising.families.family import Family

SPACED: dict[str, Any] = {**BETAS, "steps_offset": 1}  # as Stable Diffusion 1.x configures it
FLOW: dict[str, Any] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
DIFFUSION_SCHEDULERS: dict[str, Callable[[], Any]] = {
    "ddim": tiny_ddim_scheduler,
    "euler": lambda: diffusers.EulerDiscreteScheduler(**SPACED),
    "euler karras": lambda: diffusers.EulerDiscreteScheduler(**SPACED, use_karras_sigmas=True),
    "euler ancestral": lambda: diffusers.EulerAncestralDiscreteScheduler(**SPACED),
    "dpm++": lambda: diffusers.DPMSolverMultistepScheduler(**SPACED),
    "dpm++ karras": lambda: diffusers.DPMSolverMultistepScheduler(**SPACED, use_karras_sigmas=True),
    "dpm++ 3m": lambda: diffusers.DPMSolverMultistepScheduler(**SPACED, solver_order=3),
    "unipc": lambda: diffusers.UniPCMultistepScheduler(**SPACED),
}
FLOW_SCHEDULERS: dict[str, Callable[[], Any]] = {
    "flow euler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flow euler dynamic": lambda: diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.3, max_shift=1.2, max_image_seq_len=1024
    ),
    "flow dpm++": lambda: diffusers.DPMSolverMultistepScheduler(**FLOW, use_dynamic_shifting=True),
    "flow unipc": lambda: diffusers.UniPCMultistepScheduler(**FLOW, use_dynamic_shifting=True),
}
SCHEDULERS = {**DIFFUSION_SCHEDULERS, **FLOW_SCHEDULERS}
FAMILIES = {
    "sd": DIFFUSION_SCHEDULERS,
    "sdxl": DIFFUSION_SCHEDULERS,
    "sd3": FLOW_SCHEDULERS,
    "flux": FLOW_SCHEDULERS,
    "flux schnell": {"flow euler": FLOW_SCHEDULERS["flow euler"]},
}
PAIRS = [(name, each) for name, schedulers in FAMILIES.items() for each in schedulers]


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyModel:
    """One tiny model, as we load it and as diffusers does."""

    name: str
    folder: Path
    family: Family
    pipeline: Any

    def with_scheduler(self, scheduler: str) -> TinyModel:
        """The same weights with another scheduler; changes nothing in this one."""
        family: Any = copy.copy(self.family)
        family.scheduler = SCHEDULERS[scheduler]()
        pipeline = type(self.pipeline)(
            **{**self.pipeline.components, "scheduler": SCHEDULERS[scheduler]()}
        )
        pipeline.set_progress_bar_config(disable=True)
        return TinyModel(
            name=self.name, folder=self.folder, family=cast("Family", family), pipeline=pipeline
        )


def load_tiny_model(name: str, folder: Path) -> TinyModel:
    build_tiny_family(name, folder, scheduler=next(iter(FAMILIES[name].values()))())
    pipeline: Any = diffusers.DiffusionPipeline
    pipeline = pipeline.from_pretrained(folder, local_files_only=True)
    return TinyModel(name=name, folder=folder, family=loading.load(folder), pipeline=pipeline)
