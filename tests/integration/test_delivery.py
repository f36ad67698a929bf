from __future__ import annotations

import base64
import json
import socket
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpcore
import pytest
import standardwebhooks
from sqlalchemy import Engine, Row, create_engine, event, insert, select, text, update

from producer.contract import ErrorCode, EventType, GenerationJob, Status, Webhook
from producer.result import JobError, JobResult
from producer.verification import SecretInvalid, verify
from tests.unit.delivery.receiver import Receiver, receiver, status
from workers.delivery import outbox
from workers.delivery.deliver import DeliveryReport, DeliverySettings, deliver
from workers.delivery.network import Network
from workers.delivery.retry import RETRY_DELAYS_S
from workers.delivery.webhooks import Attempt
from workers.tables import endpoints, jobs, metadata, webhook_deliveries

SECRET = "whsec_" + base64.b64encode(b"d" * 24).decode()
TENANT_SECRET = "whsec_" + base64.b64encode(b"t" * 24).decode()
NEW_SECRET = "whsec_" + base64.b64encode(b"n" * 24).decode()
SETTINGS = DeliverySettings(timeout_s=5, allow_private_addresses=True, default_secret=SECRET)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_engine(database_url)
    metadata.create_all(engine)
    yield engine
    engine.dispose()


def end_job(
    engine: Engine,
    webhook: Webhook | None,
    *,
    status: Status = Status.SUCCEEDED,
    now: datetime = NOW,
    **result_fields: Any,
) -> uuid.UUID | None:
    """A job's last transaction: its row and its webhook."""
    job = GenerationJob(prompt="a fox", webhook=webhook)
    job_id = uuid.uuid4()
    result = JobResult(job_id=str(job_id), status=status, attempt=1, **result_fields)
    with engine.begin() as connection:
        connection.execute(insert(jobs).values(_job_row(job_id, job, result, now)))
        return outbox.enqueue(connection, job=job, result=result, now=now)


def _job_row(
    job_id: uuid.UUID, job: GenerationJob, result: JobResult, now: datetime
) -> dict[str, Any]:
    return {
        "id": job_id,
        "namespace": job.namespace,
        "owner": "",
        "model": "small",
        "queue": "generate.small",
        "job": job.to_wire(),
        "payload_hash": job.payload_hash,
        "status": result.status,
        "attempt": 1,
        "submitted_at": now,
        "finished_at": now,
    }


def register(engine: Engine, name: str, url: str | None, *secrets: str) -> None:
    row = {"namespace": "default", "name": name, "url": url, "secrets": list(secrets)}
    with engine.begin() as connection:
        connection.execute(insert(endpoints).values(row))


def only_row(engine: Engine) -> Row[Any]:
    with engine.connect() as connection:
        return connection.execute(select(webhook_deliveries)).one()


def run(engine: Engine, *, now: datetime = NOW, **options: Any) -> DeliveryReport:
    return deliver(engine, SETTINGS, now=now, jitter=lambda: 0.0, **options)


def to(server: Receiver) -> Webhook:
    return Webhook(url=server.url())


# The outbox


def test_a_job_without_a_webhook_leaves_no_delivery(engine: Engine) -> None:
    assert end_job(engine, None) is None
    assert run(engine) == DeliveryReport()


def test_an_event_that_was_not_asked_for_leaves_no_delivery(engine: Engine) -> None:
    webhook = Webhook(url="https://example.com/", events=(EventType.FAILED,))
    assert end_job(engine, webhook) is None
    assert end_job(engine, webhook, status=Status.CANCELLED) is None
    assert end_job(engine, webhook, status=Status.FAILED) is not None


def test_a_result_that_is_rolled_back_takes_its_webhook_with_it(engine: Engine) -> None:
    job = GenerationJob(prompt="a fox", webhook=Webhook(url="https://example.com/"))
    result = JobResult(job_id=str(uuid.uuid4()), status=Status.SUCCEEDED, attempt=1)
    with engine.connect() as connection:
        row = _job_row(uuid.UUID(result.job_id), job, result, NOW)
        connection.execute(insert(jobs).values(row))
        assert outbox.enqueue(connection, job=job, result=result) is not None
        connection.rollback()
    assert run(engine) == DeliveryReport()


def test_one_event_of_a_job_is_one_delivery(engine: Engine) -> None:
    job = GenerationJob(prompt="a fox", webhook=Webhook(url="https://example.com/"))
    end_job(engine, job.webhook)
    row = only_row(engine)
    result = JobResult(job_id=str(row.job_id), status=Status.SUCCEEDED, attempt=2)
    with engine.begin() as connection:
        assert outbox.enqueue(connection, job=job, result=result) is None
    assert only_row(engine).id == row.id


def test_the_body_is_the_event_with_the_result_as_its_data(engine: Engine) -> None:
    error = JobError(code=ErrorCode.INTERNAL, message="größer als gedacht")
    end_job(engine, Webhook(url="https://example.com/"), status=Status.FAILED, error=error)
    row = only_row(engine)
    body = json.loads(row.body)
    assert body.keys() == {"type", "timestamp", "data"}
    assert (body["type"], body["timestamp"]) == ("job.failed", "2026-01-01T00:00:00Z")
    result = JobResult.model_validate(body["data"])
    assert (result.job_id, result.error) == (str(row.job_id), error)


