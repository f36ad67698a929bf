"""Every attempt is kept with its delivery, and a delivery can be made again."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, delete, func, select

from producer.contract import Webhook
from tests.unit.delivery.ended_jobs import (
    NOW,
    SETTINGS,
    TENANT_SECRET,
    created_engine,
    end_job,
    only_row,
    register,
    run,
    to,
)
from tests.unit.delivery.receiver import endless_body, raw, receiver, status
from workers.delivery.history import DeliveryRecord, Filter, read_deliveries
from workers.delivery.outbox import DeliveryStatus, replay
from workers.delivery.retry import RETRY_DELAYS_S
from workers.tables import jobs, webhook_attempts

LATER = NOW + timedelta(minutes=1)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = created_engine(database_url)
    yield engine
    engine.dispose()


def history(engine: Engine, **wanted: Any) -> tuple[DeliveryRecord, ...]:
    with engine.connect() as connection:
        return read_deliveries(connection, Filter(**wanted), limit=100)


def test_each_attempt_is_kept_with_time_answer_latency_and_first_bytes(engine: Engine) -> None:
    answer = b"HTTP/1.1 500 Oops\r\n\r\nthe shelf \xff is full" + b"." * 5_000
    with receiver(raw(answer), status(200)) as server:
        delivery_id = end_job(engine, to(server))
        run(engine)
        run(engine, now=LATER)
    (delivery,) = history(engine)
    assert (delivery.webhook_id, delivery.status) == (delivery_id, DeliveryStatus.DELIVERED)
    assert (delivery.url, delivery.next_attempt_at) == (server.url(), None)
    first, second = delivery.attempts
    assert (first.attempt, first.attempted_at) == (1, NOW)
    assert (first.status_code, first.error_kind, first.error) == (500, "status", "answered 500")
    assert first.response.startswith("the shelf \ufffd is full...")
    assert len(first.response) == 1_024
    assert (second.attempt, second.attempted_at, second.status_code) == (2, LATER, 200)
    assert (second.error_kind, second.error, second.response) == (None, None, "ok")
    assert 0 < second.latency_s < SETTINGS.timeout_s


def test_each_trouble_has_its_kind(engine: Engine) -> None:
    settings = replace(SETTINGS, timeout_s=0.4)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    with (
        receiver("silence") as silent,
        receiver("drip_head") as dripping,
        receiver(endless_body) as huge,
        receiver(raw(b"SSH-2.0-OpenSSH_9.6\r\n")) as no_http,
        receiver(is_tls=True) as unknown,
        receiver(status(301, "location: https://example.com/")) as moved,
        receiver(status(410)) as gone,
    ):
        kinds = {
            closed: "connection",
            silent.url(): "timeout",
            dripping.url(): "timeout",
            huge.url(): None,
            no_http.url(): "protocol",
            unknown.url(scheme="https"): "tls",
            moved.url(): "status",
            gone.url(): "status",
            "ftp://example.com/": "refused",
        }
        for url in kinds:
            end_job(engine, Webhook.model_construct(url=url, events=Webhook(endpoint="x").events))
        run(engine, settings)
    told = {delivery.url: delivery.attempts[0].error_kind for delivery in history(engine)}
    assert told == kinds


def test_a_job_that_is_deleted_takes_its_history_along(engine: Engine) -> None:
    with receiver() as server:
        end_job(engine, to(server))
        run(engine)
    with engine.begin() as connection:
        count = select(func.count()).select_from(webhook_attempts)
        assert connection.scalar(count) == 1
        connection.execute(delete(jobs))
        assert connection.scalar(count) == 0


def test_deliveries_are_found_by_job_endpoint_namespace_and_status(engine: Engine) -> None:
    with receiver() as server:
        register(engine, "shop", server.url(), TENANT_SECRET)
        at_endpoint = end_job(engine, Webhook(endpoint="shop"))
        run(engine)
    end_job(engine, Webhook(url="http://127.0.0.1:9/"), now=LATER)
    newest, oldest = history(engine)
    assert oldest.webhook_id == at_endpoint
    assert oldest.url == server.url()
    assert history(engine, endpoint="shop") == (oldest,)
    assert history(engine, job_id=newest.job_id) == (newest,)
    assert history(engine, status=DeliveryStatus.PENDING) == (newest,)
    assert history(engine, namespace="default", endpoint="shop") == (oldest,)
    assert history(engine, namespace="elsewhere") == ()


@pytest.mark.parametrize("first_answer", [200, 410])
def test_a_replay_sends_the_same_event_again_under_its_webhook_id(
    engine: Engine, first_answer: int
) -> None:
    with receiver(status(first_answer), status(500), status(200)) as server:
        delivery_id = end_job(engine, to(server))
        assert delivery_id is not None
        run(engine)
        with engine.begin() as connection:
            assert replay(connection, [delivery_id], now=LATER) == [delivery_id]
        assert run(engine, now=LATER).retried == 1
        # The retry table begins anew: 5 s, not what follows the first attempt's place.
        row = only_row(engine)
        wait_s = (row.next_attempt_at - row.last_attempt_at).total_seconds()
        assert wait_s == RETRY_DELAYS_S[1]
        assert run(engine, now=row.next_attempt_at).delivered == 1
    assert len({(request.headers["webhook-id"], request.body) for request in server.requests}) == 1
    (delivery,) = history(engine)
    assert [past.status_code for past in delivery.attempts] == [first_answer, 500, 200]
    assert [past.attempt for past in delivery.attempts] == [1, 2, 3]


def test_a_replay_of_what_is_not_there_is_none(engine: Engine) -> None:
    with engine.begin() as connection:
        assert replay(connection, [uuid.uuid4()], now=NOW) == []
