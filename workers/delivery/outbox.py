"""The outbox: webhooks as rows, committed with the result they tell of.

A delivery is `pending` until a 2xx makes it `delivered`, or a refusal, a 410 or the end of the
retry table makes it `failed`; a replay makes it pending again, under the same webhook-id.
`claims` leases it to a sender, `records` writes what came of each attempt.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection
from datetime import UTC, datetime
from enum import StrEnum

from sqlalchemy import Connection, update
from sqlalchemy.dialects.postgresql import insert

from producer.contract import EventType, GenerationJob, Webhook
from producer.result import JobResult
from workers.delivery.body import event_body
from workers.tables import webhook_deliveries

# Credentials are no part of where a url leads.
_HOST_AND_PORT = re.compile(r"[^/]*//(?:[^/?#]*@)?([^/?#]*)")


class DeliveryStatus(StrEnum):
    """Where a delivery is; the last two change by a replay alone."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


def enqueue(
    connection: Connection, *, job: GenerationJob, result: JobResult, now: datetime | None = None
) -> uuid.UUID | None:
    """Add the webhook of a job's end, in the caller's transaction that commits the end.

    Returns the delivery's id, due at once; None when the job asked for no such webhook, or has it
    already. `now` defaults to this moment.
    """
    event = EventType.of(result.status)
    if job.webhook is None or event not in job.webhook.events:
        return None
    now = now or datetime.now(UTC)
    statement = (
        insert(webhook_deliveries)
        .values(
            id=uuid.uuid4(),
            job_id=uuid.UUID(result.job_id),
            event=event,
            namespace=job.namespace,
            endpoint_name=job.webhook.endpoint or job.webhook.secret_name,
            url=job.webhook.url,
            receiver=receiver_of(job.namespace, job.webhook),
            body=event_body(event, result, now=now),
            next_attempt_at=now,
            created_at=now,
        )
        .on_conflict_do_nothing(index_elements=["job_id", "event"])
        .returning(webhook_deliveries.c.id)
    )
    return connection.execute(statement).scalar_one_or_none()


def receiver_of(namespace: str, webhook: Webhook) -> str:
    """Whose deliveries share a bound: a namespace's endpoint, or its urls at one host and port.

    Not the whole url, which often differs from job to job; nor the host alone, which tenants share
    where somebody's service receives for both.
    """
    place = webhook.endpoint or ""
    if webhook.url is not None and (found := _HOST_AND_PORT.match(webhook.url)):
        place = found[1].lower()
    return f"{namespace} {place}"


def replay(
    connection: Connection, delivery_ids: Collection[uuid.UUID], *, now: datetime
) -> list[uuid.UUID]:
    """Make deliveries due at once, with the whole retry table before them; returns which.

    Each keeps its webhook-id and its history. One that is being attempted at this moment may reach
    its receiver twice.
    """
    row = webhook_deliveries.c
    statement = (
        update(webhook_deliveries)
        .where(row.id.in_(delivery_ids))
        .values(
            status=DeliveryStatus.PENDING,
            attempts_before=row.attempts,
            next_attempt_at=now,
            finished_at=None,
        )
        .returning(row.id)
    )
    return list(connection.scalars(statement))
