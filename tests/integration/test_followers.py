"""Jobs submitted together: one leads, the others start from what it is predicted to become."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from cache.entry import Sharing, StateKind
from producer.contract import CacheOutcome, Status
from producer.result import CacheReport, JobResult
from workers.app import build_app
from workers.denoising.errors import DenoisingFailed
from workers.gpu_process import GpuProcess, gpu_process
from workers.gpu_tasks import run_job
from workers.leaders import Place
from workers.process_settings import ProcessSettings

QUEUE = "generate.tiny.0"
N = 10
K = 3  # of the paper's for equal prompts the most that leaves re-rolls their variety
TIMEOUT_S = 60.0

Job = dict[str, object]


@pytest.fixture
def cache_options() -> dict[str, Any]:
    return {"cache_state_kind": StateKind.FINAL}


@contextmanager
def started(settings: ProcessSettings) -> Iterator[GpuProcess]:
    app = build_app(settings.producer, settings.worker)
    with gpu_process(settings, app) as running:
        yield running
    app.close()


def seeds(*numbers: int, **fields: object) -> list[Job]:
    fox = {"prompt": "a fox in the snow", "num_inference_steps": N, **fields}
    return [{**fox, "seed": seed} for seed in numbers]


def run_together(
    process: GpuProcess,
    jobs: Sequence[Job],
    monkeypatch: pytest.MonkeyPatch,
    *,
    then: Callable[[Place, str], None] = lambda place, job_id: None,
) -> list[JobResult]:
    """Let no job begin before all have chosen whom they follow; `then` is called before each."""
    all_chosen, join = threading.Barrier(len(jobs)), process.bench.leaders.join

    def join_together(place: Place, claim: Any, plan: Any, embedding: Any) -> None:
        join(place, claim, plan, embedding)
        all_chosen.wait(TIMEOUT_S)
        then(place, str(claim.job_id))

    monkeypatch.setattr(process.bench.leaders, "join", join_together)
    with ThreadPoolExecutor(len(jobs)) as threads:
        results = list(
            threads.map(lambda job: run_job(process, str(uuid.uuid4()), job, queue=QUEUE), jobs)
        )
    process.bench.captures.drain()
    return results


def steps_run(results: Sequence[JobResult]) -> list[int]:
    return sorted(result.steps.run for result in results if result.steps is not None)


def report(result: JobResult) -> CacheReport:
    assert result.cache is not None
    return result.cache


def test_four_seeds_of_a_prompt_share_the_steps_of_one(
    process: GpuProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = run_together(process, seeds(1, 2, 3, 4), monkeypatch)
    assert steps_run(results) == [N - K, N - K, N - K, N]
    assert len({result.image.sha256 for result in results if result.image}) == 4
    (leader,) = (each for each in results if report(each).outcome is CacheOutcome.MISS)
    for follower in results:
        if follower is not leader:
            told = report(follower)
            assert (told.outcome, told.k, told.reason) == (CacheOutcome.HIT, K, "in_flight")
            assert told.source_job_id == leader.job_id
            assert told.similarity == pytest.approx(1)


def test_each_of_them_leaves_its_states_to_later_jobs(
    process: GpuProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_together(process, seeds(1, 2), monkeypatch)
    monkeypatch.undo()
    later = run_job(process, str(uuid.uuid4()), seeds(3)[0], queue=QUEUE)
    assert report(later).state_id is not None


@pytest.mark.parametrize(
    "other",
    [{"user": "eve"}, {"user": None}, {"namespace": "there"}, {"cache": "bypass"}, {"width": 24}],
    ids=["another user", "nobody", "another namespace", "no cache", "another size"],
)
def test_nothing_crosses_what_the_cache_keeps_apart(
    process: GpuProcess, monkeypatch: pytest.MonkeyPatch, other: Job
) -> None:
    jobs = seeds(1, user="ada", width=16, height=16)
    results = run_together(process, [*jobs, {**jobs[0], **other}], monkeypatch)
    assert steps_run(results) == [N, N]
    assert CacheOutcome.HIT not in {report(result).outcome for result in results}


def test_refreshes_follow_nobody(process: GpuProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    refreshing = run_together(process, seeds(1, 2, cache="refresh"), monkeypatch)
    assert steps_run(refreshing) == [N, N]


def test_a_namespace_that_shares_follows_across_users_and_tells_no_ids(
    settings: ProcessSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    sharing = settings.cache.model_copy(update={"cache_sharing": Sharing.NAMESPACE})
    shared = ProcessSettings(producer=settings.producer, cache=sharing, worker=settings.worker)
    with started(shared) as process:
        jobs = [*seeds(1, user="ada"), *seeds(2, user="eve")]
        results = run_together(process, jobs, monkeypatch)
    assert steps_run(results) == [N - K, N]
    assert [report(result).source_job_id for result in results] == [None, None]


def test_when_the_leader_fails_the_others_start_from_noise(
    process: GpuProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_the_leader(place: Place, _: str) -> None:
        if place.lead is not None:
            raise DenoisingFailed

    results = run_together(process, seeds(1, 2, 3), monkeypatch, then=fail_the_leader)
    assert [result.status for result in results].count(Status.FAILED) == 1
    assert steps_run(results) == [N, N]


def test_when_the_leader_is_cancelled_the_others_end_well(
    process: GpuProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader: list[str] = []

    def cancel_the_leader(place: Place, job_id: str) -> None:
        if place.lead is not None:
            leader.append(job_id)
            denoise = process.bench.engine.denoise

            def denoise_and_cancel(request: Any, **model: Any) -> Any:
                future = denoise(request, **model)
                if request.lead is not None:
                    process.bench.leases.stop(job_id)
                return future

            monkeypatch.setattr(process.bench.engine, "denoise", denoise_and_cancel)

    jobs = seeds(1, 2, 3, num_inference_steps=200)
    results = run_together(process, jobs, monkeypatch, then=cancel_the_leader)
    ended = {result.job_id: result.status for result in results}
    assert ended.pop(leader[0]) is Status.CANCELLED
    assert list(ended.values()) == [Status.SUCCEEDED, Status.SUCCEEDED]


def test_no_job_waits_where_the_setting_says_so(
    settings: ProcessSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = settings.worker.model_copy(update={"follow_wait_s": 0.0})
    alone = ProcessSettings(producer=settings.producer, cache=settings.cache, worker=worker)
    with started(alone) as process:
        assert steps_run(run_together(process, seeds(1, 2), monkeypatch)) == [N, N]
