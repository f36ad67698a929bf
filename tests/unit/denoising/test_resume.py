"""Resuming at k in the engine: every family and scheduler, and the shipped model's real weights."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import models
from tests.unit.denoising.fakes import TIMEOUT_S, request_for
from tests.unit.denoising.pairs import PAIRS, TinyModel
from workers.denoising.engine import Engine
from workers.denoising.errors import InvalidRequest
from workers.denoising.families import loading
from workers.denoising.families.family import Family
from workers.denoising.request import Denoised, DenoiseRequest, StartState
from workers.denoising.schedulers import SUPPORTED, Resume, replacement

NUM_STEPS = 20
K_SET = tuple(NUM_STEPS * percent // 100 for percent in (10, 20, 30, 40, 50))
SHIPPED = Path(models.__file__).parent / "small"


def final_of(denoised: Denoised) -> Tensor:
    assert denoised.final_latents is not None
    return denoised.final_latents


def resume_everywhere(
    family: Family, request: DenoiseRequest
) -> tuple[Denoised, dict[int, Denoised]]:
    """The uninterrupted run, and the runs resumed from each state of it, by k."""
    with Engine(family) as engine:
        whole = engine.denoise(request).result(TIMEOUT_S)
        futures = {
            k: engine.denoise(
                replace(request, start=StartState(latents=latents, kind="intermediate", k=k))
            )
            for k, latents in whole.captured.items()
        }
        return whole, {k: future.result(TIMEOUT_S) for k, future in futures.items()}


def relative_rms(latents: Tensor, reference: Tensor) -> float:
    return ((latents - reference).square().mean() / reference.square().mean()).sqrt().item()


def check_resumed(family: Family, whole: Denoised, resumed: dict[int, Denoised]) -> None:
    assert set(resumed) == set(whole.captured) == set(K_SET)
    resume = SUPPORTED[type(family.scheduler).__name__].resume
    for k, denoised in resumed.items():
        assert denoised.steps_run == NUM_STEPS - k
        assert set(denoised.captured) == {other for other in K_SET if other > k}
        match resume:
            case Resume.EXACT:
                torch.testing.assert_close(
                    final_of(denoised), final_of(whole), atol=1e-5, rtol=1e-5
                )
            case Resume.WARM_RESTART:
                assert relative_rms(final_of(denoised), final_of(whole)) <= 0.05


@pytest.mark.parametrize("pair", PAIRS, ids=" ".join)
def test_resuming_at_every_k_ends_where_the_uninterrupted_run_does(
    tiny_models: dict[str, TinyModel], pair: tuple[str, str]
) -> None:
    name, scheduler = pair
    family = tiny_models[name].with_scheduler(scheduler).family
    request = request_for(
        family.encode(["a red bus"], [""])[0],
        num_inference_steps=NUM_STEPS,
        guidance_scale=5.0,
        capture_steps=frozenset(K_SET),
    )
    check_resumed(family, *resume_everywhere(family, request))


@pytest.fixture(scope="module")
def shipped() -> Family:
    return loading.load(SHIPPED)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_a_warm_restart_ends_close_on_the_shipped_models_real_weights(
    shipped: Family, name: str
) -> None:
    family: Any = copy.copy(shipped)
    family.scheduler = replacement(name, shipped.scheduler, is_flow_matching=False)
    request = request_for(
        shipped.encode(["a red apple on a blue background"], [""])[0],
        height=64,
        width=64,
        num_inference_steps=NUM_STEPS,
        guidance_scale=4.0,
        capture_steps=frozenset(K_SET),
    )
    check_resumed(family, *resume_everywhere(cast("Family", family), request))


def test_a_final_state_depends_on_the_new_jobs_seed(tiny_models: dict[str, TinyModel]) -> None:
    for name, scheduler in PAIRS:
        family = tiny_models[name].with_scheduler(scheduler).family
        encoding = family.encode(["a red bus"], [""])[0]
        latents = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1))
        state = StartState(latents=latents, kind="final", k=3)
        with Engine(family) as engine:
            futures = [
                engine.denoise(request_for(encoding, seed=seed, start=state)) for seed in (2, 2, 3)
            ]
            one, again, other = (final_of(future.result(TIMEOUT_S)) for future in futures)
        torch.testing.assert_close(one, again, atol=1e-5, rtol=0)
        assert one.isfinite().all()
        assert not torch.allclose(one, other)


def test_a_state_that_a_multistep_solver_cannot_take_up_is_refused_at_submission(
    tiny_models: dict[str, TinyModel],
) -> None:
    family = tiny_models["sd"].with_scheduler("unipc").family
    state = StartState(latents=torch.zeros(4, 8, 8), kind="intermediate", k=3)
    request = request_for(family.encode(["a"], [""])[0], num_inference_steps=10, start=state)
    with (
        Engine(family) as engine,
        pytest.raises(InvalidRequest, match=r"UniPC.*cannot take up step 3 of 10"),
    ):
        engine.denoise(request)
