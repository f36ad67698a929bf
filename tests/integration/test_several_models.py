"""One worker with several models: who gets which, and what clients are told."""

from __future__ import annotations

import uuid
from contextlib import closing
from pathlib import Path

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from celery.result import AsyncResult

from producer.broker import open_connection
from producer.contract import GENERATE_TASK, CacheOutcome, ErrorCode, Status
from producer.models import ModelTable
from producer.queues import bucket_queue
from producer.result import JobResult
from tests.tiny_pipeline import build_tiny_pipeline
from workers.app import declared
from workers.denoising.errors import UnsupportedModel
from workers.gpu_process import GpuProcess, gpu_process
from workers.gpu_tasks import register, run_job
from workers.process_settings import ProcessSettings
from workers.settings import WorkerSettings


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("several")
    return {
        slug: build_tiny_pipeline(root / slug, seed=seed)
        for seed, slug in enumerate(("first", "second"))
    }


@pytest.fixture
def worker_settings(folders: dict[str, Path]) -> WorkerSettings:
    return WorkerSettings(
        model="first",
        model_path=str(folders["first"]),
        models={"second": str(folders["second"])},
        models_memory_bytes=1,  # room for one at a time
    )


def fox(**fields: object) -> dict[str, object]:
    return {"prompt": "a fox in the snow", "num_inference_steps": 10, "seed": 1, **fields}


def run(process: GpuProcess, **fields: object) -> JobResult:
    result = run_job(process, str(uuid.uuid4()), fox(**fields), queue="generate.first.0")
    process.bench.captures.drain()
    return result


def image_sha256(result: JobResult) -> str:
    assert result.image is not None
    return result.image.sha256


def test_a_model_is_loaded_on_first_use_and_makes_way_for_another(process: GpuProcess) -> None:
    pool = process.bench.models
    assert pool.loaded == ["first"]
    by_default = run(process, cache="bypass")
    by_second = run(process, model="second", cache="bypass")
    assert pool.loaded == ["second"]
    by_first = run(process, model="first", cache="bypass")
    assert pool.loaded == ["first"]
    assert image_sha256(by_default) == image_sha256(by_first) != image_sha256(by_second)


def test_models_do_not_share_states(process: GpuProcess) -> None:
    run(process)
    for model, outcome in (("second", CacheOutcome.MISS), ("first", CacheOutcome.HIT)):
        result = run(process, model=model)
        assert result.cache is not None
        assert result.cache.outcome is outcome


def test_a_model_that_nobody_serves_is_refused(process: GpuProcess) -> None:
    result = run(process, model="third")
    assert result.status is Status.FAILED
    assert result.error is not None
    assert result.error.code is ErrorCode.UNKNOWN_MODEL
    assert "third" in result.error.message
    assert "second" in result.error.message


def test_clients_are_told_of_models_before_they_are_loaded(
    process: GpuProcess, settings: ProcessSettings
) -> None:
    with closing(open_connection(settings.producer.broker_url)) as connection:
        table = ModelTable(connection)
        process.models.announce(table, lambda slug: None)
        served = table.served()
    assert {slug: model.is_default for slug, model in served.items()} == {
        "first": True,
        "second": False,
    }
    assert served["second"].size_multiple == served["first"].size_multiple


def test_each_model_has_its_own_queues(process: GpuProcess, app: Celery) -> None:
    register(app, process)
    queues = [bucket_queue(slug, "default", 8) for slug in process.models.slugs]
    app.conf.task_queues = [declared(queue) for queue in queues]
    with start_worker(app, pool="threads", perform_ping_check=False, queues=queues):
        ids = [str(uuid.uuid4()) for _ in queues]
        for job_id, queue, slug in zip(ids, queues, process.models.slugs, strict=True):
            app.send_task(GENERATE_TASK, args=[fox(model=slug)], task_id=job_id, queue=queue)
        results = [AsyncResult(job_id, app=app).get(timeout=60) for job_id in ids]
    assert [result["status"] for result in results] == ["succeeded", "succeeded"]


def test_a_model_that_cannot_be_served_stops_the_worker_at_start(
    settings: ProcessSettings, app: Celery, tmp_path: Path
) -> None:
    worker = settings.worker.model_copy(update={"models": {"broken": str(tmp_path)}})
    wrong = ProcessSettings(producer=settings.producer, cache=settings.cache, worker=worker)
    with pytest.raises(UnsupportedModel, match=str(tmp_path)), gpu_process(wrong, app):
        pass
