"""How far a job resumed at step k ends from the uninterrupted run, by scheduler, steps and k.

    python -m benchmarks.resumption [--steps 50 20 10] [--percent 10 20 30 40 50] [--prompts 8]

Relative RMS of the final latents, the largest over the prompts, on the model that ships with the
project and with its own configuration (zero terminal SNR, v prediction). Prints a table and one
JSON line.

Caveats: one small model, one guidance scale; restarts that the engine would refuse (see
WARM_RESTART_STEPS_MIN) are measured here too.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import models
from workers.denoising import schedulers
from workers.denoising.engine import Engine
from workers.denoising.families import loading
from workers.denoising.families.family import Family
from workers.denoising.request import Denoised, DenoiseRequest, StartState

K_SET_PERCENT = (10, 20, 30, 40, 50)  # the paper's, of N
PROMPTS = (
    "a red apple on a blue background",
    "a penguin in the snow",
    "a star on a black background, at the top",
    "a small sailboat on the sea, on the right",
    "a large red heart on a pink background",
    "a glossy strawberry on a sandy beach",
    "a yellow house on green grass",
    "a cat on a white background",
)
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM": ("DDIMScheduler", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "DPM-Solver++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM-Solver++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "DPM-Solver++ 3M": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "UniPC Karras": ("UniPCMultistepScheduler", {"use_karras_sigmas": True}),
}


def main() -> None:
    """Measure every configuration at every number of steps."""
    arguments = _parse()
    torch.set_num_threads(1)
    schedulers.WARM_RESTART_ANYWHERE_STEPS_MIN = 1
    shipped = loading.load(Path(models.__file__).parent / "small")
    measured: list[dict[str, Any]] = []
    for name, (scheduler, options) in CONFIGURATIONS.items():
        if arguments.only not in name:
            continue
        family: Any = copy.copy(shipped)
        family.scheduler = schedulers.replacement(
            scheduler, shipped.scheduler, is_flow_matching=False
        )
        family.scheduler = type(family.scheduler).from_config(family.scheduler.config, **options)
        for num_steps in arguments.steps:
            ks = frozenset(max(1, num_steps * percent // 100) for percent in arguments.percent)
            errors = measure(family, num_steps, ks, PROMPTS[: arguments.prompts])
            measured.append({"scheduler": name, "steps": num_steps, "relative_rms": errors})
            columns = "  ".join(f"k={k}: {error:.4f}" for k, error in errors.items())
            print(f"{name:24} N={num_steps:3}  {columns}", flush=True)
    print(json.dumps({"benchmark": "resumption", "measured": measured}))


def measure(
    family: Family, num_steps: int, ks: frozenset[int], prompts: Sequence[str]
) -> dict[int, float]:
    """The largest error over the prompts, by k."""
    errors = dict.fromkeys(sorted(ks), 0.0)
    with Engine(family, batch_size_max=32) as engine:
        wholes = [
            (request, engine.denoise(request))
            for request in _requests(engine, family, num_steps, prompts, ks)
        ]
        resumed = [
            (k, future.result(), engine.denoise(_resumed(request, k, latents)))
            for request, future in wholes
            for k, latents in future.result().captured.items()
        ]
        for k, whole, future in resumed:
            error = relative_rms(_final(future.result()), _final(whole))
            errors[k] = max(errors[k], error)
    return errors


def relative_rms(latents: Tensor, reference: Tensor) -> float:
    """The root of the mean square of the difference, in units of the reference's."""
    return ((latents - reference).square().mean() / reference.square().mean()).sqrt().item()


def _requests(
    engine: Engine, family: Family, num_steps: int, prompts: Sequence[str], ks: frozenset[int]
) -> list[DenoiseRequest]:
    encodings = [engine.encode(prompt) for prompt in prompts]
    return [
        DenoiseRequest(
            job_id=str(number),
            encoding=encoding.result(),
            height=family.spec.height,
            width=family.spec.width,
            num_inference_steps=num_steps,
            guidance_scale=family.spec.guidance_scale,
            seed=number,
            capture_steps=ks,
            capture_final=True,
        )
        for number, encoding in enumerate(encodings)
    ]


def _resumed(request: DenoiseRequest, k: int, latents: Tensor) -> DenoiseRequest:
    return replace(request, start=StartState(latents=latents, kind="intermediate", k=k))


def _final(denoised: Denoised) -> Tensor:
    assert denoised.final_latents is not None
    return denoised.final_latents


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 20, 10])
    parser.add_argument("--percent", type=int, nargs="+", default=list(K_SET_PERCENT))
    parser.add_argument("--only", default="", help="configurations whose name contains this")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    return parser.parse_args()


if __name__ == "__main__":
    main()
