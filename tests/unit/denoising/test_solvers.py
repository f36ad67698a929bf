# mypy: disable-error-code="no-untyped-call"
# diffusers' constructors carry no annotations.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from tests.tiny_pipeline import BETAS, tiny_ddim_scheduler
from workers.denoising.errors import InvalidRequest, UnsupportedScheduler
from workers.denoising.request import StartState
from workers.denoising.schedulers import Resume, check_supported, scheduler_fingerprint
from workers.denoising.solvers import Solver

NUM_STEPS = 10
SCHEDULERS: dict[str, Callable[[], Any]] = {
    "ddim": tiny_ddim_scheduler,
    "ddim trailing": lambda: tiny_ddim_scheduler(timestep_spacing="trailing"),
    "ddim v-prediction": lambda: tiny_ddim_scheduler(prediction_type="v_prediction"),
    "euler": lambda: diffusers.EulerDiscreteScheduler(**BETAS),
    "euler karras": lambda: diffusers.EulerDiscreteScheduler(**BETAS, use_karras_sigmas=True),
    "flow matching": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
}
REFUSED: dict[str, Callable[[], Any]] = {
    "PNDMScheduler": lambda: diffusers.PNDMScheduler(),
    "HeunDiscreteScheduler": lambda: diffusers.HeunDiscreteScheduler(),
    "EulerAncestralDiscreteScheduler": lambda: diffusers.EulerAncestralDiscreteScheduler(),
    "FlowMatchEulerDiscreteScheduler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True
    ),
}


@pytest.fixture(params=SCHEDULERS)
def scheduler(request: pytest.FixtureRequest) -> Any:
    return SCHEDULERS[request.param]()


def draw(seed: int) -> Tensor:
    return torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(seed))


def toy_prediction(model_input: Tensor, timestep: Tensor) -> Tensor:
    return torch.tanh(model_input) * (0.5 + timestep / 2000)


def solve(scheduler: Any, state: StartState | None, noise: Tensor) -> list[Tensor]:
    """The latents on entry and after each step that is run."""
    solver = Solver(scheduler, NUM_STEPS)
    latents = [solver.start_from(state, noise)]
    for index in range(state.k if state else 0, NUM_STEPS):
        model_input = solver.model_input(latents[-1], index)
        noise_pred = toy_prediction(model_input, solver.timesteps[index])
        latents.append(solver.step(noise_pred, index, latents[-1]))
    return latents


@pytest.mark.parametrize("k", range(1, NUM_STEPS))
def test_an_intermediate_state_continues_exactly(scheduler: Any, k: int) -> None:
    whole = solve(scheduler, None, draw(1))
    state = StartState(latents=whole[k][0], kind="intermediate", k=k)
    resumed = solve(scheduler, state, draw(2))
    assert torch.equal(resumed[-1], whole[-1])


def test_a_final_state_enters_at_the_noise_level_of_its_step(scheduler: Any) -> None:
    k = 4
    final, noise = draw(3), draw(4)
    state = StartState(latents=final[0], kind="final", k=k)
    entered = solve(scheduler, state, noise)[0]
    solver = Solver(scheduler, NUM_STEPS)
    scaled: Any = solver._scheduler
    match type(scaled).__name__:
        case "DDIMScheduler":
            alpha = scaled.alphas_cumprod[solver.timesteps[k]]
            expected = alpha.sqrt() * final + (1 - alpha).sqrt() * noise
        case "EulerDiscreteScheduler":
            expected = final + scaled.sigmas[k] * noise
        case _:
            expected = (1 - scaled.sigmas[k]) * final + scaled.sigmas[k] * noise
    torch.testing.assert_close(entered, expected)


def test_noise_is_scaled_once_and_a_state_never() -> None:
    scheduler = SCHEDULERS["euler"]()
    noise = draw(1)
    solver = Solver(scheduler, NUM_STEPS)
    sigma = solver._scheduler.init_noise_sigma
    assert sigma > 10
    assert torch.equal(solver.start_from(None, noise), noise * sigma)
    state = StartState(latents=draw(2)[0], kind="intermediate", k=3)
    assert torch.equal(Solver(scheduler, NUM_STEPS).start_from(state, noise), draw(2))


def test_the_template_is_never_stepped() -> None:
    scheduler: Any = diffusers.EulerDiscreteScheduler(**BETAS)
    solve(scheduler, None, draw(1))
    assert scheduler.step_index is None
    assert scheduler.num_inference_steps is None


def test_supported_schedulers_say_how_they_resume(scheduler: Any) -> None:
    assert check_supported(scheduler) is Resume.EXACT


@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused_naming_those_that_work(name: str) -> None:
    with pytest.raises(UnsupportedScheduler) as refused:
        check_supported(REFUSED[name]())
    assert name in str(refused.value)
    assert "DDIMScheduler, EulerDiscreteScheduler" in str(refused.value)


def test_more_steps_than_the_model_was_trained_with_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="1001"):
        Solver(SCHEDULERS["ddim"](), 1001)


def test_the_fingerprint_follows_the_configuration() -> None:
    same, other = tiny_ddim_scheduler(), tiny_ddim_scheduler(timestep_spacing="trailing")
    assert scheduler_fingerprint(same) == scheduler_fingerprint(SCHEDULERS["ddim"]())
    assert scheduler_fingerprint(same) != scheduler_fingerprint(other)
    assert scheduler_fingerprint(same).startswith("DDIMScheduler:")
