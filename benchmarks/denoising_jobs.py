"""The same jobs through the engine and through consecutive calls of diffusers' pipeline."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import diffusers
import numpy as np
import torch
from torch import Tensor

from workers.denoising.engine import Engine
from workers.denoising.families.family import Family
from workers.denoising.request import DenoiseRequest, StartState
from workers.denoising.threads import ThreadTable

K_FRACTIONS: Final = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)  # of the steps; 0 is a miss
NUM_DONORS: Final = 4  # jobs whose states the others start from
SUBJECTS: Final = ("a fox", "a red bus", "a sailing boat", "an owl", "a cactus", "a bicycle")
PLACES: Final = ("in the snow", "on the moon", "at night", "in a meadow", "by the sea")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """One image to make, from noise or from a state after k steps."""

    prompt: str
    seed: int
    state: Tensor | None = None  # [C, h, w]
    k: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """How a side did the jobs."""

    seconds: float  # all of them
    latencies_s: tuple[float, ...]  # of each job, from the start of the run, in the jobs' order
    images: tuple[Any, ...]  # [H, W, 3], 0..255
    busy_s: Mapping[str, float]  # the engine's, by what it did
    jobs_per_batch: float = 1.0


def make_jobs(num_jobs: int) -> list[Job]:
    """Jobs from noise, prompts and seeds all different."""
    return [
        Job(prompt=f"{SUBJECTS[n % len(SUBJECTS)]} {PLACES[n % len(PLACES)]}, number {n}", seed=n)
        for n in range(num_jobs)
    ]


def give_states(jobs: Sequence[Job], family: Family, num_steps: int) -> list[Job]:
    """The same jobs with mixed k: every sixth from noise, the others from a donor's state."""
    ks = [round(fraction * num_steps) for fraction in K_FRACTIONS]
    captures = frozenset(k for k in ks if k > 0)
    donors = make_jobs(NUM_DONORS)
    with Engine(family, batch_size_max=NUM_DONORS) as engine:
        futures = [
            engine.denoise(_request(engine, job, family, num_steps, captures)) for job in donors
        ]
        states = [future.result().captured for future in futures]
    return [
        Job(prompt=job.prompt, seed=job.seed, k=k, state=states[n % NUM_DONORS][k] if k else None)
        for n, job in enumerate(jobs)
        for k in [ks[n % len(ks)]]
    ]


def run_engine(
    family: Family, jobs: Sequence[Job], *, num_steps: int, in_flight: int, threads: ThreadTable
) -> Run:
    """All jobs at once, `in_flight` of them in the engine, each from a thread as in a worker."""
    with (
        Engine(family, batch_size_max=in_flight, threads=threads) as engine,
        ThreadPoolExecutor(in_flight) as callers,
    ):
        started_at = time.perf_counter()

        def run(job: Job) -> tuple[float, Any]:
            request = _request(engine, job, family, num_steps, frozenset())
            image = engine.denoise(request).result().image
            return time.perf_counter() - started_at, image

        ended = list(callers.map(run, jobs))
        seconds = time.perf_counter() - started_at
    return Run(  # once the engine has closed its books
        seconds=seconds,
        latencies_s=tuple(latency_s for latency_s, _ in ended),
        images=tuple(image for _, image in ended),
        busy_s=engine.busy_s,
        jobs_per_batch=engine.jobs_per_batch,
    )


def _request(
    engine: Engine, job: Job, family: Family, num_steps: int, captures: frozenset[int]
) -> DenoiseRequest:
    start = None
    if job.state is not None:
        start = StartState(latents=job.state, kind="intermediate", k=job.k)
    return DenoiseRequest(
        job_id=str(job.seed),
        encoding=engine.encode(job.prompt).result(),
        height=family.spec.height,
        width=family.spec.width,
        num_inference_steps=num_steps,
        guidance_scale=family.spec.guidance_scale,
        seed=job.seed,
        start=start,
        capture_steps=captures,
    )


class Pipeline:
    """diffusers' own StableDiffusionPipeline on the same weights."""

    def __init__(self, folder: Path, family: Family) -> None:
        pipeline_class: Any = diffusers.StableDiffusionPipeline
        self._pipeline = pipeline_class.from_pretrained(
            folder, dtype=family.dtype, local_files_only=True, safety_checker=None
        ).to(family.device)
        self._pipeline.set_progress_bar_config(disable=True)
        self._spec = family.spec
        self._scheduler = self._pipeline.scheduler

    def run(self, jobs: Sequence[Job], *, num_steps: int, num_threads: int) -> Run:
        """One call after the other."""
        torch.set_num_threads(num_threads)
        latencies_s, images = [], []
        started_at = time.perf_counter()
        for job in jobs:
            images.append(self._call(job, num_steps))
            latencies_s.append(time.perf_counter() - started_at)
        seconds = time.perf_counter() - started_at
        return Run(seconds=seconds, latencies_s=tuple(latencies_s), images=tuple(images), busy_s={})

    def _call(self, job: Job, num_steps: int) -> Any:
        self._pipeline.scheduler = _from_step(self._scheduler, job.k)
        spec, latents = self._spec, None if job.state is None else job.state.unsqueeze(0)
        image = self._pipeline(
            job.prompt,
            height=spec.height,
            width=spec.width,
            num_inference_steps=num_steps,
            guidance_scale=spec.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(job.seed),
            latents=latents,
            output_type="np",
        ).images[0]
        return np.asarray(image * 255).round()


def _from_step(scheduler: Any, k: int) -> Any:
    """The scheduler, made to leave out its first k steps: the pipeline has no option for that."""

    class FromStep(type(scheduler)):  # type: ignore[misc]
        timesteps: Tensor

        def set_timesteps(self, *arguments: Any, **options: Any) -> None:
            super().set_timesteps(*arguments, **options)
            self.timesteps = self.timesteps[k:]

    return FromStep.from_config(scheduler.config)
