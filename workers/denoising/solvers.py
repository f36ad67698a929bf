"""A noise scheduler per job, and how each supported class resumes at step k.

    latents after ...      0         1        ...      k        ...      N
                      x_T  |--step 0--|--step 1-- ... --|--step k-- ... --|  x_0
    timesteps[i]           i=0        i=1               i=k
                           ^ noise                      ^ a state of step k enters here

diffusers' schedulers keep an index (and some a history) inside, so no two jobs share one.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, assert_never

import torch
from torch import Tensor

from workers.denoising.errors import InvalidRequest, UnsupportedScheduler
from workers.denoising.request import StartState


class Resume(StrEnum):
    """What continuing from the latents of step k alone gives."""

    EXACT = "exact"  # the uninterrupted run: the latents are the solver's whole state
    WARM_RESTART = "warm_restart"  # close to it: the solver's history is built anew from k on


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """How a scheduler class resumes, and which of its configurations are refused."""

    resume: Resume
    refusal: Callable[[Any], str | None] = lambda config: None  # the reason, where there is one


def _flow_match_refusal(config: Any) -> str | None:
    for option in ("use_dynamic_shifting", "stochastic_sampling", "invert_sigmas"):
        if config.get(option):
            return f"{option} is not supported"
    return None


SUPPORTED: dict[str, Support] = {
    "DDIMScheduler": Support(resume=Resume.EXACT),
    "EulerDiscreteScheduler": Support(resume=Resume.EXACT),
    "FlowMatchEulerDiscreteScheduler": Support(resume=Resume.EXACT, refusal=_flow_match_refusal),
}


def check_supported(scheduler: Any) -> Resume:
    """How `scheduler` resumes at k. Raises UnsupportedScheduler, naming those that can."""
    name = type(scheduler).__name__
    support = SUPPORTED.get(name)
    reason = "it cannot resume at step k" if support is None else support.refusal(scheduler.config)
    if support is None or reason is not None:
        raise UnsupportedScheduler(
            f"scheduler {name} is refused: {reason}; supported: {', '.join(SUPPORTED)}"
        )
    return support.resume


def scheduler_fingerprint(scheduler: Any) -> str:
    """Class and a hash of the configuration: states are interchangeable only within it."""
    config = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    return f"{type(scheduler).__name__}:{digest.hexdigest()[:16]}"


class Solver:
    """One job's way through the noise levels: timesteps [N] and the update of each step.

    Owned by one trajectory, used in the order start_from, (model_input, step) for each step.
    """

    def __init__(self, scheduler: Any, num_inference_steps: int) -> None:
        self._scheduler = copy.deepcopy(scheduler)
        try:
            # The schedule stays on the CPU: its scalars go to the device inside each operation.
            self._scheduler.set_timesteps(num_inference_steps)
        except ValueError as error:
            raise InvalidRequest(str(error)) from error
        self.timesteps: Tensor = self._scheduler.timesteps
        if len(self.timesteps) != num_inference_steps:
            raise InvalidRequest(
                f"the scheduler makes {len(self.timesteps)} of {num_inference_steps} steps"
            )

    def start_from(self, state: StartState | None, noise: Tensor) -> Tensor:
        """The latents [1, C, h, w] that enter the first step to run: step 0, or the state's k.

        `noise` has unit variance; an intermediate state does not use it.
        """
        first_step = 0 if state is None else state.k
        if hasattr(self._scheduler, "set_begin_index"):  # DDIM has no index: it goes by timestep
            self._scheduler.set_begin_index(first_step)
        if state is None:
            return noise * getattr(self._scheduler, "init_noise_sigma", 1.0)
        latents = state.latents.to(noise).unsqueeze(0)
        match state.kind:
            case "intermediate":  # already at this noise level: init_noise_sigma must not count
                return latents
            case "final":
                return self._renoise(latents, first_step, noise)
            case _:
                assert_never(state.kind)

    def _renoise(self, final_latents: Tensor, k: int, noise: Tensor) -> Tensor:
        """x_k = sqrt(a_k) x_0 + sqrt(1 - a_k) noise, in the scheduler's own parametrisation."""
        timestep = self.timesteps[k : k + 1]
        if hasattr(self._scheduler, "scale_noise"):  # flow matching
            noised = self._scheduler.scale_noise(final_latents, timestep, noise)
        else:
            noised = self._scheduler.add_noise(final_latents, noise, timestep)
        assert isinstance(noised, Tensor)
        return noised

    def model_input(self, latents: Tensor, step_index: int) -> Tensor:
        """The latents as the denoiser wants them at this step."""
        if not hasattr(self._scheduler, "scale_model_input"):
            return latents
        scaled = self._scheduler.scale_model_input(latents, self.timesteps[step_index])
        assert isinstance(scaled, Tensor)
        return scaled

    def step(self, noise_pred: Tensor, step_index: int, latents: Tensor) -> Tensor:
        """The latents after step `step_index`. Advances the scheduler's own index."""
        timestep = self.timesteps[step_index]
        stepped = self._scheduler.step(noise_pred, timestep, latents, return_dict=False)[0]
        assert isinstance(stepped, torch.Tensor)
        return stepped
