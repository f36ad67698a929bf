from __future__ import annotations

import gc
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.denoising.fakes import (
    TIMEOUT_S,
    FakeDenoiser,
    StepGate,
    request_for,
    run_alone,
)
from tests.unit.denoising.test_pacing import Events
from workers.denoising import in_flight
from workers.denoising.engine import Engine
from workers.denoising.errors import (
    Cancelled,
    DeadlineExceeded,
    DenoisingError,
    DenoisingFailed,
    EngineClosed,
    InvalidRequest,
    OutOfMemory,
    QueueFull,
)
from workers.denoising.failures import is_out_of_memory
from workers.denoising.families.family import Encoding
from workers.denoising.families.stable_diffusion import StableDiffusion
from workers.denoising.pacing import CudaPace
from workers.denoising.prompts import Prompt
from workers.denoising.request import Denoised, StartState
from workers.denoising.trajectory import Trajectory


@pytest.fixture
def encoding(engine: Engine) -> Encoding:
    return engine.encode("a cat").result(TIMEOUT_S)


@pytest.fixture
def gate(fake: FakeDenoiser) -> StepGate:
    gate = StepGate()
    fake.hook = gate
    return gate


def error_of(future: Future[Any]) -> BaseException | None:
    return future.exception(TIMEOUT_S)


def fails_beyond(num_rows_max: int) -> Callable[[Tensor, Mapping[str, Tensor]], None]:
    def hook(latents: Tensor, rows: Mapping[str, Tensor]) -> None:
        if len(latents) > num_rows_max:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return hook


# Cancelling, deadlines, progress


def test_cancelling_takes_effect_before_the_next_step(
    engine: Engine, fake: FakeDenoiser, gate: StepGate, encoding: Encoding
) -> None:
    future = engine.denoise(request_for(encoding, job_id="a"))
    gate.wait_for_step()
    assert engine.cancel("a")
    gate.open()
    assert isinstance(error_of(future), Cancelled)
    assert len(fake.num_rows) == 1
    assert not engine.cancel("a")


def test_cancelling_a_job_that_waits_leaves_the_others(
    engine: Engine, gate: StepGate, encoding: Encoding
) -> None:
    running = engine.denoise(request_for(encoding, job_id="running"))
    gate.wait_for_step()
    waiting = engine.denoise(request_for(encoding, job_id="waiting"))
    assert engine.cancel("waiting")
    gate.open()
    assert isinstance(error_of(waiting), Cancelled)
    assert running.result(TIMEOUT_S).steps_run == 4


def test_an_unknown_job_cannot_be_cancelled(engine: Engine) -> None:
    assert not engine.cancel("nobody")


def test_a_job_past_its_deadline_takes_no_step(
    engine: Engine, fake: FakeDenoiser, encoding: Encoding
) -> None:
    late = request_for(encoding, deadline_monotonic_s=time.monotonic())
    assert isinstance(error_of(engine.denoise(late)), DeadlineExceeded)
    assert fake.num_rows == []


def test_a_deadline_ends_a_job_on_its_way(
    engine: Engine, fake: FakeDenoiser, gate: StepGate, encoding: Encoding
) -> None:
    deadline = time.monotonic() + 0.05
    future = engine.denoise(request_for(encoding, deadline_monotonic_s=deadline))
    gate.wait_for_step()
    while time.monotonic() < deadline:
        pass
    gate.open()
    assert isinstance(error_of(future), DeadlineExceeded)
    assert len(fake.num_rows) == 1


def test_progress_is_told_after_each_step(engine: Engine, encoding: Encoding) -> None:
    steps: list[tuple[int, int]] = []
    state = StartState(latents=torch.zeros(4, 8, 8), kind="intermediate", k=1)
    request = request_for(encoding, start=state, on_progress=lambda *step: steps.append(step))
    engine.denoise(request).result(TIMEOUT_S)
    assert steps == [(2, 4), (3, 4), (4, 4)]


def test_a_progress_callback_that_raises_hurts_nobody(engine: Engine, encoding: Encoding) -> None:
    calls: list[int] = []

    def broken(step: int, steps: int) -> None:
        calls.append(step)
        raise RuntimeError("broken callback")

    future = engine.denoise(request_for(encoding, on_progress=broken))
    assert future.result(TIMEOUT_S).steps_run == 4
    assert calls == [1]


# Joining


