"""Urls signed when read: by an io worker, for the real object store, after the first expired."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime

import pytest
from celery.contrib.testing.worker import start_worker

from cache.objects import S3Objects
from cache.settings import CacheSettings
from migrations.migrate import upgrade
from producer.broker import open_connection
from producer.client import Client
from producer.contract import GenerationJob, Status
from producer.errors import ImageUnavailable
from producer.models import ModelTable
from producer.queues import IO_QUEUE
from producer.result import JobResult, StoredImage
from producer.settings import ProducerSettings
from producer.trace import Traces
from tests.served_models import SMALL
from workers.app import build_app, declared
from workers.beat_tasks import register
from workers.io_process import io_process
from workers.ledger import Ledger
from workers.process_settings import ProcessSettings
from workers.settings import WorkerSettings

PNG = b"\x89PNG of a fox"


@pytest.fixture
def settings(database_url: str, broker_url: str, s3_url: str) -> ProcessSettings:
    upgrade(database_url)
    return ProcessSettings(
        producer=ProducerSettings(broker_url=broker_url),
        cache=CacheSettings.load(database_url=database_url, s3_url=s3_url),
        worker=WorkerSettings(),
    )


@pytest.fixture
def client(settings: ProcessSettings) -> Iterator[Client]:
    app = build_app(settings.producer, settings.worker)
    with io_process(settings, app) as process:
        register(app, process)
        app.conf.task_queues = [declared(IO_QUEUE)]
        with (
            start_worker(app, pool="threads", perform_ping_check=False, queues=[IO_QUEUE]),
            Client(settings.producer) as client,
        ):
            yield client
    app.close()


def end_job(settings: ProcessSettings, client: Client, *, url: str | None) -> JobResult:
    """Have a job end with an image whose url is `url`, as a GPU worker would."""
    with closing(open_connection(settings.producer.broker_url)) as connection:
        ModelTable(connection).announce(SMALL)
        job_id = client.submit("a fox").job_id
        image = StoredImage(
            key=f"images/default/{job_id}/1.png",
            url=url,
            width=64,
            height=64,
            sha256=hashlib.sha256(PNG).hexdigest(),
        )
        result = JobResult(job_id=job_id, status=Status.SUCCEEDED, attempt=1, image=image)
        with io_process(settings, build_app(settings.producer, settings.worker)) as process:
            ledger = Ledger(process.database, worker="gpu", lease_s=60, attempts_max=3)
            job = GenerationJob(prompt="a fox", model="small")
            claim = ledger.claim(uuid.UUID(job_id), job, queue="q", received_at=datetime.now(UTC))
            ledger.finish(claim, result)
        Traces(connection, retention_s=60).mark_finished(result)
    with closing(S3Objects.from_url(settings.cache.s3_url.get_secret_value())) as objects:
        objects.put(image.key, PNG, content_type="image/png")
    return result


def expired_url(settings: ProcessSettings) -> str:
    """A url whose signature the store does not take."""
    with closing(S3Objects.from_url(settings.cache.s3_url.get_secret_value())) as objects:
        return objects.presigned_url("images/x.png", expires_s=60) + "0"


def test_an_image_is_had_after_its_url_expired(settings: ProcessSettings, client: Client) -> None:
    result = end_job(settings, client, url=expired_url(settings))
    assert client.image(result) == PNG
    assert client.image(result.job_id) == PNG
    fresh = client.image_url(result)
    assert result.image is not None
    assert result.image.key in fresh
    again = result.model_copy(update={"image": result.image.model_copy(update={"url": fresh})})
    assert client.image(again) == PNG


def test_an_image_that_the_ledger_does_not_know_is_not_signed(
    settings: ProcessSettings, client: Client
) -> None:
    """A client names a job, never an object."""
    result = end_job(settings, client, url=None)
    other = result.model_copy(update={"job_id": str(uuid.uuid4())})
    with pytest.raises(ImageUnavailable, match="has no image any more"):
        client.image_url(other)
