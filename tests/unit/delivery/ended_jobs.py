"""Jobs that have just ended, their webhooks, and a run of the deliverer."""

from __future__ import annotations

import base64
import uuid
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, Row, create_engine, insert, select

from producer.contract import GenerationJob, Status, Webhook
from producer.result import JobResult
from tests.unit.delivery.receiver import Receiver
from workers.delivery import outbox
from workers.delivery.deliver import Deliverer, DeliveryReport, DeliverySettings
from workers.delivery.network import Network
from workers.tables import endpoints, jobs, metadata, webhook_deliveries

SECRET = "whsec_" + base64.b64encode(b"d" * 24).decode()
TENANT_SECRET = "whsec_" + base64.b64encode(b"t" * 24).decode()
NEW_SECRET = "whsec_" + base64.b64encode(b"n" * 24).decode()
SETTINGS = DeliverySettings(timeout_s=5, allow_private_addresses=True, default_secret=SECRET)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def created_engine(database_url: str) -> Engine:
    """An engine on a database that has the tables."""
    engine = create_engine(database_url)
    metadata.create_all(engine)
    return engine


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
        connection.execute(insert(jobs).values(job_row(job_id, job, result, now)))
        return outbox.enqueue(connection, job=job, result=result, now=now)


def job_row(
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


def run(
    engine: Engine,
    settings: DeliverySettings = SETTINGS,
    *,
    now: datetime = NOW,
    jitter: float = 0.0,
    delivery_id: uuid.UUID | None = None,
    network: Network | None = None,
) -> DeliveryReport:
    """Send what is due at `now` and wait for its end."""
    deliverer = Deliverer(
        engine, settings, network=network, clock=lambda: now, jitter=lambda: jitter
    )
    deliverer.send_due(delivery_id)
    assert deliverer.wait_idle(20)
    return deliverer.report()


def to(server: Receiver) -> Webhook:
    return Webhook(url=server.url())
