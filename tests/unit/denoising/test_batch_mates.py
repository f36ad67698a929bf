"""A job's image is its own, whoever shares its batches and whenever it joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tiny_pipeline import build_tiny_pipeline
from tests.unit.denoising.fakes import TIMEOUT_S, request_for
from workers.denoising.engine import ONE_THREAD, Engine
from workers.denoising.families import loading
from workers.denoising.families.family import Encoding, Family
from workers.denoising.in_flight import InFlight
from workers.denoising.request import Denoised, DenoiseRequest, StartState
from workers.denoising.trajectory import Trajectory

PROMPTS = ("a cat", "two dogs on the moon", "")


@dataclass(frozen=True)
class Plan:
    """One job, and the step of the others at which it joins."""

    joins_at: int
    prompt: int
    num_steps: int
    k: int  # 0 is from noise
    kind: str
    guidance_scale: float
    height: int
    seed: int


plans = st.builds(
    Plan,
    joins_at=st.integers(0, 6),
    prompt=st.integers(0, len(PROMPTS) - 1),
    num_steps=st.integers(2, 6),
    k=st.integers(0, 1),
    kind=st.sampled_from(["intermediate", "final"]),
    guidance_scale=st.sampled_from([1.0, 3.0, 7.5]),
    height=st.sampled_from([16, 24]),
    seed=st.integers(0, 9),
)


@pytest.fixture(scope="module")
def encodings(family: Family) -> list[Encoding]:
    return family.encode(PROMPTS, ["", "grey", "grey"])


def request_of(plan: Plan, encodings: Sequence[Encoding]) -> DenoiseRequest:
    latents = torch.randn(4, plan.height // 2, 8, generator=torch.Generator().manual_seed(plan.k))
    start = StartState(latents=latents, kind=plan.kind, k=plan.k) if plan.k else None  # type: ignore[arg-type]
    return request_for(
        encodings[plan.prompt],
        num_inference_steps=plan.num_steps,
        guidance_scale=plan.guidance_scale,
        height=plan.height,
        seed=plan.seed,
        start=start,
    )


def run_together(
    family: Family, plans: Sequence[Plan], encodings: Sequence[Encoding]
) -> list[Denoised]:
    """The engine's loop without its thread: who joins at which step is up to the plans."""
    flight = InFlight(family.device, batch_size_max=3, num_waiting_max=99, threads=ONE_THREAD)
    jobs = [(plan.joins_at, Trajectory(request_of(plan, encodings), family)) for plan in plans]
    with torch.inference_mode():
        for step in range(sum(plan.num_steps for plan in plans) + 7):
            flight.begin(job for joins_at, job in jobs if joins_at == step)
            flight.step()
            flight.retire()
    assert not len(flight)
    return [job.future.result(0) for _, job in jobs]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(plans=st.lists(plans, min_size=2, max_size=6))
def test_a_job_in_any_company_equals_itself_alone(
    family: Family, encodings: list[Encoding], plans: list[Plan]
) -> None:
    together = run_together(family, plans, encodings)
    for plan, mine in zip(plans, together, strict=True):
        (alone,) = run_together(family, [plan], encodings)
        assert mine.final_latents is not None
        assert alone.final_latents is not None
        torch.testing.assert_close(mine.final_latents, alone.final_latents, atol=1e-3, rtol=0)
        assert np.abs(mine.image.astype(int) - alone.image.astype(int)).max() <= 1


def test_jobs_of_two_models_run_in_one_engine_each_on_its_own_weights(
    family: Family, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = build_tiny_pipeline(tmp_path_factory.mktemp("other") / "model", seed=1)
    models = [family, loading.load(folder)]
    with Engine(device=torch.device("cpu"), batch_size_max=4) as engine:
        encodings = [engine.encode("a cat", family=model) for model in models]
        futures = [
            engine.denoise(request_for(encoding.result(TIMEOUT_S), seed=seed), family=model)
            for seed in range(3)
            for model, encoding in zip(models, encodings, strict=True)
        ]
        results = [future.result(TIMEOUT_S).final_latents for future in futures]
        assert all(engine.seconds_per_step(model) for model in models)
    for n, latents in enumerate(results):
        model, seed = models[n % 2], n // 2
        with Engine(model) as engine:
            encoding = engine.encode("a cat").result(TIMEOUT_S)
            alone = engine.denoise(request_for(encoding, seed=seed)).result(TIMEOUT_S)
        assert latents is not None
        assert alone.final_latents is not None
        torch.testing.assert_close(latents, alone.final_latents, atol=1e-3, rtol=0)