def test_a_body_stays_under_20_kb_whatever_the_metadata(engine: Engine) -> None:
    metadata_max = {f"{i:02}" + "🦊" * 510: "\x01" * 512 for i in range(16)}
    error = JobError(code=ErrorCode.INTERNAL, message="\x01" * 50_000)
    webhook = Webhook(url="https://example.com/")
    end_job(engine, webhook, status=Status.FAILED, error=error, metadata=metadata_max)
    body = only_row(engine).body
    assert len(body) < 20_000
    result = JobResult.model_validate(json.loads(body)["data"])
    assert result.error is not None
    assert (result.error.code, result.metadata) == (ErrorCode.INTERNAL, {})


# Delivering


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


def test_a_sweep_takes_what_is_due_longest_first_up_to_its_limit(engine: Engine) -> None:
    with receiver() as server:
        late, early = (end_job(engine, to(server), now=NOW + timedelta(seconds=s)) for s in (1, 0))
        future = end_job(engine, to(server), now=NOW + timedelta(hours=1))
        at = NOW + timedelta(seconds=2)
        assert run(engine, now=at, limit=1).delivered == 1
        assert run(engine, now=at).delivered == 1
        assert run(engine, now=at) == DeliveryReport()
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
        deliver(engine, SETTINGS, now=NOW, jitter=lambda: 0.5)
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
            report = deliver(engine, settings, now=NOW)
        assert report == DeliveryReport(claimed=4, retried=4)
        assert other.requests == []


# Receivers and their secrets


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
    assert deliver(engine, settings, now=NOW) == DeliveryReport(claimed=1, failed=1)
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


# Several senders, and dead ones


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
        first = outbox.claim_due(one, limit=2, now=NOW, lease_s=60)
        second = outbox.claim_due(other, limit=2, now=NOW, lease_s=60)
    assert [len(first), len(second)] == [2, 1]
    assert {d.id for d in first}.isdisjoint(d.id for d in second)


def test_a_nudge_and_a_sweep_at_once_send_one_request(engine: Engine) -> None:
    with receiver() as server:
        delivery_id = end_job(engine, to(server))
        assert run(engine, delivery_id=delivery_id).claimed == 1
        assert run(engine, delivery_id=delivery_id).claimed == 0
        assert run(engine, now=NOW + timedelta(days=9)).claimed == 0
    assert len(server.requests) == 1


def test_a_sender_that_dies_before_recording_is_followed_by_another(engine: Engine) -> None:
    """Same webhook-id, so that the receiver can tell; the dead sender's attempt counts."""
    with receiver() as server:
        delivery_id = end_job(engine, to(server))
        with engine.begin() as connection:
            outbox.claim_due(connection, limit=1, now=NOW, lease_s=60)
        # Nothing is recorded: the process is gone. Its lease still holds ...
        assert run(engine, now=NOW + timedelta(seconds=59)).claimed == 0
        assert run(engine, now=NOW + timedelta(seconds=59), delivery_id=delivery_id).claimed == 0
        # ... and then does not.
        assert run(engine, now=NOW + timedelta(seconds=60)).delivered == 1
    assert server.requests[0].headers["webhook-id"] == str(delivery_id)
    assert only_row(engine).attempts == 2


def test_a_sender_that_was_overtaken_writes_nothing_but_success(engine: Engine) -> None:
    end_job(engine, Webhook(url="https://example.com/"))
    later = NOW + timedelta(seconds=60)
    with engine.begin() as connection:
        (frozen,) = outbox.claim_due(connection, limit=1, now=NOW, lease_s=60)
        (current,) = outbox.claim_due(connection, limit=1, now=later, lease_s=60)
        refused = Attempt(error="late news", is_refused=True)
        assert outbox.record(connection, frozen, refused, now=later, jitter=0) is None
    assert only_row(engine).status == "pending"
    with engine.begin() as connection:
        success, failure = Attempt(status_code=200), Attempt(status_code=500, error="answered 500")
        assert outbox.record(connection, frozen, success, now=later, jitter=0) == "delivered"
        assert outbox.record(connection, current, failure, now=later, jitter=0) is None
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


# Settings and the plan


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="lease_s must be longer"):
        DeliverySettings(timeout_s=30, lease_s=30)
    with pytest.raises(SecretInvalid):
        DeliverySettings(default_secret="secret")
    assert SECRET not in repr(SETTINGS)


def test_the_claim_reads_the_index_of_due_deliveries(engine: Engine) -> None:
    statements = []
    with engine.begin() as connection:
        event.listen(
            connection, "before_cursor_execute", lambda *args: statements.append(args[2:4])
        )
        outbox.claim_due(connection, limit=10, now=NOW, lease_s=60)
        statement, parameters = statements[0]
        # The table is empty: what counts is that the statement lets the index be used.
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        connection.execute(text("SET LOCAL enable_bitmapscan = off"))
        plan = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)
        lines = "\n".join(plan.scalars())
    assert "Index Scan using ix_webhook_deliveries_due" in lines
    assert "Index Cond: (next_attempt_at <=" in lines
