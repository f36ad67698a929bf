from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import standardwebhooks
from sqlalchemy import Engine, select, update

from producer.contract import Status, Webhook
from producer.verification import verify
from tests.unit.delivery.ended_jobs import (
    NEW_SECRET,
    NOW,
    SECRET,
    SETTINGS,
    TENANT_SECRET,
    created_engine,
    end_job,
    only_row,
    register,
    run,
    to,
)
from tests.unit.delivery.receiver import receiver, status
from workers.delivery.deliver import DeliveryReport, DeliverySettings
from workers.delivery.retry import RETRY_DELAYS_S
from workers.tables import endpoints, webhook_deliveries


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = created_engine(database_url)
    yield engine
    engine.dispose()


def test_a_nudge_sends_the_one_it_names_verified_by_the_reference_library(engine: Engine) -> None:
    now = datetime.now(UTC)
    with receiver() as server:
        end_job(engine, to(server), now=now)
        delivery_id = end_job(engine, to(server), now=now)
        report = run(engine, now=now, delivery_id=delivery_id)
    assert report == DeliveryReport(claimed=1, delivered=1)
    (request,) = server.requests
    assert request.headers["webhook-id"] == str(delivery_id)
    reference = standardwebhooks.Webhook(SECRET)
    assert reference.verify(request.body, request.headers)["type"] == "job.succeeded"
    assert verify(request.body, request.headers, secret=SECRET).result.status is Status.SUCCEEDED


def test_a_nudge_does_not_wait_for_a_clock_that_is_behind(engine: Engine) -> None:
    with receiver() as server:
        delivery_id = end_job(engine, to(server))
        report = run(engine, now=NOW - timedelta(seconds=30), delivery_id=delivery_id)
    assert report.delivered == 1


def test_a_sweep_takes_what_is_due_longest_first_within_its_bound(engine: Engine) -> None:
    with receiver() as server:
        late, early = (end_job(engine, to(server), now=NOW + timedelta(seconds=s)) for s in (1, 0))
        future = end_job(engine, to(server), now=NOW + timedelta(hours=1))
        at, one_by_one = NOW + timedelta(seconds=2), replace(SETTINGS, in_flight_max=1)
        assert run(engine, one_by_one, now=at).delivered == 2
        assert run(engine, one_by_one, now=at) == DeliveryReport()
    sent = [request.headers["webhook-id"] for request in server.requests]
    assert sent == [str(early), str(late)]
    assert str(future) not in sent


def test_500_then_200_is_two_attempts_under_one_webhook_id(engine: Engine) -> None:
    with receiver(status(500), status(200)) as server:
        delivery_id = end_job(engine, to(server))
        assert run(engine).retried == 1
        row = only_row(engine)
        assert (row.status, row.attempts, row.last_status_code) == ("pending", 1, 500)
        assert row.last_error == "answered 500"
        assert (row.next_attempt_at - row.last_attempt_at).total_seconds() == 5

        assert run(engine, now=NOW + timedelta(seconds=4)) == DeliveryReport()
        assert run(engine, now=NOW + timedelta(seconds=11)).delivered == 1
    row = only_row(engine)
    assert (row.status, row.attempts, row.last_status_code) == ("delivered", 2, 200)
    assert row.last_error is None
    assert row.finished_at is not None
    first, second = server.requests
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == str(delivery_id)
    assert first.body == second.body
    assert first.headers["webhook-timestamp"] != second.headers["webhook-timestamp"]


def test_a_receiver_that_never_recovers_sees_the_whole_table_and_no_more(engine: Engine) -> None:
    with receiver(status(503)) as server:
        end_job(engine, to(server))
        for attempt, delay_s in enumerate(RETRY_DELAYS_S[1:], start=1):
            row = only_row(engine)
            assert run(engine, now=row.next_attempt_at).retried == 1
            row = only_row(engine)
            assert row.attempts == attempt
            assert (row.next_attempt_at - row.last_attempt_at).total_seconds() == delay_s
        assert run(engine, now=row.next_attempt_at).failed == 1
        assert run(engine, now=NOW + timedelta(days=365)) == DeliveryReport()
    row = only_row(engine)
    assert (row.status, row.attempts, row.last_error) == ("failed", 10, "answered 503")
    assert len(server.requests) == 10


def test_retry_after_puts_the_next_attempt_off(engine: Engine) -> None:
    with receiver(status(429, "Retry-After: 600")) as server:
        end_job(engine, to(server))
        run(engine)
    row = only_row(engine)
    assert (row.next_attempt_at - row.last_attempt_at).total_seconds() == 600


def test_jitter_puts_the_next_attempt_off_by_a_tenth_at_most(engine: Engine) -> None:
    with receiver(status(500)) as server:
        end_job(engine, to(server))
        run(engine, jitter=0.5)
    row = only_row(engine)
    assert (row.next_attempt_at - row.last_attempt_at).total_seconds() == 5.25


