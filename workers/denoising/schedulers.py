"""Which noise schedulers are served, how each resumes at step k, and which are refused.

    class, as configured               resumes at k    model it solves for
    DDIM                               exact           diffusion (noise, sample or v prediction)
    Euler                              exact           diffusion
    Euler ancestral                    exact, by seed  diffusion
    DPM-Solver++ 2M, 3M                warm restart    diffusion; flow matching with use_flow_sigmas
    UniPC                              warm restart    diffusion; flow matching with use_flow_sigmas
    flow-matching Euler                exact           flow matching

A multistep solver's latents are not its whole state: it also holds the predictions of the steps
before. A warm restart lets it begin at step k as it begins at step 0, with one first-order step
(Lu et al. 2022, DPM-Solver++, algorithm 2), and builds its history anew from there. How far that
ends from the uninterrupted run is the error of that one step, which grows with the step's length:
see WARM_RESTART_STEPS_MIN.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

import diffusers
import torch

from workers.denoising.errors import UnsupportedScheduler

# Where a warm restart ends within a relative RMS of .05 of the uninterrupted run, measured on the
# shipped model with every multistep solver here (benchmarks/resumption.py): from step 2 to half of
# this many steps or more, which holds the paper's set, and at any step of the third number or more.
# What binds is how far the one first-order step goes in log signal-to-noise: outside, up to .18.
WARM_RESTART_STEPS_MIN = 20
WARM_RESTART_K_MIN = 2
WARM_RESTART_ANYWHERE_STEPS_MIN = 50

REHEARSAL_STEPS = 8
REHEARSAL_SHIFT = 1.0  # mu, among those that images' sizes give


class Resume(StrEnum):
    """What continuing from the latents of step k alone gives."""

    # The uninterrupted run: the latents are the solver's whole state. Where each step draws noise
    # (Euler ancestral), a step's noise belongs to the seed and the step's number: a job of the
    # same seed goes on as the uninterrupted run does, one of another seed to another image.
    EXACT = "exact"
    WARM_RESTART = "warm_restart"  # close to it: the solver's history is built anew from k on


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """How a scheduler class resumes, and which of its configurations are refused."""

    resume: Resume
    draws_noise: bool = False  # in each step, from the job's generator
    # Whether for models that predict velocities; "by configuration": where it has use_flow_sigmas.
    flow_matching: Literal["no", "yes", "by configuration"] = "no"
    refusal: Callable[[Any], str | None] = lambda config: None  # the reason, where there is one

    def solves(self, config: Any, *, is_flow_matching: bool) -> bool:
        """Whether the class, so configured, is for models of this kind."""
        match self.flow_matching:
            case "no":
                return not is_flow_matching
            case "yes":
                return is_flow_matching
            case "by configuration":
                return bool(config.use_flow_sigmas) == is_flow_matching


def _refuse_dpm_solver(config: Any) -> str | None:
    if config.algorithm_type != "dpmsolver++":
        return f"algorithm_type is {config.algorithm_type}, not dpmsolver++"
    if config.variance_type is not None:
        return "variance_type is for models that predict it, which no served family does"
    return _refuse_half_flow(config)


def _refuse_unipc(config: Any) -> str | None:
    if config.solver_p is not None:
        return "solver_p, a second scheduler inside it, is not supported"
    return _refuse_half_flow(config)


def _refuse_half_flow(config: Any) -> str | None:
    if bool(config.use_flow_sigmas) != (config.prediction_type == "flow_prediction"):
        return "use_flow_sigmas and prediction_type flow_prediction go together"
    if config.use_dynamic_shifting and not config.use_flow_sigmas:
        return "use_dynamic_shifting needs use_flow_sigmas"
    return None


def _refuse_flow_match(config: Any) -> str | None:
    for option in ("stochastic_sampling", "invert_sigmas"):
        if config.get(option):
            return f"{option} is not supported"
    return None


SUPPORTED: dict[str, Support] = {
    "DDIMScheduler": Support(resume=Resume.EXACT),
    "EulerDiscreteScheduler": Support(resume=Resume.EXACT),
    "EulerAncestralDiscreteScheduler": Support(resume=Resume.EXACT, draws_noise=True),
    "DPMSolverMultistepScheduler": Support(
        resume=Resume.WARM_RESTART, flow_matching="by configuration", refusal=_refuse_dpm_solver
    ),
    "UniPCMultistepScheduler": Support(
        resume=Resume.WARM_RESTART, flow_matching="by configuration", refusal=_refuse_unipc
    ),
    "FlowMatchEulerDiscreteScheduler": Support(
        resume=Resume.EXACT, flow_matching="yes", refusal=_refuse_flow_match
    ),
}
# Those that a model may come with and that will not be served: why, and what to take instead.
REFUSED: dict[str, str] = {
    "PNDMScheduler": "it runs one prediction more than it has steps and needs four earlier ones, "
    "so no state is its step k; use DDIMScheduler or DPMSolverMultistepScheduler",
    "HeunDiscreteScheduler": "it takes two predictions a step, and what lies between them is no "
    "state; use EulerDiscreteScheduler or DPMSolverMultistepScheduler",
    "FlowMatchHeunDiscreteScheduler": "it takes two predictions a step, and what lies between "
    "them is no state; use FlowMatchEulerDiscreteScheduler",
}


def check_supported(scheduler: Any, *, is_flow_matching: bool) -> Resume:
    """How `scheduler` resumes at k, for a model that predicts velocities (flow matching) or not.

    Raises UnsupportedScheduler, which names the reason and the schedulers of such models.
    """
    name = type(scheduler).__name__
    if name not in SUPPORTED:
        raise _refusal(name, is_flow_matching=is_flow_matching)
    support = SUPPORTED[name]
    reason = support.refusal(scheduler.config)
    if reason is None and not support.solves(scheduler.config, is_flow_matching=is_flow_matching):
        kind = "flow matching" if is_flow_matching else "diffusion"
        reason = f"as configured it does not solve for a {kind} model"
    reason = reason or _rehearse(scheduler)
    if reason is not None:
        raise _refusal(name, reason, is_flow_matching=is_flow_matching)
    return support.resume


def resumes(scheduler: Any, num_inference_steps: int, *, k: int) -> bool:
    """Whether the latents after k steps can be taken up well enough to be kept."""
    match SUPPORTED[type(scheduler).__name__].resume:
        case Resume.EXACT:
            return True
        case Resume.WARM_RESTART:
            if num_inference_steps >= WARM_RESTART_ANYWHERE_STEPS_MIN:
                return True
            is_long_enough = num_inference_steps >= WARM_RESTART_STEPS_MIN
            return is_long_enough and WARM_RESTART_K_MIN <= k <= num_inference_steps / 2


def replacement(name: str, scheduler: Any, *, is_flow_matching: bool) -> Any:
    """Another supported class with `scheduler`'s configuration. Raises UnsupportedScheduler."""
    if name not in SUPPORTED:
        raise _refusal(name, is_flow_matching=is_flow_matching)
    options: dict[str, Any] = {}
    if is_flow_matching and SUPPORTED[name].flow_matching == "by configuration":
        options = {
            "use_flow_sigmas": True,
            "prediction_type": "flow_prediction",
            "flow_shift": scheduler.config.get("shift", 1.0),
        }
    return getattr(diffusers, name).from_config(scheduler.config, **options)


