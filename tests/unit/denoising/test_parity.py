"""The engine against each family's own diffusers pipeline, and against itself in a full batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.unit.denoising.fakes import TIMEOUT_S, FakeDenoiser, StepGate, request_for, run_alone
from tests.unit.denoising.pairs import FAMILIES, PAIRS, TinyModel
from workers.denoising.engine import Engine
from workers.denoising.families.flux import pack
from workers.denoising.request import Denoised, DenoiseRequest, StartState

PROMPT = "a red bus on the moon"
# What two jobs of a family may differ in; each is run by every scheduler.
OPTIONS: list[dict[str, Any]] = [
    {"height": 16, "width": 16, "guidance_scale": 7.5},
    {"height": 24, "width": 16, "guidance_scale": 4.0, "negative_prompt": "blurry, grey"},
    {"height": 16, "width": 24, "guidance_scale": 1.0},
]


@pytest.fixture
def model(tiny_models: dict[str, TinyModel], pair: tuple[str, str]) -> TinyModel:
    name, scheduler = pair
    return tiny_models[name].with_scheduler(scheduler)


def options_of(model: TinyModel, number: int, num_inference_steps: int = 6) -> dict[str, Any]:
    options = {**OPTIONS[number], "num_inference_steps": num_inference_steps}
    if not model.family.has_classifier_free_guidance:
        options.pop("negative_prompt", None)
    return options


def run(model: TinyModel, negative_prompt: str = "", **changes: Any) -> Denoised:
    with Engine(model.family) as engine:
        encoding = engine.encode(PROMPT, negative_prompt).result(TIMEOUT_S)
        return engine.denoise(request_for(encoding, **changes)).result(TIMEOUT_S)


def run_pipeline(model: TinyModel, output_type: str, *, seed: int, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(seed)
    images = model.pipeline(PROMPT, generator=generator, output_type=output_type, **options).images
    return images[0]


def final_of(denoised: Denoised) -> Tensor:
    assert denoised.final_latents is not None
    return denoised.final_latents


def as_pipelines(model: TinyModel, latents: Tensor) -> Tensor:
    """Flux's pipeline keeps its latents packed into tokens."""
    return pack(latents.unsqueeze(0))[0] if model.name.startswith("flux") else latents


@pytest.mark.parametrize("pair", PAIRS, ids=" ".join)
@pytest.mark.parametrize("number", range(len(OPTIONS)))
def test_final_latents_equal_the_pipelines(model: TinyModel, number: int) -> None:
    options = options_of(model, number)
    ours = as_pipelines(model, final_of(run(model, **options, seed=7)))
    theirs = run_pipeline(model, "latent", seed=7, **options)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("pair", [(name, next(iter(each))) for name, each in FAMILIES.items()])
def test_images_equal_the_pipelines(model: TinyModel) -> None:
    options = options_of(model, 1)
    ours = run(model, **options, seed=7).image
    theirs = run_pipeline(model, "np", seed=7, **options)
    assert ours.shape == (24, 16, 3)
    assert np.abs(ours.astype(int) - (theirs * 255).round().astype(int)).max() <= 1


@pytest.mark.parametrize("pair", [(name, next(iter(each))) for name, each in FAMILIES.items()])
def test_all_that_a_job_asks_for_shows_in_its_latents(model: TinyModel) -> None:
    """Or else parity would hold however the denoiser was told."""
    options = options_of(model, 0)
    latents = final_of(run(model, **options))
    changes: list[dict[str, Any]] = [{"seed": 2}, {"num_inference_steps": 7}]
    if model.name != "flux schnell":
        changes.append({"guidance_scale": 3.0})
    if model.family.has_classifier_free_guidance:
        changes.append({"negative_prompt": "blurry, grey"})
    for change in changes:
        other = final_of(run(model, **{**options, **change}))
        assert (other - latents).abs().max() > 2e-4, change
    with Engine(model.family) as engine:
        encoding = engine.encode("two cats").result(TIMEOUT_S)
        other = final_of(engine.denoise(request_for(encoding, **options)).result(TIMEOUT_S))
    assert (other - latents).abs().max() > 2e-4


def mixed_requests(model: TinyModel, engine: Engine) -> list[DenoiseRequest]:
    """Eight jobs that differ in everything that a batch allows."""
    has_negative = model.family.has_classifier_free_guidance
    encodings = [
        engine.encode(f"prompt number {n}", "grey" * (n % 3) if has_negative else "")
        for n in range(8)
    ]
    return [
        request_for(
            encoding.result(TIMEOUT_S),
            job_id=str(n),
            seed=n,
            guidance_scale=[1.0, 3.0, 7.5][n % 3],
            **_start(n),
        )
        for n, encoding in enumerate(encodings)
    ]


def _start(n: int) -> dict[str, Any]:
    """From noise, an intermediate or a final state."""
    if n % 4 == 0:
        return {"num_inference_steps": 5 + n // 2}
    latents = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(n))
    state = StartState(latents=latents, kind="intermediate" if n % 2 else "final", k=45 + n // 2)
    return {"num_inference_steps": 50 + n, "start": state}


@pytest.mark.parametrize("pair", PAIRS, ids=" ".join)
def test_a_job_in_a_mixed_batch_of_eight_equals_itself_alone(model: TinyModel) -> None:
    fake, gate = FakeDenoiser(model.family), StepGate()
    with Engine(fake.as_family(), batch_size_max=8) as engine:
        requests = mixed_requests(model, engine)
        fake.hook = gate
        first = engine.denoise(requests[0])
        gate.wait_for_step()  # the others arrive during its first step, and join at the next
        futures = [first, *(engine.denoise(request) for request in requests[1:])]
        gate.open()
        together = [final_of(future.result(TIMEOUT_S)) for future in futures]
    # 8 jobs, of which 5 are guided: no family pays for a second row that it does not use.
    assert fake.num_rows[:2] == [1, 13 if model.family.has_classifier_free_guidance else 8]
    for request, latents in zip(requests, together, strict=True):
        alone = run_alone(model.family, request)
        torch.testing.assert_close(latents, alone, atol=1e-3, rtol=0)
