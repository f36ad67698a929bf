# mypy: disable-error-code="no-untyped-call"
# diffusers' constructors carry no annotations.

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from tests.tiny_pipeline import tiny_ddim_scheduler
from tests.unit.denoising.pairs import SCHEDULERS, SPACED
from workers.denoising.errors import InvalidRequest
from workers.denoising.request import StartState
from workers.denoising.schedulers import SUPPORTED, Resume, resumes
from workers.denoising.solvers import Solver

NUM_STEPS = 20
MORE_SCHEDULERS = {
    **SCHEDULERS,
    "ddim trailing": lambda: tiny_ddim_scheduler(timestep_spacing="trailing"),
    "ddim v-prediction": lambda: tiny_ddim_scheduler(prediction_type="v_prediction"),
    "dpm++ heun": lambda: diffusers.DPMSolverMultistepScheduler(**SPACED, solver_type="heun"),
    "dpm++ sigma_min": lambda: diffusers.DPMSolverMultistepScheduler(
        **SPACED, final_sigmas_type="sigma_min"
    ),
    "unipc karras": lambda: diffusers.UniPCMultistepScheduler(**SPACED, use_karras_sigmas=True),
    "unipc 3": lambda: diffusers.UniPCMultistepScheduler(**SPACED, solver_order=3),
}


@pytest.fixture(params=MORE_SCHEDULERS)
def scheduler(request: pytest.FixtureRequest) -> Any:
    return MORE_SCHEDULERS[request.param]()


def draw(seed: int) -> Tensor:
    return torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(seed))


def make_solver(scheduler: Any, num_steps: int = NUM_STEPS) -> Solver:
    shift = {"mu": 0.7} if scheduler.config.get("use_dynamic_shifting") else {}
    return Solver(scheduler, num_steps, **shift)


def toy_prediction(model_input: Tensor, timestep: Tensor) -> Tensor:
    return torch.tanh(model_input) * (0.5 + timestep / 2000)


def solve(
    scheduler: Any, state: StartState | None, seed: int, num_steps: int = NUM_STEPS
) -> list[Tensor]:
    """The latents on entry and after each step that is run."""
    solver = make_solver(scheduler, num_steps)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((1, 4, 8, 8), generator=generator)
    latents = [solver.start_from(state, noise, generator)]
    for index in range(state.k if state else 0, num_steps):
        model_input = solver.model_input(latents[-1], index)
        noise_pred = toy_prediction(model_input, solver.timesteps[index])
        latents.append(solver.step(noise_pred, index, latents[-1]))
    return latents


def resume_of(scheduler: Any) -> Resume:
    return SUPPORTED[type(scheduler).__name__].resume


def relative_rms(latents: Tensor, reference: Tensor) -> float:
    return ((latents - reference).square().mean() / reference.square().mean()).sqrt().item()


@pytest.mark.parametrize("k", range(1, NUM_STEPS))
def test_an_intermediate_state_goes_on_to_the_uninterrupted_end(scheduler: Any, k: int) -> None:
    whole = solve(scheduler, None, seed=1)
    state = StartState(latents=whole[k][0], kind="intermediate", k=k)
    resumed = solve(scheduler, state, seed=1)
    assert resumed[-1].isfinite().all()
    match resume_of(scheduler):
        case Resume.EXACT:
            assert torch.equal(resumed[-1], whole[-1])
        case Resume.WARM_RESTART if resumes(scheduler, NUM_STEPS, k=k):
            assert relative_rms(resumed[-1], whole[-1]) <= 0.05


def test_what_each_step_draws_depends_on_the_seed_and_the_step_alone() -> None:
    scheduler = SCHEDULERS["euler ancestral"]()
    whole = solve(scheduler, None, seed=1)
    state = StartState(latents=whole[8][0], kind="intermediate", k=8)
    assert torch.equal(solve(scheduler, state, seed=1)[-1], whole[-1])
    others = [solve(scheduler, state, seed=seed)[-1] for seed in (2, 2, 3)]
    assert torch.equal(others[0], others[1])
    assert not torch.allclose(others[0], others[2])
    assert not torch.allclose(others[0], whole[-1])


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4])
def test_very_short_runs_give_finite_latents(scheduler: Any, num_steps: int) -> None:
    assert solve(scheduler, None, seed=1, num_steps=num_steps)[-1].isfinite().all()


