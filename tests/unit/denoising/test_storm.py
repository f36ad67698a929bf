"""Thousands of jobs with everything that can go wrong: all end, and nothing is left behind."""

from __future__ import annotations

import gc
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tests.unit.denoising.fakes import TIMEOUT_S, FakeDenoiser, request_for
from workers.denoising import failures
from workers.denoising.engine import Engine
from workers.denoising.errors import (
    Cancelled,
    DeadlineExceeded,
    DenoisingError,
    DenoisingFailed,
    EngineClosed,
    OutOfMemory,
)
from workers.denoising.families.family import Encoding, Family
from workers.denoising.pacing import HostPace
from workers.denoising.request import Denoised
from workers.denoising.trajectory import Trajectory


@pytest.fixture(autouse=True)
def _quick_and_quiet(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A garbage collection takes a third of a second here, and a log keeps its errors' frames."""
    monkeypatch.setattr(failures, "release_memory", lambda: None)
    caplog.set_level(logging.CRITICAL, logger="workers.denoising")


NUM_WAVES, WAVE_SIZE = 4, 500
FAILURE_RATE = 0.03  # of the forward passes


class StormyDenoiser(FakeDenoiser):
    """Computes next to nothing, and fails now and then in each way that a model can."""

    def __init__(self, family: Family, chance: random.Random) -> None:
        super().__init__(cast("Any", family))
        self._chance = chance

    def denoiser(
        self, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]
    ) -> Tensor:
        if self._chance.random() < FAILURE_RATE:
            if self._chance.random() < 0.5:
                raise ValueError("the model is broken")
            torch.empty(2**60, dtype=torch.uint8)  # an allocation that fails
        return 0.1 * latents


def submit(engine: Engine, encoding: Encoding, chance: random.Random, n: int) -> Future[Denoised]:
    deadline_s = chance.choice([None, None, 60.0, 0.02, -1.0])
    request = request_for(
        encoding,
        job_id=str(n),
        seed=n,
        num_inference_steps=chance.randint(1, 6),
        height=chance.choice([16, 16, 16, 24]),
        guidance_scale=chance.choice([1.0, 4.0]),
        capture_steps=frozenset({1}),
        deadline_monotonic_s=None if deadline_s is None else time.monotonic() + deadline_s,
    )
    future = engine.denoise(request)
    if chance.random() < 0.2:
        engine.cancel(str(max(0, n - chance.randint(0, 20))))
    return future


def ends_of_a_wave(engine: Engine, encoding: Encoding, seed: int) -> Counter[type | None]:
    """Submit from four threads at once; how the jobs ended."""

    def quarter(thread: int) -> list[Future[Denoised]]:
        chance = random.Random(4 * seed + thread)
        numbers = range(thread, WAVE_SIZE, 4)
        return [submit(engine, encoding, chance, seed * WAVE_SIZE + n) for n in numbers]

    with ThreadPoolExecutor(4) as threads:
        futures = [future for part in threads.map(quarter, range(4)) for future in part]
    errors = [future.exception(TIMEOUT_S) for future in futures]
    return Counter(None if error is None else type(error) for error in errors)


@pytest.fixture
def storm(family: Family) -> Iterator[Engine]:
    with Engine(StormyDenoiser(family, random.Random(0)).as_family(), batch_size_max=8) as engine:
        yield engine


def test_two_thousand_jobs_all_end_and_leave_nothing_behind(storm: Engine) -> None:
    encoding = storm.encode("a cat").result(TIMEOUT_S)
    ends: Counter[type | None] = Counter()
    num_objects: list[int] = []
    for wave in range(NUM_WAVES):
        ends += ends_of_a_wave(storm, encoding, wave)
        storm.encode("the last of the wave").result(TIMEOUT_S)  # the engine is past the wave
        gc.collect()
        num_objects.append(len(gc.get_objects()))
        assert storm.num_in_flight == 0
    assert ends.total() == NUM_WAVES * WAVE_SIZE
    assert {None, Cancelled, DeadlineExceeded, DenoisingFailed} <= set(ends)
    assert all(kind is None or issubclass(kind, DenoisingError) for kind in ends)
    assert EngineClosed not in ends
    assert ends[None] > ends.total() / 3
    # One object a job would be 500 more with each wave.
    assert max(num_objects[1:]) - num_objects[0] < WAVE_SIZE / 5
    assert not [each for each in gc.get_objects() if type(each) is Trajectory]
    storm.close()
    assert not [thread for thread in threading.enumerate() if "denoising" in thread.name]