def test_a_late_job_joins_at_the_next_step_and_changes_nothing_for_the_first(
    engine: Engine, fake: FakeDenoiser, gate: StepGate, encoding: Encoding, family: StableDiffusion
) -> None:
    requests = [request_for(encoding, job_id=str(seed), seed=seed) for seed in (1, 2)]
    first = engine.denoise(requests[0])
    gate.wait_for_step()
    gate.let_through()
    gate.wait_for_step()
    late = engine.denoise(requests[1])
    gate.open()
    results = [first.result(TIMEOUT_S), late.result(TIMEOUT_S)]
    assert fake.num_rows == [1, 1, 2, 2, 1, 1]
    for request, result in zip(requests, results, strict=True):
        assert result.final_latents is not None
        alone = run_alone(family, request)
        torch.testing.assert_close(result.final_latents, alone, atol=1e-3, rtol=0)


def test_jobs_of_other_sizes_do_not_share_a_batch(
    engine: Engine, fake: FakeDenoiser, gate: StepGate, encoding: Encoding
) -> None:
    first = engine.denoise(request_for(encoding))
    gate.wait_for_step()
    others = [engine.denoise(request_for(encoding, height=size)) for size in (24, 16, 24)]
    gate.open()
    shapes = [future.result(TIMEOUT_S).image.shape for future in (first, *others)]
    assert shapes == [(16, 16, 3), (24, 16, 3), (16, 16, 3), (24, 16, 3)]
    assert fake.num_rows == [1, 2, 2, 2, *[2] * 4, 1]  # the second 16x16 is younger than 24x16


def test_many_threads_may_call_at_once(engine: Engine, family: StableDiffusion) -> None:
    def life_of_a_job(seed: int) -> Denoised:
        encoding = engine.encode(f"prompt {seed % 5}").result(TIMEOUT_S)
        request = request_for(encoding, job_id=str(seed), seed=seed, guidance_scale=1.0 + seed % 2)
        return engine.denoise(request).result(TIMEOUT_S)

    with ThreadPoolExecutor(6) as threads:
        results = list(threads.map(life_of_a_job, range(24)))
    for seed in (0, 7, 23):
        encoding = family.encode([f"prompt {seed % 5}"], [""])[0]
        alone = run_alone(family, request_for(encoding, seed=seed, guidance_scale=1.0 + seed % 2))
        final_latents = results[seed].final_latents
        assert final_latents is not None
        torch.testing.assert_close(final_latents, alone, atol=1e-3, rtol=0)


def test_the_queue_is_bounded(fake: FakeDenoiser, gate: StepGate) -> None:
    with Engine(fake.as_family(), batch_size_max=1, num_waiting_max=2) as engine:
        encoding = engine.encode("a cat").result(TIMEOUT_S)
        futures = [engine.denoise(request_for(encoding))]
        gate.wait_for_step()
        futures += [engine.denoise(request_for(encoding)) for _ in range(3)]
        gate.open()
        assert isinstance(error_of(futures[3]), QueueFull)
        assert [future.result(TIMEOUT_S).steps_run for future in futures[:3]] == [4, 4, 4]


# Failures


def test_out_of_memory_makes_batches_smaller_and_loses_no_job(
    engine: Engine, fake: FakeDenoiser, gate: StepGate, encoding: Encoding, family: StableDiffusion
) -> None:
    requests = [request_for(encoding, job_id=str(seed), seed=seed) for seed in range(5)]
    futures = [engine.denoise(requests[0])]
    gate.wait_for_step()
    futures += [engine.denoise(request) for request in requests[1:]]
    fake.hook = fails_beyond(3)
    gate.open()
    results = [future.result(TIMEOUT_S) for future in futures]
    assert fake.num_rows[:4] == [1, 5, 2, 3]
    assert max(fake.num_rows[2:]) == 3
    for request, result in zip(requests, results, strict=True):
        assert result.final_latents is not None
        alone = run_alone(family, request)
        torch.testing.assert_close(result.final_latents, alone, atol=1e-3, rtol=0)


def test_a_job_that_does_not_fit_alone_fails_and_the_others_go_on(
    engine: Engine, fake: FakeDenoiser, encoding: Encoding
) -> None:
    fake.hook = fails_beyond(1)
    guided = engine.denoise(request_for(encoding, guidance_scale=2.0))
    unguided = engine.denoise(request_for(encoding))
    assert isinstance(error_of(guided), OutOfMemory)
    assert unguided.result(TIMEOUT_S).steps_run == 4


def test_a_failed_allocation_on_the_cpu_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as failed:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(failed.value)


