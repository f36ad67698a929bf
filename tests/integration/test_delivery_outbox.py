from __future__ import annotations

import json
import uuid
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, event, insert, text

from producer.contract import ErrorCode, EventType, GenerationJob, Status, Webhook
from producer.result import JobError, JobResult
from producer.verification import SecretInvalid
from tests.unit.delivery.ended_jobs import (
    NOW,
    SECRET,
    SETTINGS,
    created_engine,
    end_job,
    job_row,
    only_row,
    run,
)
from workers.delivery import outbox
from workers.delivery.claims import Bound, claim_due
from workers.delivery.deliver import DeliveryReport, DeliverySettings
from workers.tables import jobs


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = created_engine(database_url)
    yield engine
    engine.dispose()


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
        row = job_row(uuid.UUID(result.job_id), job, result, NOW)
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
        claim_due(connection, limit=10, now=NOW, lease_s=60, bound=Bound(per_receiver_max=8))
        statement, parameters = statements[0]
        # The table is empty: what counts is that the statement lets the index be used.
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        connection.execute(text("SET LOCAL enable_bitmapscan = off"))
        plan = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)
        lines = "\n".join(plan.scalars())
    assert "Index Scan using ix_webhook_deliveries_due" in lines
    assert "Index Cond: (next_attempt_at <=" in lines
