"""Jobs whose message or worker is gone come back; all others are left alone."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
import redis
from sqlalchemy import Engine, text

from cache.database import connect
from migrations.migrate import upgrade
from producer.broker import open_connection
from producer.contract import ErrorCode, GenerationJob, Priority, Status
from producer.settings import ProducerSettings
from producer.trace import Traces
from workers.announcer import Announcer
from workers.app import Publisher, build_app
from workers.cancellation import Cancellation
from workers.io_process import ValkeyLists
from workers.ledger import Ledger
from workers.rescuer import Rescuer, RescueReport
from workers.settings import WorkerSettings
from workers.unclaimed import UnclaimedJobs

QUEUE = "generate.small.0"
GRACE_S = 10.0
NOTHING = RescueReport(taken_back=0, sent_again=0, given_up=0, expired=0)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True, kw_only=True)
class Bench:
    rescuer: Rescuer
    cancellation: Cancellation
    traces: Traces
    ledger: Ledger
    publisher: Publisher
    connection: redis.Redis
    engine: Engine
    clock: Clock

    def submit(self, *, publish: bool = True, **fields: Any) -> str:
        job_id = str(uuid.uuid4())
        job = GenerationJob.from_wire({"prompt": "a fox", "model": "small", **fields})
        self.traces.create(job_id, job, payload_hash=job.payload_hash, queue=QUEUE)
        if publish:
            self.publisher.send_job(job_id, job, queue=QUEUE)
        return job_id

    def claim(self, job_id: str) -> None:
        job = GenerationJob.model_validate(self.traces.read(job_id).job)
        claim = self.ledger.claim(
            uuid.UUID(job_id), job, queue=QUEUE, received_at=datetime.now(UTC)
        )
        self.traces.mark_running(job_id, claim.attempt)

    def published(self, priority: Priority = Priority.STANDARD) -> list[str]:
        """Ids of the messages that wait, oldest first; takes them out."""
        name = f"{QUEUE}\x06\x16{priority.celery_number}"
        messages = self.connection.lrange(name, 0, -1)
        self.connection.delete(name)
        assert isinstance(messages, list)
        return [json.loads(message)["headers"]["id"] for message in reversed(messages)]

    def let_leases_lapse(self) -> None:
        with self.engine.begin() as connection:
            connection.execute(text("UPDATE jobs SET lease_expires_at = now() - interval '1 s'"))


@pytest.fixture
def bench(database_url: str, broker_url: str) -> Iterator[Bench]:
    upgrade(database_url)
    engine = connect(database_url)
    app = build_app(ProducerSettings(broker_url=broker_url), WorkerSettings())
    clock = Clock()
    with closing(open_connection(broker_url)) as connection:
        traces = Traces(connection, retention_s=3_600, clock=clock)
        ledger = Ledger(engine, worker="one", lease_s=60, attempts_max=2)
        publisher = Publisher(app)
        announcer = Announcer(ledger, traces, show_end=publisher.show_end)
        unclaimed = UnclaimedJobs(
            ledger=ledger,
            announcer=announcer,
            publisher=publisher,
            clock=lambda: datetime.fromtimestamp(clock(), UTC),
        )
        yield Bench(
            rescuer=Rescuer(
                ledger=ledger,
                traces=traces,
                publisher=publisher,
                unclaimed=unclaimed,
                lists=ValkeyLists(connection),
                attempts_max=2,
                grace_s=GRACE_S,
                clock=clock,
            ),
            cancellation=Cancellation(ledger=ledger, traces=traces, unclaimed=unclaimed),
            traces=traces,
            ledger=ledger,
            publisher=publisher,
            connection=connection,
            engine=engine,
            clock=clock,
        )
    app.close()
    engine.dispose()


def test_a_job_that_waits_its_turn_is_left_alone(bench: Bench) -> None:
    bench.submit()
    bench.clock.now += 1_000
    assert bench.rescuer.run() == NOTHING


def test_a_job_whose_message_never_came_is_sent_again_after_the_grace(bench: Bench) -> None:
    job_id = bench.submit(publish=False)
    assert bench.rescuer.run() == NOTHING
    bench.clock.now += GRACE_S
    assert bench.rescuer.run().sent_again == 1
    assert bench.published() == [job_id]


def test_a_job_behind_which_another_was_claimed_is_sent_again(bench: Bench) -> None:
    lost = bench.submit(publish=False)
    bench.claim(bench.submit())
    waiting = bench.submit()
    bench.clock.now += GRACE_S
    bench.published()
    bench.connection.lpush(f"{QUEUE}\x06\x163", "{}")  # its list is not empty
    assert bench.rescuer.run().sent_again == 1
    assert bench.traces.read(waiting).status is Status.SUBMITTED
    assert bench.rescuer.run() == NOTHING  # sent again, it has its grace again
    assert bench.traces.num_ahead(bench.traces.read(lost)) == 1


def test_the_job_of_a_dead_worker_is_sent_again(bench: Bench) -> None:
    job_id = bench.submit()
    bench.claim(job_id)
    bench.published()
    assert bench.rescuer.run() == NOTHING
    bench.let_leases_lapse()
    assert bench.rescuer.run().taken_back == 1
    assert bench.published() == [job_id]
    assert bench.traces.read(job_id).status is Status.SUBMITTED
    assert bench.rescuer.run().taken_back == 0


def test_a_job_given_back_outlives_the_loss_of_the_broker(bench: Bench) -> None:
    job_id = bench.submit()
    bench.claim(job_id)
    bench.let_leases_lapse()
    assert bench.rescuer.run().taken_back == 1
    bench.connection.flushdb()
    with bench.engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET claimed_at = now() - interval '1 hour'"))
    assert bench.rescuer.run().sent_again == 1
    assert bench.published() == [job_id]
    assert bench.traces.read(job_id).status is Status.SUBMITTED
    assert bench.rescuer.run() == NOTHING


def test_a_job_that_kills_every_worker_fails(bench: Bench) -> None:
    job_id = bench.submit()
    for _ in range(2):
        bench.claim(job_id)
        bench.let_leases_lapse()
    assert bench.rescuer.run().given_up == 1
    result = bench.traces.read(job_id).result
    assert result is not None
    assert result.error is not None
    assert result.error.code is ErrorCode.ATTEMPTS_EXHAUSTED
    assert result.attempt == 2


def test_a_job_past_its_deadline_ends_unstarted(bench: Bench) -> None:
    submitted_at = datetime.fromtimestamp(bench.clock(), UTC).isoformat()
    hook = {"url": "https://example.com/hook"}
    job_id = bench.submit(deadline_s=60, submitted_at=submitted_at, webhook=hook)
    assert bench.rescuer.run() == NOTHING
    bench.clock.now += 61
    assert bench.rescuer.run().expired == 1
    result = bench.traces.read(job_id).result
    assert result is not None
    assert result.error is not None
    assert result.error.code is ErrorCode.DEADLINE_EXCEEDED
    with bench.engine.connect() as connection:
        deliveries = connection.execute(text("SELECT job_id, event FROM webhook_deliveries"))
        assert [(str(of), event) for of, event in deliveries] == [(job_id, "job.failed")]


def test_a_waiting_job_is_cancelled_where_it_waits(bench: Bench) -> None:
    job_id = bench.submit()
    assert bench.cancellation.cancel(job_id)
    assert bench.traces.read(job_id).status is Status.CANCELLED
    assert not bench.cancellation.cancel(job_id)


def test_a_trace_that_cannot_be_read_keeps_no_other_job_waiting(bench: Bench) -> None:
    unreadable = bench.submit(publish=False)
    bench.connection.hset(f"nirvana:job:{unreadable}", "wire", '{"version": 2}')
    job_id = bench.submit(publish=False)
    bench.clock.now += GRACE_S
    bench.rescuer.run()
    assert bench.published() == [job_id]


def test_cancelling_what_was_never_submitted_does_nothing(bench: Bench) -> None:
    assert not bench.cancellation.cancel(str(uuid.uuid4()))