def test_a_refused_connection_a_timeout_and_a_redirect_are_retried(engine: Engine) -> None:
    settings = DeliverySettings(timeout_s=0.4, allow_private_addresses=True, default_secret=SECRET)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    with receiver("silence") as silent, receiver("drip_head") as dripping, receiver() as other:
        with receiver(status(301, f"location: {other.url()}")) as moved:
            for url in (closed, silent.url(), dripping.url(), moved.url()):
                end_job(engine, Webhook(url=url))
            report = run(engine, settings)
        assert report == DeliveryReport(claimed=4, retried=4)
        assert other.requests == []


def test_an_endpoint_is_sent_to_with_both_its_secrets(engine: Engine) -> None:
    now = datetime.now(UTC)
    with receiver() as server:
        register(engine, "shop", server.url(), TENANT_SECRET, NEW_SECRET)
        end_job(engine, Webhook(endpoint="shop"), now=now)
        assert run(engine, now=now).delivered == 1
    (request,) = server.requests
    for secret in (TENANT_SECRET, NEW_SECRET):
        assert standardwebhooks.Webhook(secret).verify(request.body, request.headers)


def test_a_url_is_signed_with_the_secret_it_names(engine: Engine) -> None:
    now = datetime.now(UTC)
    with receiver() as server:
        register(engine, "mine", None, TENANT_SECRET)
        end_job(engine, Webhook(url=server.url(), secret_name="mine"), now=now)
        assert run(engine, now=now).delivered == 1
    (request,) = server.requests
    assert standardwebhooks.Webhook(TENANT_SECRET).verify(request.body, request.headers)


def test_url_and_secrets_are_those_of_the_moment_of_the_attempt(engine: Engine) -> None:
    with receiver(status(500)) as old, receiver() as new:
        register(engine, "shop", old.url(), TENANT_SECRET)
        end_job(engine, Webhook(endpoint="shop"))
        run(engine)
        with engine.begin() as connection:
            connection.execute(update(endpoints).values(url=new.url(), secrets=[NEW_SECRET]))
        later = NOW + timedelta(minutes=1)
        assert run(engine, now=later).delivered == 1
    (request,) = new.requests
    assert verify(request.body, request.headers, secret=NEW_SECRET, now=later)


@pytest.mark.parametrize(
    ("webhook", "default_secret", "reason"),
    [
        (
            Webhook(url="http://127.0.0.1:9/"),
            None,
            "no secret: the job names none, and the fleet has no default",
        ),
        (
            Webhook(url="http://127.0.0.1:9/", secret_name="nobody"),
            SECRET,
            "no secret 'nobody' in namespace 'default'",
        ),
        (
            Webhook(endpoint="nobody"),
            SECRET,
            "no endpoint 'nobody' in namespace 'default' with a url",
        ),
        (
            Webhook(endpoint="only-secrets"),
            SECRET,
            "no endpoint 'only-secrets' in namespace 'default' with a url",
        ),
        (
            Webhook(url="http://127.0.0.1:9/"),
            SECRET,
            "refused: 127.0.0.1 is not at a public address",
        ),
    ],
)
def test_what_cannot_be_sent_fails_at_once_with_its_reason(
    engine: Engine, webhook: Webhook, default_secret: str | None, reason: str
) -> None:
    register(engine, "only-secrets", None, TENANT_SECRET)
    end_job(engine, webhook)
    settings = DeliverySettings(default_secret=default_secret)
    assert run(engine, settings) == DeliveryReport(claimed=1, failed=1)
    row = only_row(engine)
    assert (row.status, row.last_error, row.last_status_code) == ("failed", reason, None)


def test_410_fails_the_delivery_and_disables_the_endpoint(engine: Engine) -> None:
    with receiver(status(410)) as server:
        register(engine, "shop", server.url(), TENANT_SECRET)
        end_job(engine, Webhook(endpoint="shop"))
        assert run(engine).failed == 1
        end_job(engine, Webhook(endpoint="shop"))
        assert run(engine).failed == 1
    assert len(server.requests) == 1
    with engine.connect() as connection:
        endpoint = connection.execute(select(endpoints)).one()
        errors = set(connection.scalars(select(webhook_deliveries.c.last_error)))
    assert endpoint.disabled_at is not None
    assert endpoint.disabled_reason == "the receiver answered 410 Gone"
    assert errors == {
        "answered 410",
        "endpoint 'shop' in namespace 'default' is disabled: the receiver answered 410 Gone",
    }


def test_410_at_a_jobs_own_url_leaves_the_named_secret_usable(engine: Engine) -> None:
    with receiver(status(410)) as gone, receiver() as server:
        register(engine, "mine", None, TENANT_SECRET)
        end_job(engine, Webhook(url=gone.url(), secret_name="mine"))
        assert run(engine).failed == 1
        end_job(engine, Webhook(url=server.url(), secret_name="mine"))
        assert run(engine).delivered == 1