def test_a_job_that_breaks_the_model_fails_alone(
    engine: Engine, fake: FakeDenoiser, gate: StepGate, encoding: Encoding
) -> None:
    poison = engine.encode("poison").result(TIMEOUT_S)
    marker = poison.conditioning.prompt["prompt_embeds"]

    def hook(latents: Tensor, rows: Mapping[str, Tensor]) -> None:
        if any(torch.equal(row, marker) for row in rows["prompt_embeds"]):
            raise ValueError("cannot be denoised")

    futures = [engine.denoise(request_for(encoding))]
    gate.wait_for_step()
    futures += [engine.denoise(request_for(each)) for each in (poison, encoding, encoding)]
    fake.hook = hook
    gate.open()
    error = error_of(futures[1])
    assert isinstance(error, DenoisingFailed)
    assert isinstance(error.__cause__, ValueError)
    assert "cannot be denoised" in str(error)
    assert [futures[n].result(TIMEOUT_S).steps_run for n in (0, 2, 3)] == [4, 4, 4]


def test_the_engine_outlives_failures_of_every_stage(
    engine: Engine, fake: FakeDenoiser, encoding: Encoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("broken stage")

    for stage in ("encode", "draw_noise", "denoiser", "decode"):
        with monkeypatch.context() as patch:
            patch.setattr(fake, stage, broken, raising=False)
            future: Future[Any] = (
                engine.encode("a dog")
                if stage == "encode"
                else engine.denoise(request_for(encoding))
            )
            assert isinstance(error_of(future), DenoisingFailed)
    assert engine.denoise(request_for(encoding)).result(TIMEOUT_S).steps_run == 4
    assert engine.num_in_flight == 0


def test_a_request_that_contradicts_itself_is_refused(engine: Engine, encoding: Encoding) -> None:
    latents = torch.zeros(4, 8, 8)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"capture_steps": frozenset({5})}, "capture_steps"),
        ({"start": StartState(latents=latents, kind="final", k=4)}, "leaves nothing"),
        ({"start": StartState(latents=latents, kind="final", k=2), "height": 24}, "the job's"),
    ]
    for changes, message in wrong:
        with pytest.raises(InvalidRequest, match=message):
            engine.denoise(request_for(encoding, **changes))
    with pytest.raises(InvalidRequest, match="k >= 1"):
        StartState(latents=latents, kind="final", k=0)


# The end


def test_closing_fails_what_is_pending_and_leaves_no_thread(
    fake: FakeDenoiser, family: StableDiffusion
) -> None:
    engine = Engine(fake.as_family())
    encoding = family.encode(["a cat"], [""])[0]
    begun = threading.Event()

    def close(step: int, steps: int) -> None:
        begun.set()
        engine.close()

    futures = [engine.denoise(request_for(encoding, on_progress=close))]
    assert begun.wait(TIMEOUT_S)
    engine.close()
    assert all(isinstance(error_of(future), EngineClosed) for future in futures)
    assert len(fake.num_rows) == 1
    assert not [thread for thread in threading.enumerate() if "denoising" in thread.name]
    with pytest.raises(EngineClosed):
        engine.encode("a cat")
    with pytest.raises(EngineClosed):
        engine.denoise(request_for(encoding))
    engine.close()


def test_every_future_resolves_whatever_happens(
    engine: Engine, fake: FakeDenoiser, encoding: Encoding
) -> None:
    chance, are_submitted = random.Random(0), threading.Event()

    def hook(latents: Tensor, rows: Mapping[str, Tensor]) -> None:
        assert are_submitted.wait(TIMEOUT_S)
        if chance.random() < 0.1:
            raise chance.choice([ValueError("broken"), torch.OutOfMemoryError("CUDA")])

    fake.hook = hook
    futures = []
    for n in range(150):
        deadline = time.monotonic() + chance.choice([-1, 0.01, 60, 60])
        request = request_for(
            encoding,
            job_id=str(n),
            seed=n,
            height=chance.choice([16, 24]),
            guidance_scale=chance.choice([1.0, 4.0]),
            deadline_monotonic_s=deadline,
        )
        futures.append(engine.denoise(request))
        engine.cancel(str(chance.randrange(3 * n + 1)))
    are_submitted.set()
    outcomes = {type(error_of(future)) for future in futures}
    assert {type(None), Cancelled, DeadlineExceeded} <= outcomes
    assert all(kind is type(None) or issubclass(kind, DenoisingError) for kind in outcomes)


