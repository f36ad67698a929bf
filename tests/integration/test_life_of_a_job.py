"""The life of a job through the real database, object store and broker, on a tiny pipeline."""

from __future__ import annotations

import dataclasses
import threading
import uuid
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest
from celery.contrib.testing.worker import start_worker
from celery.exceptions import Ignore, TaskRevokedError
from celery.result import AsyncResult
from kombu.entity import Queue
from sqlalchemy import Engine, text

from cache.entry import StateKind
from cache.objects import S3Objects
from cache.settings import CacheSettings
from producer.broker import open_connection
from producer.contract import GENERATE_TASK, CacheOutcome, ErrorCode, GenerationJob, Status
from producer.errors import JobFailed
from producer.result import JobResult
from producer.trace import Traces
from workers.app import GPU_WORKER_PREFIX, build_app
from workers.cancellation import Cancellation
from workers.gpu_process import GpuProcess, gpu_process
from workers.gpu_tasks import register, run_job
from workers.process_settings import ProcessSettings
from workers.remote_control import cancellations_heard

QUEUE = "generate.tiny.0"


@pytest.fixture
def cache_options() -> dict[str, Any]:
    return {"cache_state_kind": StateKind.INTERMEDIATE}


def fox(**fields: object) -> dict[str, object]:
    return {"prompt": "a fox in the snow", "num_inference_steps": 10, "seed": 1, **fields}


def run(process: GpuProcess, fields: object, job_id: str | None = None) -> JobResult:
    result = run_job(process, job_id or str(uuid.uuid4()), fields, queue=QUEUE)
    process.bench.captures.drain()
    return result


def row(database: Engine, job_id: str) -> Any:
    with database.connect() as connection:
        found = connection.execute(text("SELECT * FROM jobs WHERE id = :id"), {"id": job_id})
        return found.one()


def outcome(result: JobResult) -> CacheOutcome:
    assert result.cache is not None
    return result.cache.outcome


def steps_run(result: JobResult) -> int:
    assert result.steps is not None
    return result.steps.run


def image_sha256(result: JobResult) -> str:
    assert result.image is not None
    return result.image.sha256


def test_a_prompt_asked_again_skips_half_of_its_steps(process: GpuProcess) -> None:
    first = run(process, fox())
    second = run(process, fox())
    assert (outcome(first), steps_run(first)) == (CacheOutcome.MISS, 10)
    assert (outcome(second), steps_run(second)) == (CacheOutcome.HIT, 5)
    assert second.cache is not None
    assert (second.cache.k, second.cache.source_job_id) == (5, first.job_id)


def test_resuming_from_the_stored_state_gives_the_uninterrupted_image(process: GpuProcess) -> None:
    assert image_sha256(run(process, fox())) == image_sha256(run(process, fox()))


def test_the_same_words_with_another_seed_make_another_image(settings: ProcessSettings) -> None:
    urls = settings.cache.model_dump(include={"database_url", "s3_url", "cache_budget_s"})
    cautious = dataclasses.replace(settings, cache=CacheSettings.load(**urls))
    app = build_app(settings.producer, settings.worker)
    with closing(app), gpu_process(cautious, app) as process:
        first, again = run(process, fox()), run(process, fox(seed=2))
    assert steps_run(again) == 10 - cautious.cache.choice_rules.k_again(10)
    assert image_sha256(first) != image_sha256(again)


def test_the_image_is_stored_as_told(process: GpuProcess, settings: ProcessSettings) -> None:
    result = run(process, fox())
    with closing(S3Objects.from_url(settings.cache.s3_url.get_secret_value())) as objects:
        assert result.image is not None
        assert objects.get(result.image.key).startswith(b"\x89PNG")
    assert result.image.key.endswith("/1.png")  # the attempt: a stale worker overwrites nothing


def test_bypass_neither_reads_nor_writes_the_cache(process: GpuProcess) -> None:
    run(process, fox(cache="bypass"))
    assert outcome(run(process, fox())) is CacheOutcome.MISS
    bypassing = run(process, fox(cache="bypass"))
    assert (outcome(bypassing), steps_run(bypassing)) == (CacheOutcome.BYPASS, 10)


def test_refresh_starts_from_noise_and_replaces_what_is_cached(process: GpuProcess) -> None:
    run(process, fox())
    refreshing = run(process, fox(cache="refresh", seed=2))
    assert (outcome(refreshing), steps_run(refreshing)) == (CacheOutcome.REFRESH, 10)
    again = run(process, fox())
    assert again.cache is not None
    assert again.cache.source_job_id == refreshing.job_id


