"""Jobs that follow another one in flight, through the real engine and tiny model."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from tests.unit.denoising.fakes import TIMEOUT_S, FakeDenoiser, StepGate, request_for
from tests.unit.denoising.pairs import SCHEDULERS, TinyModel
from workers.denoising.engine import Engine
from workers.denoising.errors import Cancelled, DeadlineExceeded, DenoisingFailed, InvalidRequest
from workers.denoising.families.family import Encoding
from workers.denoising.leads import Follow, Lead
from workers.denoising.request import DenoiseRequest, StartState
from workers.denoising.solvers import Solver

N = 8


@pytest.fixture
def encoding(engine: Engine) -> Encoding:
    return engine.encode("a cat").result(TIMEOUT_S)


@pytest.fixture
def gate(fake: FakeDenoiser) -> StepGate:
    gate = StepGate()
    fake.hook = gate
    return gate


def job(encoding: Encoding, job_id: str, **changes: Any) -> DenoiseRequest:
    return request_for(encoding, job_id=job_id, num_inference_steps=N, **changes)


def follow(lead: Lead, *ks: int, wait_s: float = TIMEOUT_S) -> Follow:
    return Follow(lead=lead, ks=ks, give_up_at=time.monotonic() + wait_s)


def test_followers_run_only_the_steps_that_are_left_and_draw_other_pictures(
    engine: Engine, fake: FakeDenoiser, encoding: Encoding
) -> None:
    lead = Lead({4})
    leader = engine.denoise(job(encoding, "leader", lead=lead, seed=0))
    followers = [
        engine.denoise(job(encoding, str(seed), follow=follow(lead, 4), seed=seed))
        for seed in (1, 2, 3)
    ]
    drawn = [each.result(TIMEOUT_S) for each in (leader, *followers)]
    assert [(each.k, each.steps_run) for each in drawn] == [(0, N), (4, 4), (4, 4), (4, 4)]
    # The waiting ones hold no seat: four passes for the leader alone, then four for all.
    assert fake.num_rows == [1] * 4 + [4] * 4
    assert len({each.image.tobytes() for each in drawn}) == 4


def test_a_follower_that_comes_before_its_leader_waits_for_it(
    engine: Engine, encoding: Encoding
) -> None:
    lead = Lead({4})
    follower = engine.denoise(job(encoding, "follower", follow=follow(lead, 4)))
    engine.encode("something else").result(TIMEOUT_S)  # the engine has seen the follower
    assert not follower.done()
    engine.denoise(job(encoding, "leader", lead=lead))
    assert follower.result(TIMEOUT_S).k == 4


def test_a_follower_of_a_finished_job_starts_from_its_result(
    engine: Engine, encoding: Encoding
) -> None:
    lead = Lead({2})
    final = engine.denoise(job(encoding, "leader", lead=lead)).result(TIMEOUT_S).final_latents
    followed = engine.denoise(job(encoding, "b", follow=follow(lead, 2, 4), seed=7))
    assert final is not None
    state = StartState(latents=final, kind="final", k=4)
    reused = engine.denoise(job(encoding, "c", start=state, seed=7))
    assert (followed.result(TIMEOUT_S).image == reused.result(TIMEOUT_S).image).all()


def test_when_the_leader_is_cancelled_followers_start_from_what_it_showed(
    engine: Engine, gate: StepGate, encoding: Encoding
) -> None:
    lead = Lead({2, 4})
    leader = engine.denoise(job(encoding, "leader", lead=lead))
    follower = engine.denoise(job(encoding, "follower", follow=follow(lead, 2, 4)))
    for _ in range(2):
        gate.wait_for_step()
        gate.let_through()
    gate.wait_for_step()
    engine.cancel("leader")
    gate.open()
    assert isinstance(leader.exception(TIMEOUT_S), Cancelled)
    assert follower.result(TIMEOUT_S).k == 2


def test_when_the_leader_fails_followers_start_from_noise(
    engine: Engine, fake: FakeDenoiser, encoding: Encoding
) -> None:
    def fail(latents: Any, rows: Any) -> None:
        fake.hook = lambda latents, rows: None
        raise ValueError("the model is broken")

    fake.hook = fail
    lead = Lead({4})
    leader = engine.denoise(job(encoding, "leader", lead=lead))
    follower = engine.denoise(job(encoding, "follower", follow=follow(lead, 4)))
    assert isinstance(leader.exception(TIMEOUT_S), DenoisingFailed)
    drawn = follower.result(TIMEOUT_S)
    assert (drawn.k, drawn.steps_run) == (0, N)


def test_a_follower_gives_up_on_a_leader_that_never_comes(
    engine: Engine, encoding: Encoding
) -> None:
    follower = engine.denoise(job(encoding, "follower", follow=follow(Lead({4}), 4, wait_s=0.05)))
    assert follower.result(TIMEOUT_S).k == 0


def test_a_follower_without_a_prediction_falls_back_to_its_own_state(
    engine: Engine, encoding: Encoding
) -> None:
    state = StartState(latents=torch.zeros(4, 8, 8), kind="final", k=2)
    lead = Lead({4})
    lead.end()
    follower = engine.denoise(job(encoding, "f", start=state, follow=follow(lead, 1, 4)))
    assert follower.result(TIMEOUT_S).k == 2


def test_a_prediction_that_is_not_finite_is_not_followed(
    engine: Engine, encoding: Encoding
) -> None:
    lead = Lead({4})
    lead.note(4, torch.full((1, 4, 8, 8), float("nan")))
    assert engine.denoise(job(encoding, "f", follow=follow(lead, 4))).result(TIMEOUT_S).k == 0


def test_a_waiting_follower_can_be_cancelled(engine: Engine, encoding: Encoding) -> None:
    follower = engine.denoise(job(encoding, "follower", follow=follow(Lead({4}), 4)))
    assert engine.cancel("follower")
    assert isinstance(follower.exception(TIMEOUT_S), Cancelled)


def test_a_waiting_follower_keeps_its_deadline(engine: Engine, encoding: Encoding) -> None:
    deadline = time.monotonic() + 0.05
    request = job(encoding, "f", follow=follow(Lead({4}), 4), deadline_monotonic_s=deadline)
    assert isinstance(engine.denoise(request).exception(TIMEOUT_S), DeadlineExceeded)


@pytest.mark.parametrize("ks", [(), (0, 2), (4, 2), (N,)])
def test_steps_to_skip_that_make_no_sense_are_refused(encoding: Encoding, ks: tuple[int]) -> None:
    with pytest.raises(InvalidRequest):
        job(encoding, "f", follow=follow(Lead({4}), *ks))


def test_a_follower_does_not_lead(encoding: Encoding) -> None:
    with pytest.raises(InvalidRequest, match="cannot lead"):
        job(encoding, "f", follow=follow(Lead({4}), 4), lead=Lead({4}))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_true_prediction_gives_back_the_finished_latents(
    scheduler: str, tiny_models: dict[str, TinyModel]
) -> None:
    """Whatever the scheduler's parametrisation, and whatever its model predicts."""
    model = tiny_models["sd3" if scheduler.startswith("flow") else "sd"].with_scheduler(scheduler)
    family = model.family
    solver = Solver(family.scheduler, N, **family.schedule(N, 16, 16))
    generator = torch.Generator().manual_seed(1)
    final, noise = torch.randn(2, 1, 4, 8, 8, generator=generator)
    latents = solver.start_from(StartState(latents=final[0], kind="final", k=3), noise, generator)
    is_flow = scheduler.startswith("flow")
    predicted = solver.predict_final(noise - final if is_flow else noise, 3, latents)
    assert (predicted - final).abs().max() < 1e-3


def test_a_velocity_gives_back_the_finished_latents(tiny_models: dict[str, TinyModel]) -> None:
    scheduler = tiny_models["sd"].family.scheduler
    velocities = type(scheduler).from_config(scheduler.config, prediction_type="v_prediction")
    solver = Solver(velocities, N)
    generator = torch.Generator().manual_seed(1)
    final, noise = torch.randn(2, 1, 4, 8, 8, generator=generator)
    latents = solver.start_from(StartState(latents=final[0], kind="final", k=3), noise, generator)
    velocity = velocities.get_velocity(final, noise, solver.timesteps[3:4])
    assert (solver.predict_final(velocity, 3, latents) - final).abs().max() < 1e-3