def always_broken(latents: Tensor, rows: Mapping[str, Tensor]) -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_an_engine_whose_every_pass_fails_ends_before_it_fails_job_after_job(
    engine: Engine, fake: FakeDenoiser
) -> None:
    encoding = engine.encode("a cat").result(TIMEOUT_S)
    fake.hook = always_broken
    kinds: list[type] = []
    while not engine.is_closed and len(kinds) < 20:
        kinds.append(type(engine.denoise(request_for(encoding)).exception(TIMEOUT_S)))
    assert kinds == [DenoisingFailed] * 4 + [EngineClosed]


def test_no_job_of_a_batch_fails_when_the_device_is_to_blame(
    engine: Engine, fake: FakeDenoiser
) -> None:
    encoding = engine.encode("a cat").result(TIMEOUT_S)
    are_submitted = threading.Event()

    def broken_once_all_are_there(latents: Tensor, rows: Mapping[str, Tensor]) -> None:
        assert are_submitted.wait(TIMEOUT_S)
        if len(futures) == 8:
            always_broken(latents, rows)

    futures: list[Future[Denoised]] = []
    fake.hook = broken_once_all_are_there
    first = engine.denoise(request_for(encoding, num_inference_steps=1))
    futures += [engine.denoise(request_for(encoding)) for _ in range(8)]
    are_submitted.set()
    kinds = {type(future.exception(TIMEOUT_S)) for future in (first, *futures)}
    assert kinds <= {EngineClosed, DenoisingFailed}
    assert [type(future.exception(0)) for future in futures] == [EngineClosed] * 8


def test_a_prompt_that_waits_when_the_engine_ends_is_told_so(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, fake: FakeDenoiser
) -> None:
    def broken(*_: object) -> list[Encoding]:
        raise RuntimeError("broken")

    monkeypatch.setattr(fake, "encode", broken, raising=False)
    kinds: list[type] = []
    while not engine.is_closed and len(kinds) < 20:
        kinds.append(type(engine.encode("a cat").exception(TIMEOUT_S)))
    assert kinds == [DenoisingFailed] * 4 + [EngineClosed]


def test_lack_of_memory_is_no_sign_of_a_broken_device(engine: Engine, fake: FakeDenoiser) -> None:
    encoding = engine.encode("a cat").result(TIMEOUT_S)

    def no_memory(latents: Tensor, rows: Mapping[str, Tensor]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    fake.hook = no_memory
    for _ in range(8):
        error = engine.denoise(request_for(encoding)).exception(TIMEOUT_S)
        assert isinstance(error, OutOfMemory)
    assert not engine.is_closed


def test_no_job_fails_when_the_device_breaks_while_the_schedulers_compute(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel's error shows wherever the host next asks: of a denoiser's, in what comes after."""

    def broken(trajectory: Trajectory, noise_pred: Tensor) -> None:
        always_broken(noise_pred, {})

    encoding = engine.encode("a cat").result(TIMEOUT_S)
    monkeypatch.setattr(Trajectory, "advance", broken)
    kinds: list[type] = []
    while not engine.is_closed and len(kinds) < 20:
        kinds.append(type(engine.denoise(request_for(encoding)).exception(TIMEOUT_S)))
    assert kinds == [DenoisingFailed] * 4 + [EngineClosed]


def test_no_job_fails_when_the_device_breaks_while_its_steps_are_timed(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(pace: HostPace, stepped: Sequence[Trajectory]) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    encoding = engine.encode("a cat").result(TIMEOUT_S)
    monkeypatch.setattr(HostPace, "stop", broken)
    failure = engine.denoise(request_for(encoding)).exception(TIMEOUT_S)
    assert isinstance(failure, EngineClosed)
    engine.close()
    assert "the engine ends" in caplog.text
    assert "illegal memory access" in caplog.text


def test_a_full_device_is_not_a_broken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def broken(items: list[str]) -> None:
        raise ValueError("the job is to blame")

    failed: list[str] = []
    monkeypatch.setattr(torch, "ones", no_memory)
    health = failures.Health(torch.device("cuda"))
    health.run("denoiser", broken, ["job"], on_failure=lambda job, error: failed.append(job))
    assert failed == ["job"]