def scheduler_fingerprint(scheduler: Any) -> str:
    """Class and a hash of the configuration: states are interchangeable only within it."""
    config = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    return f"{type(scheduler).__name__}:{digest.hexdigest()[:16]}"


def _rehearse(scheduler: Any) -> str | None:
    """What goes wrong in a short run that starts halfway, if anything does.

    Options can contradict each other in more ways than a list of refusals foresees.
    """
    rehearsed = copy.deepcopy(scheduler)
    shift = {"mu": REHEARSAL_SHIFT} if scheduler.config.get("use_dynamic_shifting") else {}
    latents = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4)
    try:
        rehearsed.set_timesteps(REHEARSAL_STEPS, **shift)
        first_step = REHEARSAL_STEPS // 2
        if hasattr(rehearsed, "set_begin_index"):
            rehearsed.set_begin_index(first_step)
        for timestep in rehearsed.timesteps[first_step:]:
            if hasattr(rehearsed, "scale_model_input"):
                rehearsed.scale_model_input(latents, timestep)
            latents = rehearsed.step(latents / 2, timestep, latents, return_dict=False)[0]
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as e:
        reason = " ".join(str(e).split())
        return f"its configuration fails at its first steps: {type(e).__name__} {reason}"
    return None if latents.isfinite().all() else "its configuration gives NaN"


def _refusal(
    name: str, reason: str | None = None, *, is_flow_matching: bool
) -> UnsupportedScheduler:
    reason = reason or REFUSED.get(name, "how it resumes at step k is not known")
    other_kind = "no" if is_flow_matching else "yes"
    served = [each for each, support in SUPPORTED.items() if support.flow_matching != other_kind]
    return UnsupportedScheduler(
        f"scheduler {name} is refused: {reason}; supported: {', '.join(served)}"
    )
