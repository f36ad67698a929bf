from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import httpcore
import pytest
from sqlalchemy import Engine, select
from sqlalchemy.exc import OperationalError

from producer.contract import Webhook
from tests.unit.delivery.ended_jobs import (
    NOW,
    created_engine,
    end_job,
    only_row,
    run,
    to,
)
from tests.unit.delivery.receiver import receiver
from workers.delivery import records
from workers.delivery.claims import Bound, claim_due
from workers.delivery.deliver import DeliveryReport
from workers.delivery.network import Network
from workers.delivery.webhooks import Attempt, ErrorKind
from workers.tables import webhook_deliveries

BOUND = Bound(per_receiver_max=8)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = created_engine(database_url)
    yield engine
    engine.dispose()


def test_two_senders_at_once_send_each_delivery_once(engine: Engine) -> None:
    with receiver() as server:
        for _ in range(20):
            end_job(engine, to(server))
        together = threading.Barrier(2)

        def sender(_: int) -> DeliveryReport:
            together.wait()
            return run(engine)

        with ThreadPoolExecutor(2) as senders:
            reports = list(senders.map(sender, range(2)))
    assert sum(report.delivered for report in reports) == 20
    ids = [request.headers["webhook-id"] for request in server.requests]
    assert len(ids) == len(set(ids)) == 20


def test_a_claim_passes_over_what_another_is_claiming(engine: Engine) -> None:
    for _ in range(3):
        end_job(engine, Webhook(url="https://example.com/"))
    with engine.begin() as one, engine.begin() as other:
        first = claim_due(one, limit=2, now=NOW, lease_s=60, bound=BOUND)
        second = claim_due(other, limit=2, now=NOW, lease_s=60, bound=BOUND)
    assert [len(first), len(second)] == [2, 1]
    assert {d.id for d in first}.isdisjoint(d.id for d in second)


def test_a_nudge_and_a_sweep_at_once_send_one_request(engine: Engine) -> None:
    with receiver() as server:
        delivery_id = end_job(engine, to(server))
        assert run(engine, delivery_id=delivery_id).claimed == 1
        assert run(engine, delivery_id=delivery_id).claimed == 0
        assert run(engine, now=NOW + timedelta(days=9)).claimed == 0
    assert len(server.requests) == 1


def test_a_sender_that_dies_between_sending_and_recording_is_followed_by_another(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receiver sees it twice under one webhook-id, and can tell."""

    def die(*_: object, **__: object) -> None:
        raise OperationalError("INSERT", {}, ConnectionError("the database is away"))

    with receiver() as server:
        delivery_id = end_job(engine, to(server))
        with monkeypatch.context() as patch:
            patch.setattr(records, "record", die)
            assert run(engine) == DeliveryReport(claimed=1, unrecorded=1)
        # Its lease still holds ...
        almost = NOW + timedelta(seconds=59)
        assert run(engine, now=almost).claimed == 0
        assert run(engine, now=almost, delivery_id=delivery_id).claimed == 0
        # ... and then does not.
        assert run(engine, now=NOW + timedelta(seconds=60)).delivered == 1
    ids = [request.headers["webhook-id"] for request in server.requests]
    assert ids == [str(delivery_id)] * 2
    assert only_row(engine).attempts == 2


def test_a_sender_that_was_overtaken_writes_nothing_but_success(engine: Engine) -> None:
    end_job(engine, Webhook(url="https://example.com/"))
    later = NOW + timedelta(seconds=60)
    with engine.begin() as connection:
        (frozen,) = claim_due(connection, limit=1, now=NOW, lease_s=60, bound=BOUND)
        (current,) = claim_due(connection, limit=1, now=later, lease_s=60, bound=BOUND)
        refused = Attempt(error="late news", error_kind=ErrorKind.REFUSED)
        assert records.record(connection, frozen, refused, now=later, jitter=0) is None
    assert only_row(engine).status == "pending"
    with engine.begin() as connection:
        success, failure = Attempt(status_code=200), Attempt(status_code=500, error="answered 500")
        assert records.record(connection, frozen, success, now=later, jitter=0) == "delivered"
        assert records.record(connection, current, failure, now=later, jitter=0) is None
    assert only_row(engine).status == "delivered"


def test_a_slow_receiver_holds_up_nobody_elses_record(engine: Engine) -> None:
    with receiver("silence") as slow, receiver() as quick:
        end_job(engine, to(slow))
        end_job(engine, to(quick))
        with ThreadPoolExecutor(1) as sender:
            report = sender.submit(run, engine)
            slow.arrived.get(timeout=5)
            statuses = set()
            while "delivered" not in statuses and not report.done():
                with engine.connect() as connection:
                    statuses = set(connection.scalars(select(webhook_deliveries.c.status)))
            assert statuses == {"delivered", "pending"}
            assert not report.done()
            slow.is_over.set()
            assert report.result(timeout=10) == DeliveryReport(claimed=2, delivered=1, retried=1)


class FaultyNetwork(httpcore.SyncBackend):
    """Breaks on 127.0.0.2, as a bug of ours would."""

    def connect_tcp(self, host: str, *args: Any, **options: Any) -> httpcore.NetworkStream:
        if host == "127.0.0.2":
            raise RuntimeError
        return super().connect_tcp(host, *args, **options)


def test_a_fault_of_ours_is_a_failed_attempt_and_spares_the_batch(engine: Engine) -> None:
    network = Network(backend=FaultyNetwork(), allow_private_addresses=True)
    with receiver() as server:
        end_job(engine, to(server))
        end_job(engine, Webhook(url=server.url(host="127.0.0.2")))
        report = run(engine, network=network)
    assert report == DeliveryReport(claimed=2, delivered=1, retried=1)
    with engine.connect() as connection:
        errors = set(connection.scalars(select(webhook_deliveries.c.last_error)))
    assert errors == {None, "internal: RuntimeError"}


def test_a_receiver_with_a_backlog_delays_no_other(engine: Engine) -> None:
    with receiver("silence") as silent, receiver() as server:
        for _ in range(5):
            end_job(engine, to(silent))
        delivery_id = end_job(engine, to(server), now=NOW + timedelta(seconds=1))
        with engine.begin() as connection:
            at = NOW + timedelta(seconds=2)
            claimed = claim_due(connection, limit=2, now=at, lease_s=60, bound=BOUND)
    assert {delivery.url for delivery in claimed} == {silent.url(), server.url()}
    assert delivery_id in {delivery.id for delivery in claimed}