@pytest.fixture
def _no_garbage_collection() -> Iterator[None]:
    """Tensors are no load to Python's collector: a device is full long before it comes."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def broken(latents: Tensor, rows: Mapping[str, Tensor]) -> None:
    try:
        raise LookupError("the fast way is closed")
    except LookupError as error:
        raise ValueError("broken") from error


def num_held() -> int:
    return sum(type(each) in (Trajectory, Prompt) for each in gc.get_objects())


@pytest.mark.usefixtures("_no_garbage_collection")
def test_what_an_ended_job_held_on_the_device_is_free_at_once(
    engine: Engine, fake: FakeDenoiser, encoding: Encoding, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger="workers.denoising")  # it keeps its errors' frames
    before = num_held()
    late = request_for(encoding, deadline_monotonic_s=time.monotonic())
    engine.denoise(request_for(encoding)).result(TIMEOUT_S)
    assert isinstance(error_of(engine.denoise(late)), DeadlineExceeded)
    fake.hook = broken
    failure = error_of(engine.denoise(request_for(encoding)))  # which its caller may keep
    assert isinstance(failure, DenoisingFailed)
    engine.encode("a dog").result(TIMEOUT_S)
    engine.close()
    assert num_held() == before


@pytest.mark.usefixtures("_no_garbage_collection")
def test_a_job_cancelled_in_a_step_that_is_still_queued_leaves_nothing_in_its_clock(
    fake: FakeDenoiser, gate: StepGate, monkeypatch: pytest.MonkeyPatch, encoding: Encoding
) -> None:
    monkeypatch.setattr(in_flight, "pace_of", lambda device: CudaPace(Events().record))
    before = num_held()
    with Engine(fake.as_family()) as engine:
        future = engine.denoise(request_for(encoding, job_id="a"))
        gate.wait_for_step()
        assert engine.cancel("a")
        gate.open()
        assert isinstance(error_of(future), Cancelled)
        engine.close()
        assert num_held() == before


def test_captured_latents_belong_to_the_caller(engine: Engine, encoding: Encoding) -> None:
    denoised = engine.denoise(request_for(encoding, capture_steps=frozenset({4}))).result(TIMEOUT_S)
    assert denoised.final_latents is not None
    captured = denoised.captured[4]
    assert torch.equal(captured, denoised.final_latents)
    captured.zero_()
    assert denoised.final_latents.abs().max() > 0
    assert denoised.image.flags.owndata


def test_timings_are_measured(engine: Engine, encoding: Encoding) -> None:
    before = engine.seconds_per_step()
    denoised = engine.denoise(request_for(encoding)).result(TIMEOUT_S)
    after = engine.seconds_per_step()
    assert before is None
    assert after is not None
    assert 0 < after <= denoised.denoise_s
    assert denoised.decode_s > 0


def test_once_a_job_has_begun_a_step_moves_nothing_to_the_device(
    fake: FakeDenoiser, encoding: Encoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host would wait for the step before, which is to run while it launches this one."""
    monkeypatch.setattr(fake, "device", torch.device("meta"), raising=False)
    trajectory = Trajectory(request_for(encoding), fake.as_family())
    trajectory.begin()
    taken = (trajectory.latents, trajectory.model_input, trajectory.timestep)
    assert [tensor.device.type for tensor in taken] == ["meta"] * 3


def test_a_trajectory_refuses_to_run_past_its_end(
    family: StableDiffusion, encoding: Encoding
) -> None:
    trajectory = Trajectory(request_for(encoding, num_inference_steps=1), family)
    trajectory.begin()
    assert not trajectory.ended_by(time.monotonic())
    trajectory.advance(torch.zeros(1, 4, 8, 8))
    with pytest.raises(AssertionError):
        trajectory.advance(torch.zeros(1, 4, 8, 8))


# The background


def test_a_background_job_steps_only_while_no_other_is_in_flight(
    engine: Engine, fake: FakeDenoiser, gate: StepGate, encoding: Encoding
) -> None:
    background = engine.denoise(request_for(encoding, job_id="background", is_background=True))
    gate.wait_for_step()
    real = engine.denoise(request_for(encoding, job_id="real"))
    assert engine.num_in_flight == 1
    gate.open()
    real.result(TIMEOUT_S)
    assert not background.done()
    assert background.result(TIMEOUT_S).steps_run == 4
    assert fake.num_rows == [1] * 8  # never in a batch together


def test_a_background_job_can_be_cancelled(
    engine: Engine, gate: StepGate, encoding: Encoding
) -> None:
    background = engine.denoise(request_for(encoding, job_id="background", is_background=True))
    gate.wait_for_step()
    assert engine.cancel("background")
    gate.open()
    assert isinstance(error_of(background), Cancelled)