def test_users_do_not_share_states(process: GpuProcess) -> None:
    run(process, fox(user="ada"))
    assert outcome(run(process, fox(user="eve"))) is CacheOutcome.MISS
    assert outcome(run(process, fox(user="ada"))) is CacheOutcome.HIT


def test_namespaces_do_not_share_states(process: GpuProcess) -> None:
    run(process, fox(namespace="here"))
    assert outcome(run(process, fox(namespace="there"))) is CacheOutcome.MISS


def test_a_use_is_counted_with_the_steps_it_saved(process: GpuProcess, database: Engine) -> None:
    run(process, fox())
    run(process, fox())
    process.bench.reuse.flush()
    with database.connect() as connection:
        used = connection.execute(text("SELECT uses, benefit FROM state_uses WHERE uses > 0"))
        assert used.all() == [(1, 5)]


def test_a_job_that_ended_is_not_done_twice(process: GpuProcess) -> None:
    first = run(process, fox())
    assert run(process, fox(), first.job_id) == first


def test_a_job_sent_again_after_its_trace_expired_is_shown_as_it_ended(
    process: GpuProcess, settings: ProcessSettings
) -> None:
    first = run(process, fox())
    sent = GenerationJob.from_wire(fox())
    with closing(open_connection(settings.producer.broker_url)) as connection:
        traces = Traces(connection, retention_s=60)
        traces.create(first.job_id, sent, payload_hash=sent.payload_hash, queue=QUEUE)
        run(process, fox(), first.job_id)
        assert traces.read(first.job_id).result == first


def test_a_message_of_a_job_that_was_cancelled_tells_its_end_again(process: GpuProcess) -> None:
    """It lay in its queue, and Celery has shown it as started by now."""
    job_id = str(uuid.uuid4())
    job = GenerationJob.from_wire(fox(model="tiny"))
    ended = process.unclaimed.cancel(job_id, job, queue=QUEUE)
    assert ended is not None
    assert run(process, fox(), job_id) == ended


def test_a_message_of_a_job_that_runs_elsewhere_is_ignored(process: GpuProcess) -> None:
    job = process.models.complete(GenerationJob.from_wire(fox()))
    job_id = uuid.uuid4()
    process.bench.ledger.claim(job_id, job, queue=QUEUE, received_at=datetime.now(UTC))
    with pytest.raises(Ignore):
        run(process, fox(), str(job_id))


def test_a_closed_engine_ends_no_job(process: GpuProcess, database: Engine) -> None:
    """The job is left to another worker: its lease lapses, and the rescuer sends it again."""
    process.bench.engine.close()
    job_id = str(uuid.uuid4())
    with pytest.raises(Ignore):
        run(process, fox(), job_id)
    assert row(database, job_id).status == "running"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "prompt: is required"),
        ({"prompt": "x" * 10_000_000}, "prompt: must have 1 to 4,000 characters"),
        (fox(num_inference_steps=0), "num_inference_steps: must be 1 to 200"),
        (fox(num_inference_steps=10**6), "num_inference_steps: must be 1 to 200"),
        (fox(width=9), "width: must be a multiple of"),
        (fox(job_id=str(uuid.uuid4())), "job_id: must be absent or equal"),
        ("a fox", "job: must be a JSON object"),
    ],
    ids=["no prompt", "10 MB", "0 steps", "10^6 steps", "odd width", "other id", "no object"],
)
def test_an_invalid_job_fails_with_its_field_and_limit(
    process: GpuProcess, database: Engine, fields: object, message: str
) -> None:
    result = run(process, fields)
    assert result.status is Status.FAILED
    assert result.error is not None
    assert result.error.code is ErrorCode.INVALID_JOB
    assert result.error.message.startswith(message)
    assert row(database, result.job_id).status == "failed"


@pytest.mark.parametrize("task_id", ["seven", str(uuid.UUID(int=10)).upper(), ""])
def test_an_id_that_is_no_job_id_is_refused(process: GpuProcess, task_id: str) -> None:
    with pytest.raises(JobFailed, match="the task id must be a UUID in lower case"):
        run_job(process, task_id, fox(), queue=QUEUE)


def test_an_invalid_job_is_called_back(process: GpuProcess, database: Engine) -> None:
    result = run(process, fox(width=9, webhook={"url": "https://example.com/hook"}))
    with database.connect() as connection:
        deliveries = connection.execute(text("SELECT job_id, event FROM webhook_deliveries"))
        assert [(str(job_id), event) for job_id, event in deliveries] == [
            (result.job_id, "job.failed")
        ]


