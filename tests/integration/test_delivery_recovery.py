"""Whatever a receiver's trouble, its webhook arrives once it is over, and under one id."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import Engine, func, select

from producer.contract import Webhook
from tests.unit.delivery.ended_jobs import NOW, SETTINGS, created_engine, end_job, only_row, run
from tests.unit.delivery.receiver import CERTIFICATE, Receiver, raw, receiver, status
from workers.delivery.history import DeliveryRecord, Filter, read_deliveries
from workers.delivery.network import Network
from workers.delivery.outbox import DeliveryStatus
from workers.delivery.retry import RETRY_DELAYS_S
from workers.tables import webhook_deliveries

Answer = Callable[[socket.socket], None] | str
IMPATIENT = replace(SETTINGS, timeout_s=0.4)
PATIENT = replace(SETTINGS, timeout_s=10)

TROUBLES: dict[str, tuple[Answer, int]] = {
    "500": (status(500), RETRY_DELAYS_S[1]),
    "404": (status(404), RETRY_DELAYS_S[1]),
    "301": (status(301, "location: http://127.0.0.1:9/"), RETRY_DELAYS_S[1]),
    "503 and Retry-After": (status(503, "Retry-After: 90"), 90),
    "429 and Retry-After of a year": (status(429, "Retry-After: 31536000"), 86_400),
    "Retry-After sooner than the table": (status(503, "Retry-After: 1"), RETRY_DELAYS_S[1]),
    "no answer in time": ("silence", RETRY_DELAYS_S[1]),
    "an answer that drips": ("drip_head", RETRY_DELAYS_S[1]),
    "a connection closed": (raw(b""), RETRY_DELAYS_S[1]),
    "no HTTP": (raw(b"220 smtp ready\r\n"), RETRY_DELAYS_S[1]),
    "a huge head": (raw(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 100_000), RETRY_DELAYS_S[1]),
}


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = created_engine(database_url)
    yield engine
    engine.dispose()


@pytest.mark.parametrize(("trouble", "wait_s"), TROUBLES.values(), ids=TROUBLES)
def test_after_its_trouble_a_receiver_gets_the_webhook(
    engine: Engine, trouble: Answer, wait_s: int
) -> None:
    # Only who gives no whole answer runs into the short time-out: a stalled machine may, too.
    settings = IMPATIENT if isinstance(trouble, str) else PATIENT
    with receiver(trouble, status(200)) as server:
        delivery_id = end_job(engine, Webhook(url=server.url()))
        assert run(engine, settings).retried == 1
        row = only_row(engine)
        assert (row.next_attempt_at - row.last_attempt_at).total_seconds() == wait_s
        almost = row.next_attempt_at - timedelta(milliseconds=1)
        assert run(engine, PATIENT, now=almost).claimed == 0
        assert run(engine, PATIENT, now=row.next_attempt_at).delivered == 1
    check_history(engine, server, str(delivery_id), num_requests=2)


def test_a_receiver_that_was_down_gets_it_when_it_is_up(engine: Engine) -> None:
    with closed_port() as port:
        delivery_id = end_job(engine, Webhook(url=f"http://127.0.0.1:{port}/hook"))
        assert run(engine).retried == 1
    with receiver(port=port) as server:
        assert run(engine, now=NOW + timedelta(minutes=1)).delivered == 1
    check_history(engine, server, str(delivery_id), num_requests=1)


def test_a_receiver_with_a_wrong_certificate_gets_it_with_the_right_one(engine: Engine) -> None:
    trusting = ssl.create_default_context(cafile=str(CERTIFICATE))

    def network(tls: ssl.SSLContext | None) -> Network:
        here = ["127.0.0.1"]
        return Network(resolve=lambda *_: here, tls=tls, allow_private_addresses=True)

    with receiver(is_tls=True) as server:
        url = server.url(host="receiver.example", scheme="https")
        delivery_id = end_job(engine, Webhook(url=url))
        assert run(engine, network=network(None)).retried == 1
        assert server.requests == []
        later = NOW + timedelta(minutes=1)
        assert run(engine, now=later, network=network(trusting)).delivered == 1
    check_history(engine, server, str(delivery_id), num_requests=1)


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f.1", "017700000001", "0.0.0.0"])
def test_what_is_refused_as_private_is_delivered_where_the_setting_allows_it(
    engine: Engine, host: str
) -> None:
    with receiver() as server:
        for is_allowed in (False, True):
            end_job(engine, Webhook(url=server.url(host=host)))
            run(engine, replace(SETTINGS, allow_private_addresses=is_allowed))
    allowed, refused = history(engine)
    assert (refused.status, allowed.status) == ("failed", "delivered")
    (attempt,) = refused.attempts
    reason = f"refused: {host} is not at a public address"
    assert (attempt.error_kind, attempt.error) == ("refused", reason)
    assert len(server.requests) == 1


def history(engine: Engine) -> list[DeliveryRecord]:
    with engine.connect() as connection:
        found = read_deliveries(connection, Filter(), limit=10)
    # Created at one moment: told apart by their end.
    return sorted(found, key=lambda delivery: delivery.status)


def check_history(engine: Engine, server: Receiver, delivery_id: str, *, num_requests: int) -> None:
    """Delivered at the second attempt; never another id for the event."""
    (delivery,) = history(engine)
    assert delivery.status is DeliveryStatus.DELIVERED
    assert [attempt.error is None for attempt in delivery.attempts] == [False, True]
    ids = [request.headers["webhook-id"] for request in server.requests]
    assert ids == [delivery_id] * num_requests
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(webhook_deliveries)) == 1


@contextmanager
def closed_port() -> Iterator[int]:
    """A port that refuses connections, and is nobody else's meanwhile."""
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))  # bound and not listening
        yield reserved.getsockname()[1]
