"""Jobs, images and webhooks go when their time has passed, and nothing that is still owed."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from sqlalchemy import Engine, text

from cache.database import connect
from cache.forgotten import JobSubject, remember
from cache.objects import S3Objects
from cache.purge import purge_objects
from migrations.migrate import upgrade
from producer.broker import open_connection
from producer.contract import GenerationJob, Status, Webhook
from producer.result import JobResult, StoredImage
from producer.settings import ProducerSettings
from producer.trace import Traces
from workers.app import build_app
from workers.image_sweep import sweep_images
from workers.job_records import JobRecords
from workers.ledger import Ledger
from workers.retention import Retention, RetentionReport
from workers.settings import WorkerSettings

DAY_S = 86_400.0
QUEUE = "generate.small.0"
NOTHING = RetentionReport(expired_jobs=0, expired_images=0, expired_deliveries=0, expired_hashes=0)


@pytest.fixture
def database(database_url: str) -> Iterator[Engine]:
    upgrade(database_url)
    engine = connect(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def objects(s3_url: str) -> Iterator[S3Objects]:
    with closing(S3Objects.from_url(s3_url)) as store:
        yield store


@pytest.fixture
def connection(broker_url: str) -> Iterator[redis.Redis]:
    with closing(open_connection(broker_url)) as connected:
        yield connected


@pytest.fixture
def traces(connection: redis.Redis) -> Traces:
    return Traces(connection, retention_s=3_600)


class Shop:
    """Jobs in every condition, and their retention."""

    def __init__(
        self, database: Engine, objects: S3Objects, connection: redis.Redis, traces: Traces
    ) -> None:
        self.database, self.objects, self.traces = database, objects, traces
        self.ledger = Ledger(database, worker="one", lease_s=60, attempts_max=3)
        broker_url = "redis://unused"
        self._app = build_app(ProducerSettings(broker_url=broker_url), WorkerSettings())
        self._records = JobRecords(connection, traces, self._app)

    def claim(self, **fields: Any) -> Any:
        job = GenerationJob(prompt="a fox", model="small", num_inference_steps=10, **fields)
        job_id = uuid.uuid4()
        self.traces.create(str(job_id), job, payload_hash=job.payload_hash, queue=QUEUE)
        return self.ledger.claim(job_id, job, queue=QUEUE, received_at=datetime.now(UTC))

    def ended(self, *, is_announced: bool = True, **fields: Any) -> uuid.UUID:
        claim = self.claim(**fields)
        key = f"images/default/{claim.job_id}/1.png"
        self.objects.put(key, b"png")
        image = StoredImage(key=key, url="http://x/", width=8, height=8, sha256="0" * 64)
        result = JobResult(
            job_id=str(claim.job_id), status=Status.SUCCEEDED, attempt=1, image=image
        )
        self.ledger.finish(claim, result)
        if is_announced:
            self.ledger.mark_announced(claim.job_id)
        return uuid.UUID(str(claim.job_id))

    def settle_deliveries(self) -> None:
        with self.database.begin() as writing:
            writing.execute(
                text("UPDATE webhook_deliveries SET status = 'delivered', finished_at = now()")
            )

    def expire(self, *, after_s: float, **settings: Any) -> RetentionReport:
        chosen = WorkerSettings(**{"job_retention_s": 10 * DAY_S, **settings})
        retention = Retention(self.database, self._records, chosen)
        report = retention.run(now=datetime.now(UTC) + timedelta(seconds=after_s))
        purge_objects(self.database, self.objects, now=datetime.now(UTC))
        return report

    def job_ids(self) -> set[uuid.UUID]:
        with self.database.connect() as looking:
            return set(looking.execute(text("SELECT id FROM jobs")).scalars())

    def image_keys(self) -> list[str]:
        return [each.key for each in self.objects.list("images/")]


@pytest.fixture
def shop(database: Engine, objects: S3Objects, connection: redis.Redis, traces: Traces) -> Shop:
    return Shop(database, objects, connection, traces)


WEBHOOK = Webhook(url="https://example.com/")


def test_an_ended_job_goes_with_all_it_left(shop: Shop, connection: redis.Redis) -> None:
    shop.ended(webhook=WEBHOOK)
    shop.settle_deliveries()
    assert shop.expire(after_s=9 * DAY_S) == NOTHING
    assert shop.expire(after_s=11 * DAY_S).expired_jobs == 1
    assert shop.job_ids() == set()
    assert shop.image_keys() == []
    assert connection.keys("nirvana:job:*") == []


def test_what_is_still_owed_stays(shop: Shop) -> None:
    running = shop.claim().job_id
    owed_a_webhook = shop.ended(webhook=WEBHOOK)
    not_told = shop.ended(is_announced=False)
    assert shop.expire(after_s=365 * DAY_S) == NOTHING
    assert shop.job_ids() == {running, owed_a_webhook, not_told}
    assert len(shop.image_keys()) == 2


def test_an_image_can_go_before_its_job(shop: Shop) -> None:
    job_id = shop.ended()
    report = shop.expire(after_s=2 * DAY_S, image_retention_s=DAY_S)
    assert (report.expired_images, report.expired_jobs) == (1, 0)
    assert shop.image_keys() == []
    assert shop.job_ids() == {job_id}
    assert shop.expire(after_s=2 * DAY_S, image_retention_s=DAY_S) == NOTHING


def test_a_settled_webhook_can_go_before_its_job(shop: Shop) -> None:
    shop.ended(webhook=WEBHOOK)
    shop.settle_deliveries()
    pending = shop.ended(webhook=WEBHOOK)
    report = shop.expire(after_s=2 * DAY_S, delivery_retention_s=DAY_S)
    assert (report.expired_deliveries, report.expired_jobs) == (1, 0)
    with shop.database.connect() as looking:
        left = looking.execute(text("SELECT job_id FROM webhook_deliveries")).scalars().all()
    assert left == [pending]


def test_a_run_is_bounded_and_the_next_goes_on(shop: Shop) -> None:
    for _ in range(3):
        shop.ended()
    assert shop.expire(after_s=11 * DAY_S, expire_max=2).expired_jobs == 2
    assert shop.expire(after_s=11 * DAY_S, expire_max=2).expired_jobs == 1


def test_a_job_that_somebody_holds_is_left_for_the_next_run(shop: Shop) -> None:
    job_id = shop.ended()
    with shop.database.begin() as holding:
        holding.execute(text("SELECT id FROM jobs FOR UPDATE"))
        assert shop.expire(after_s=11 * DAY_S).expired_jobs == 0
    assert shop.job_ids() == {job_id}


def test_that_something_was_forgotten_is_forgotten_at_last(shop: Shop) -> None:
    remember(shop.database, [JobSubject(job_id=uuid.uuid4())])
    assert shop.expire(after_s=9 * DAY_S).expired_hashes == 0
    assert shop.expire(after_s=11 * DAY_S).expired_hashes == 1


def test_images_that_no_result_names_are_swept(shop: Shop) -> None:
    named = f"images/default/{shop.ended()}/1.png"
    of_running = f"images/default/{shop.claim().job_id}/1.png"
    lost_claim = named.replace("/1.png", "/2.png")
    of_nobody = f"images/default/{uuid.uuid4()}/1.png"
    for key in (of_running, lost_claim, of_nobody, "images/readme.txt"):
        shop.objects.put(key, b"png")
    now = datetime.now(UTC)

    young = sweep_images(shop.database, shop.objects, now=now, grace_s=3_600)
    assert young.images_without_results == 0
    later = now + timedelta(hours=2)
    found = sweep_images(shop.database, shop.objects, now=later, grace_s=3_600)
    assert (found.images_without_results, found.bytes_without_results) == (2, 6)
    purge_objects(shop.database, shop.objects, now=later)
    assert set(shop.image_keys()) == {named, of_running, "images/readme.txt"}