def test_a_deadline_that_passed_is_not_worked_for(process: GpuProcess) -> None:
    result = run(process, fox(deadline_s=1, submitted_at="2026-01-01T00:00:00Z"))
    assert result.error is not None
    assert result.error.code is ErrorCode.DEADLINE_EXCEEDED
    assert result.steps is None


def tell_when_started(process: GpuProcess, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The event is set after a job's first step."""
    started = threading.Event()
    note = process.bench.progress.note

    def note_and_tell(*args: Any, **fields: Any) -> None:
        note(*args, **fields)
        started.set()

    monkeypatch.setattr(process.bench.progress, "note", note_and_tell)
    return started


def test_a_running_job_is_cancelled_through_the_ledger(
    process: GpuProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = uuid.uuid4()
    started = tell_when_started(process, monkeypatch)
    results: list[JobResult] = []
    worker = threading.Thread(
        target=lambda: results.append(run(process, fox(num_inference_steps=200), str(job_id)))
    )
    worker.start()
    assert started.wait(60)
    assert process.bench.ledger.request_cancel(job_id)
    worker.join()
    assert results[0].status is Status.CANCELLED


def test_a_worker_that_lost_its_claim_changes_nothing(
    process: GpuProcess, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = str(uuid.uuid4())
    put = process.bench.images.put

    def put_after_another_attempt_began(*args: Any, **fields: Any) -> Any:
        with database.begin() as connection:
            connection.execute(text("UPDATE jobs SET attempt = 2, worker = 'another'"))
        return put(*args, **fields)

    monkeypatch.setattr(process.bench.images, "put", put_after_another_attempt_began)
    with pytest.raises(Ignore):
        run(process, fox(), job_id)
    assert (row(database, job_id).status, row(database, job_id).attempt) == ("running", 2)


def test_the_trace_tells_what_the_ledger_holds(
    process: GpuProcess, settings: ProcessSettings
) -> None:
    job = fox(metadata={"order": "7"})
    with closing(open_connection(settings.producer.broker_url)) as connection:
        traces = Traces(connection, retention_s=60)
        sent = GenerationJob.from_wire(job)
        job_id = str(uuid.uuid4())
        traces.create(job_id, sent, payload_hash=sent.payload_hash, queue=QUEUE)
        result = run(process, job, job_id)
        trace = traces.read(job_id)
    assert trace.status is Status.SUCCEEDED
    assert trace.result == result
    assert result.metadata == {"order": "7"}


def test_a_broken_cache_only_costs_steps(process: GpuProcess, settings: ProcessSettings) -> None:
    run(process, fox())
    with closing(S3Objects.from_url(settings.cache.s3_url.get_secret_value())) as objects:
        keys = [listed.key for listed in objects.list("states/")]
        assert len(keys) == 5
        objects.delete_many(keys)
    result = run(process, fox())
    assert result.status is Status.SUCCEEDED
    assert outcome(result) is CacheOutcome.MISS
    assert result.cache is not None
    assert result.cache.reason == "object_missing"


def test_a_running_job_is_cancelled_by_remote_control_long_before_a_heartbeat(
    settings: ProcessSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a real Celery worker; its heartbeat would come a minute later."""
    worker = settings.worker.model_copy(update={"heartbeat_s": 60.0})
    app = build_app(settings.producer, worker)
    with (
        gpu_process(dataclasses.replace(settings, worker=worker), app) as process,
        cancellations_heard(process.bench.leases.stop),
        closing(open_connection(settings.producer.broker_url)) as connection,
    ):
        register(app, process)
        cancellation = Cancellation(
            ledger=process.bench.ledger,
            traces=Traces(connection, retention_s=60),
            unclaimed=process.unclaimed,
            tell_workers=process.publisher.tell_cancelled,
        )
        started = tell_when_started(process, monkeypatch)
        app.conf.task_queues = [Queue(QUEUE)]  # type: ignore[no-untyped-call]
        with start_worker(
            app,
            pool="threads",
            perform_ping_check=False,
            queues=[QUEUE],
            hostname=f"{GPU_WORKER_PREFIX}first@here",
        ):
            job_id = str(uuid.uuid4())
            fields = fox(num_inference_steps=200)
            app.send_task(GENERATE_TASK, args=[fields], task_id=job_id, queue=QUEUE)
            assert started.wait(60)
            assert cancellation.cancel(job_id)
            with pytest.raises(TaskRevokedError):
                AsyncResult(job_id, app=app).get(timeout=30)
            assert not process.bench.engine.num_in_flight
    app.close()
