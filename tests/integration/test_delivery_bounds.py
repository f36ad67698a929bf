"""One receiver's trouble is nobody else's: bounds on what is sent at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import Engine, select

from producer.contract import Webhook
from tests.unit.delivery.ended_jobs import (
    NOW,
    SETTINGS,
    TENANT_SECRET,
    created_engine,
    end_job,
    register,
    to,
)
from tests.unit.delivery.receiver import receiver
from workers.delivery.deliver import Deliverer, DeliveryReport
from workers.delivery.outbox import receiver_of
from workers.tables import webhook_deliveries

BOUNDED = replace(SETTINGS, in_flight_max=4, per_receiver_max=2)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = created_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def deliverer(engine: Engine) -> Deliverer:
    return Deliverer(engine, BOUNDED, clock=lambda: NOW, jitter=lambda: 0.0)


def test_a_nudge_returns_before_its_receiver_answers(engine: Engine, deliverer: Deliverer) -> None:
    with receiver("silence") as silent:
        delivery_id = end_job(engine, to(silent))
        started_s = time.monotonic()
        assert deliverer.send_due(delivery_id) == 1
        silent.arrived.get(timeout=5)
        assert time.monotonic() - started_s < SETTINGS.timeout_s / 2
        assert not deliverer.wait_idle(0)
        silent.is_over.set()
        assert deliverer.wait_idle(5)


def test_a_receiver_that_hangs_has_its_bound_and_the_others_the_rest(
    engine: Engine, deliverer: Deliverer
) -> None:
    """However long its backlog: nudged or swept, a first attempt elsewhere leaves at once."""
    with receiver("silence") as silent, receiver() as quick:
        for _ in range(6):
            end_job(engine, to(silent))
        assert deliverer.send_due() == 2
        for _ in range(2):
            silent.arrived.get(timeout=5)
        nudged = end_job(engine, to(quick), now=NOW + timedelta(hours=1))
        assert deliverer.send_due(nudged) == 1
        assert quick.arrived.get(timeout=5).headers["webhook-id"] == str(nudged)
        swept = end_job(engine, to(quick))
        deliverer.send_due()  # or the thread of the nudged one, as it ends: both are right
        assert quick.arrived.get(timeout=5).headers["webhook-id"] == str(swept)
        assert deliverer.send_due() == 0
        assert len(silent.requests) == 2
        silent.is_over.set()
        assert deliverer.wait_idle(10)


def test_the_backlog_follows_without_a_sweep_as_places_are_freed(
    engine: Engine, deliverer: Deliverer
) -> None:
    with receiver() as one, receiver() as other:
        for server in (one, other):
            for _ in range(15):
                end_job(engine, to(server))
        deliverer.send_due()
        assert deliverer.wait_idle(20)
    assert deliverer.report() == DeliveryReport(claimed=30, delivered=30)
    ids = [request.headers["webhook-id"] for request in one.requests + other.requests]
    assert len(set(ids)) == 30


def test_a_nudge_that_finds_no_place_is_sent_when_one_is_free(
    engine: Engine, deliverer: Deliverer
) -> None:
    with receiver("silence", "silence", lambda connection: connection.close()) as server:
        for _ in range(2):
            deliverer.send_due(end_job(engine, to(server)))
            server.arrived.get(timeout=5)
        late = end_job(engine, to(server))
        assert deliverer.send_due(late) == 0
        server.is_over.set()
        assert server.arrived.get(timeout=5).headers["webhook-id"] == str(late)
        assert deliverer.wait_idle(5)


def test_a_closed_deliverer_claims_nothing(engine: Engine, deliverer: Deliverer) -> None:
    end_job(engine, Webhook(url="https://example.com/"))
    deliverer.close()
    assert deliverer.send_due() == 0


@pytest.mark.parametrize(
    ("webhook", "name"),
    [
        (Webhook(endpoint="shop"), "n shop"),
        (Webhook(url="https://Example.com/hook?job=1"), "n example.com"),
        (Webhook(url="https://me:secret@example.com:8443/a@b"), "n example.com:8443"),
        (Webhook(url="https://example.com?x", secret_name="mine"), "n example.com"),
    ],
)
def test_a_bound_is_shared_by_an_endpoint_or_by_urls_at_one_place(
    webhook: Webhook, name: str
) -> None:
    assert receiver_of("n", webhook) == name


def test_the_rows_say_whose_they_are(engine: Engine) -> None:
    with receiver() as server:
        register(engine, "shop", server.url(), TENANT_SECRET)
        end_job(engine, Webhook(endpoint="shop"))
        end_job(engine, to(server))
    with engine.connect() as connection:
        names = set(connection.scalars(select(webhook_deliveries.c.receiver)))
    assert names == {"default shop", f"default 127.0.0.1:{server.port}"}
