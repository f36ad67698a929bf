"""The engine against diffusers' own pipeline, and against itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.unit.denoising.fakes import TIMEOUT_S, FakeDenoiser, StepGate, request_for, run_alone
from workers.denoising.engine import Engine
from workers.denoising.families.family import Family
from workers.denoising.request import Denoised, DenoiseRequest, StartState

PROMPT = "a red bus on the moon"
NUM_STEPS = 20
SCHEDULERS = ["ddim", "euler"]


def reference_pipeline(folder: Path) -> Any:
    pipeline: Any = diffusers.StableDiffusionPipeline
    pipeline = pipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def pipelines(folders: dict[str, Path]) -> dict[str, Any]:
    return {name: reference_pipeline(folder) for name, folder in folders.items()}


def run(family: Any, negative_prompt: str = "", **changes: Any) -> Denoised:
    with Engine(family) as engine:
        encoding = engine.encode(PROMPT, negative_prompt).result(TIMEOUT_S)
        return engine.denoise(request_for(encoding, **changes)).result(TIMEOUT_S)


def final_of(denoised: Denoised) -> Tensor:
    assert denoised.final_latents is not None
    return denoised.final_latents


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("negative_prompt", ["", "blurry, grey"])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (24, 16)])
@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
def test_final_latents_and_image_equal_the_pipelines(
    families: dict[str, Family],
    pipelines: dict[str, Any],
    name: str,
    negative_prompt: str,
    height: int,
    width: int,
    guidance_scale: float,
) -> None:
    options: dict[str, Any] = {
        "height": height,
        "width": width,
        "num_inference_steps": 10,
        "guidance_scale": guidance_scale,
    }
    ours = run(families[name], negative_prompt, **options, seed=7)
    theirs, image = (
        pipelines[name](
            PROMPT,
            negative_prompt=negative_prompt,
            generator=torch.Generator().manual_seed(7),
            output_type=output_type,
            **options,
        ).images[0]
        for output_type in ("latent", "np")
    )
    torch.testing.assert_close(final_of(ours), theirs, atol=1e-4, rtol=0)
    assert ours.image.shape == (height, width, 3)
    assert np.abs(ours.image.astype(int) - (image * 255).round().astype(int)).max() <= 1


@pytest.mark.parametrize("name", SCHEDULERS)
def test_resuming_at_every_k_equals_the_uninterrupted_run_bit_for_bit(
    families: dict[str, Family], name: str
) -> None:
    ks = frozenset(NUM_STEPS * percent // 100 for percent in (10, 20, 30, 40, 50))
    options: dict[str, Any] = {"num_inference_steps": NUM_STEPS, "guidance_scale": 5.0}
    whole = run(families[name], **options, capture_steps=ks)
    assert set(whole.captured) == ks
    for k, latents in whole.captured.items():
        state = StartState(latents=latents, kind="intermediate", k=k)
        resumed = run(families[name], **options, start=state, seed=99, capture_steps=ks)
        assert torch.equal(final_of(resumed), final_of(whole))
        assert np.array_equal(resumed.image, whole.image)
        assert resumed.steps_run == NUM_STEPS - k
        assert set(resumed.captured) == {other for other in ks if other > k}


def test_a_final_state_depends_on_the_new_jobs_seed(family: Family) -> None:
    source = run(family, seed=1)
    state = StartState(latents=final_of(source), kind="final", k=2)
    one, again, other = (run(family, start=state, seed=seed) for seed in (2, 2, 3))
    assert torch.equal(final_of(one), final_of(again))
    assert not torch.allclose(final_of(one), final_of(other))
    assert one.steps_run == 2


def mixed_requests(engine: Engine) -> list[DenoiseRequest]:
    """Eight jobs that differ in everything that a batch allows."""
    encodings = [engine.encode(f"prompt number {n}", "grey" * (n % 3)) for n in range(8)]
    states = [None, *(torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(n))
                      for n in range(1, 8))]  # fmt: skip
    return [
        request_for(
            encoding.result(TIMEOUT_S),
            job_id=str(n),
            seed=n,
            guidance_scale=[1.0, 3.0, 7.5][n % 3],
            num_inference_steps=6 + n,
            start=None
            if state is None or n % 4 == 0
            else StartState(latents=state, kind="intermediate" if n % 2 else "final", k=n // 2 + 1),
        )
        for n, (encoding, state) in enumerate(zip(encodings, states, strict=True))
    ]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_job_in_a_mixed_batch_of_eight_equals_itself_alone(
    families: dict[str, Family], name: str
) -> None:
    fake, gate = FakeDenoiser(families[name]), StepGate()
    with Engine(fake.as_family(), batch_size_max=8) as engine:
        requests = mixed_requests(engine)
        fake.hook = gate
        first = engine.denoise(requests[0])
        gate.wait_for_step()  # the others arrive during its first step, and join at the next
        futures = [first, *(engine.denoise(request) for request in requests[1:])]
        gate.open()
        together = [final_of(future.result(TIMEOUT_S)) for future in futures]
    assert fake.num_rows[:2] == [1, 13]  # 8 jobs, 5 of them guided
    for request, latents in zip(requests, together, strict=True):
        alone = run_alone(families[name], request)
        torch.testing.assert_close(latents, alone, atol=1e-3, rtol=0)