@pytest.mark.parametrize("k", [1, 3, 5, 9])
def test_any_state_of_any_number_of_steps_gives_finite_latents(scheduler: Any, k: int) -> None:
    for num_steps in (10, 13, 50):
        state = StartState(latents=draw(3)[0], kind="final", k=k)
        assert solve(scheduler, state, seed=4, num_steps=num_steps)[-1].isfinite().all()


def test_a_final_state_enters_at_the_noise_level_of_its_step(scheduler: Any) -> None:
    k, final = 4, draw(3)
    state = StartState(latents=final[0], kind="final", k=k)
    entered = solve(scheduler, state, seed=4)[0]
    solver = make_solver(scheduler)
    scaled: Any = solver._scheduler
    match type(scaled).__name__:
        case "DDIMScheduler":
            alpha = scaled.alphas_cumprod[solver.timesteps[k]]
            expected = alpha.sqrt() * final + (1 - alpha).sqrt() * draw(4)
        case "EulerDiscreteScheduler" | "EulerAncestralDiscreteScheduler":
            expected = final + scaled.sigmas[k] * draw(4)
        case "DPMSolverMultistepScheduler" | "UniPCMultistepScheduler" if (
            not scaled.config.use_flow_sigmas
        ):
            alpha = 1 / (1 + scaled.sigmas[k] ** 2)
            expected = alpha.sqrt() * final + (1 - alpha).sqrt() * draw(4)
        case _:
            expected = (1 - scaled.sigmas[k]) * final + scaled.sigmas[k] * draw(4)
    torch.testing.assert_close(entered, expected)


@pytest.mark.parametrize("name", ["euler", "euler ancestral"])
def test_noise_is_scaled_once_and_a_state_never(name: str) -> None:
    scheduler, noise, generator = SCHEDULERS[name](), draw(1), torch.Generator()
    solver = make_solver(scheduler)
    sigma = solver._scheduler.init_noise_sigma
    assert sigma > 10
    assert torch.equal(solver.start_from(None, noise, generator), noise * sigma)
    state = StartState(latents=draw(2)[0], kind="intermediate", k=3)
    assert torch.equal(make_solver(scheduler).start_from(state, noise, generator), draw(2))


def test_the_template_is_never_stepped(scheduler: Any) -> None:
    before = dict(scheduler.config)
    solve(scheduler, None, seed=1)
    assert getattr(scheduler, "step_index", None) is None
    assert getattr(scheduler, "num_inference_steps", None) is None
    assert scheduler.config == before
    assert scheduler.config.get("flow_shift") == getattr(scheduler.config, "flow_shift", None)


def test_a_warm_restart_that_would_end_too_far_off_is_refused(scheduler: Any) -> None:
    for num_steps, k, is_close in ((19, 2, False), (20, 1, False), (20, 10, True), (20, 11, False)):
        solver = make_solver(scheduler, num_steps)
        intermediate, final = (
            StartState(latents=draw(1)[0], kind=kind, k=k) for kind in ("intermediate", "final")
        )
        solver.check_start(None)
        solver.check_start(final)
        if is_close or resume_of(scheduler) is Resume.EXACT:
            solver.check_start(intermediate)
        else:
            with pytest.raises(InvalidRequest, match=f"cannot take up step {k} of {num_steps}"):
                solver.check_start(intermediate)


def test_more_steps_than_the_model_was_trained_with_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="1001"):
        Solver(SCHEDULERS["ddim"](), 1001)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of the division
def test_a_schedule_that_is_not_finite_is_refused() -> None:
    """One step cannot both start at noise and end at the terminal shift: 0 / 0."""
    scheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler(shift_terminal=0.1)
    assert len(Solver(scheduler, 2).timesteps) == 2
    with pytest.raises(InvalidRequest, match="cannot make 1 steps"):
        Solver(scheduler, 1)
