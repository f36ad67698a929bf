"""What became of webhooks: deliveries with every attempt, as an operator asks for them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, func, select

from workers.delivery.outbox import DeliveryStatus
from workers.tables import endpoints, webhook_attempts, webhook_deliveries


@dataclass(frozen=True, slots=True, kw_only=True)
class PastAttempt:
    """One attempt that was made; numbers are missing where the sender died in the middle."""

    attempt: int
    attempted_at: datetime
    status_code: int | None  # None: no answer
    error_kind: str | None  # None after a 2xx
    error: str | None
    latency_s: float
    response: str  # the beginning of the answer's body, what is no UTF-8 replaced


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryRecord:
    """A delivery and its history."""

    webhook_id: uuid.UUID
    job_id: uuid.UUID
    event: str
    namespace: str
    endpoint: str | None  # its name, or that of the secret for the job's own url
    url: str | None
    status: DeliveryStatus
    created_at: datetime
    next_attempt_at: datetime | None  # None where none will be made; while one is, its lease's end
    finished_at: datetime | None
    attempts: tuple[PastAttempt, ...] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which deliveries; all given fields must fit."""

    namespace: str | None = None
    job_id: uuid.UUID | None = None
    endpoint: str | None = None
    status: DeliveryStatus | None = None


def read_deliveries(
    connection: Connection, wanted: Filter, *, limit: int
) -> tuple[DeliveryRecord, ...]:
    """The newest deliveries first, at most `limit`, each with all its attempts in order."""
    row, endpoint = webhook_deliveries.c, endpoints.c
    is_theirs = (endpoint.namespace == row.namespace) & (endpoint.name == row.endpoint_name)
    statement = (
        select(webhook_deliveries, func.coalesce(row.url, endpoint.url).label("sent_to"))
        .join_from(webhook_deliveries, endpoints, is_theirs, isouter=True)
        .where(*_conditions(wanted))
        .order_by(row.created_at.desc(), row.id)
        .limit(limit)
    )
    rows = connection.execute(statement).all()
    attempts = _read_attempts(connection, [found.id for found in rows])
    return tuple(_to_record(found, attempts.get(found.id, [])) for found in rows)


def _conditions(wanted: Filter) -> list[ColumnElement[bool]]:
    row = webhook_deliveries.c
    given = [
        (row.namespace, wanted.namespace),
        (row.job_id, wanted.job_id),
        (row.endpoint_name, wanted.endpoint),
        (row.status, wanted.status),
    ]
    return [column == value for column, value in given if value is not None]


def _read_attempts(
    connection: Connection, delivery_ids: Sequence[uuid.UUID]
) -> dict[uuid.UUID, list[PastAttempt]]:
    row = webhook_attempts.c
    statement = (
        select(webhook_attempts)
        .where(row.delivery_id.in_(delivery_ids))
        .order_by(row.delivery_id, row.attempt)
    )
    found: dict[uuid.UUID, list[PastAttempt]] = {}
    for past in connection.execute(statement):
        found.setdefault(past.delivery_id, []).append(
            PastAttempt(
                attempt=past.attempt,
                attempted_at=past.attempted_at,
                status_code=past.status_code,
                error_kind=past.error_kind,
                error=past.error,
                latency_s=past.latency_s,
                response=bytes(past.response).decode(errors="replace"),
            )
        )
    return found


def _to_record(row: Row[Any], attempts: Sequence[PastAttempt]) -> DeliveryRecord:
    is_pending = row.status == DeliveryStatus.PENDING
    return DeliveryRecord(
        webhook_id=row.id,
        job_id=row.job_id,
        event=row.event,
        namespace=row.namespace,
        endpoint=row.endpoint_name,
        url=row.sent_to,
        status=DeliveryStatus(row.status),
        created_at=row.created_at,
        next_attempt_at=row.next_attempt_at if is_pending else None,
        finished_at=row.finished_at,
        attempts=tuple(attempts),
    )
