"""One job's noise scheduler: its timesteps, and the update of each step.

    latents after ...      0         1        ...      k        ...      N
                      x_T  |--step 0--|--step 1-- ... --|--step k-- ... --|  x_0
    timesteps[i]           i=0        i=1               i=k
                           ^ noise                      ^ a state of step k enters here

diffusers' schedulers keep an index (and some a history) inside, so no two jobs share one.
"""

from __future__ import annotations

import copy
from typing import Any, assert_never

import torch
from torch import Tensor

from workers.denoising.errors import InvalidRequest
from workers.denoising.request import StartState
from workers.denoising.schedulers import (
    SUPPORTED,
    WARM_RESTART_ANYWHERE_STEPS_MIN,
    WARM_RESTART_K_MIN,
    WARM_RESTART_STEPS_MIN,
    resumes,
)


class Solver:
    """One job's way through the noise levels: timesteps [N] and the update of each step.

    Owned by one trajectory, used in the order start_from, (model_input, step) for each step.
    `schedule` are further arguments of the scheduler's set_timesteps (see Family.schedule).
    Raises InvalidRequest where the scheduler cannot make so many steps.
    """

    def __init__(self, scheduler: Any, num_inference_steps: int, **schedule: Any) -> None:
        self._scheduler = copy.deepcopy(scheduler)
        try:
            # The schedule stays on the CPU: its scalars go to the device inside each operation.
            self._scheduler.set_timesteps(num_inference_steps, **schedule)
        except ValueError as error:
            raise InvalidRequest(str(error)) from error
        self.timesteps: Tensor = self._scheduler.timesteps
        if len(self.timesteps) != num_inference_steps:
            raise InvalidRequest(
                f"the scheduler makes {len(self.timesteps)} of {num_inference_steps} steps"
            )
        if not self.timesteps.isfinite().all():
            raise InvalidRequest(
                f"{type(scheduler).__name__} cannot make {num_inference_steps} steps as configured"
            )
        self._draws_noise = SUPPORTED[type(scheduler).__name__].draws_noise
        self._step_options: dict[str, Any] = {}

    def check_start(self, state: StartState | None) -> None:
        """Raise InvalidRequest where a warm restart from the state would end too far off."""
        num_steps = len(self.timesteps)
        if state is None or state.kind == "final":
            return
        if not resumes(self._scheduler, num_steps, k=state.k):
            raise InvalidRequest(
                f"{type(self._scheduler).__name__} cannot take up step {state.k} of {num_steps}: "
                f"allowed are steps from {WARM_RESTART_K_MIN} to half of "
                f"{WARM_RESTART_STEPS_MIN} or more, and any of "
                f"{WARM_RESTART_ANYWHERE_STEPS_MIN} or more"
            )

    def start_from(
        self, state: StartState | None, noise: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The latents [1, C, h, w] that enter the first step to run: step 0, or the state's k.

        `noise` has unit variance and was the first draw from `generator` (on the CPU); an
        intermediate state does not use it. A scheduler that draws noise in each step goes on
        drawing from the generator, from where the job would be had it run the skipped steps:
        so step i's noise depends on the seed and i alone, whatever the job starts from.
        """
        first_step = 0 if state is None else state.k
        if self._draws_noise:
            self._step_options = {"generator": generator}
            for _ in range(first_step):
                torch.randn(noise.shape, generator=generator, dtype=noise.dtype)
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
        """x_k = alpha_k x_0 + sigma_k noise, in the scheduler's own parametrisation."""
        timestep = self.timesteps[k : k + 1]
        if hasattr(self._scheduler, "scale_noise"):  # flow matching
            noised = self._scheduler.scale_noise(final_latents, timestep, noise)
        else:
            noised = self._scheduler.add_noise(final_latents, noise, timestep)
        assert isinstance(noised, Tensor)
        return noised

    def predict_final(self, noise_pred: Tensor, step_index: int, latents: Tensor) -> Tensor:
        """x_0 as predicted at step `step_index`, whose `step` is to come after this.

        Solves x = alpha x_0 + sigma noise for x_0, whatever the model predicts (DDIM, equation 12;
        velocities: Salimans & Ho 2022; flow matching predicts noise - x_0).
        """
        one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
        alpha = float(self._renoise(one, step_index, zero))
        sigma = float(self._renoise(zero, step_index, one))
        x, prediction = latents.float(), noise_pred.float()
        match self._scheduler.config.get("prediction_type", "flow_prediction"):
            case "epsilon":
                final = (x - sigma * prediction) / alpha
            case "v_prediction":
                scale = alpha**2 + sigma**2
                final = (alpha * x - sigma * scale**0.5 * prediction) / scale
            case "sample":
                final = prediction
            case _:
                final = x - sigma * prediction
        return final.to(latents.dtype)

    def model_input(self, latents: Tensor, step_index: int) -> Tensor:
        """The latents as the denoiser wants them at this step."""
        if not hasattr(self._scheduler, "scale_model_input"):
            return latents
        scaled = self._scheduler.scale_model_input(latents, self.timesteps[step_index])
        assert isinstance(scaled, Tensor)
        return scaled

    def step(self, noise_pred: Tensor, step_index: int, latents: Tensor) -> Tensor:
        """The latents after step `step_index`. Advances the scheduler's own index and history."""
        stepped = self._scheduler.step(
            noise_pred,
            self.timesteps[step_index],
            latents,
            **self._step_options,
            return_dict=False,
        )[0]
        assert isinstance(stepped, Tensor)
        return stepped
