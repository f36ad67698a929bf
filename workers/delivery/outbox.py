"""The outbox: webhooks as rows, committed with the result they tell of.

A delivery is `pending` until a 2xx makes it `delivered`, or a refusal, a 410 or the end of the
retry table makes it `failed`. Claiming one moves `next_attempt_at` to the end of a lease and
counts the attempt; a sender that dies leaves the row pending, and the lease's end makes it due
again under the same webhook-id. Delivery is therefore at least once.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final, assert_never

from sqlalchemy import (
    CTE,
    ColumnElement,
    Connection,
    Row,
    func,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from producer.contract import EventType, GenerationJob
from producer.result import JobResult
from workers.delivery.body import event_body
from workers.delivery.retry import next_attempt_at
from workers.delivery.webhooks import Attempt, Verdict
from workers.tables import endpoints, webhook_deliveries

# Due deliveries among which receivers take turns; a sweep reads no more of them.
CANDIDATES_MAX: Final = 5_000


class DeliveryStatus(StrEnum):
    """Where a delivery is; the last two never change."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A claimed delivery with what its receiver's row says at this moment."""

    id: uuid.UUID
    job_id: uuid.UUID
    attempt: int  # from 1; the fencing token of `record`
    namespace: str
    endpoint_name: str | None
    url: str | None  # None: no endpoint of that name, or one that only holds secrets
    secrets: tuple[str, ...] | None = field(repr=False)  # None: no row of that name
    is_registered: bool  # the url is the endpoint's own, not given by the job
    disabled_reason: str | None  # of a disabled registered endpoint
    body: bytes = field(repr=False)


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
            body=event_body(event, result, now=now),
            next_attempt_at=now,
            created_at=now,
        )
        .on_conflict_do_nothing(index_elements=["job_id", "event"])
        .returning(webhook_deliveries.c.id)
    )
    return connection.execute(statement).scalar_one_or_none()


def claim_due(
    connection: Connection,
    *,
    limit: int,
    now: datetime,
    lease_s: float,
    delivery_id: uuid.UUID | None = None,
) -> list[Delivery]:
    """Lease at most `limit` due deliveries; skip what others are claiming.

    Receivers take turns, the longest due first, so that one with a backlog delays no other. With
    `delivery_id` only that one, its first attempt whatever this machine's clock says of the one
    that wrote it.
    """
    row = webhook_deliveries.c
    is_due: ColumnElement[bool] = row.next_attempt_at <= now
    if delivery_id is not None:
        is_due = (row.id == delivery_id) & or_(row.attempts == 0, is_due)
    due = _locked(is_due, limit)
    statement = (
        update(webhook_deliveries)
        .where(row.id == due.c.id)
        .values(attempts=row.attempts + 1, next_attempt_at=now + timedelta(seconds=lease_s))
        .returning(webhook_deliveries, *(column for column in due.c if column.name != "id"))
    )
    return [_to_delivery(claimed) for claimed in connection.execute(statement)]


def record(
    connection: Connection, delivery: Delivery, attempt: Attempt, *, now: datetime, jitter: float
) -> DeliveryStatus | None:
    """Write what came of an attempt, and after a 410 disable the endpoint.

    `jitter` is uniform in [0, 1). Returns the delivery's new status, or None, with nothing
    written, if its lease lapsed and another sender took it over; a 2xx counts even then.
    """
    status, next_at = _next_state(delivery, attempt, now, jitter)
    row = webhook_deliveries.c
    changes: dict[str, Any] = {
        "status": status,
        "last_attempt_at": now,
        "last_status_code": attempt.status_code,
        "last_error": attempt.error,
        "last_latency_s": attempt.latency_s,
        "finished_at": None if next_at else now,
    }
    if next_at is not None:
        changes["next_attempt_at"] = next_at
    is_ours: ColumnElement[bool] = row.id == delivery.id
    if status is not DeliveryStatus.DELIVERED:
        is_ours &= row.attempts == delivery.attempt
    written = connection.execute(
        update(webhook_deliveries).where(is_ours, _is_pending()).values(changes)
    )
    if attempt.verdict is Verdict.GONE and delivery.is_registered:
        _disable(connection, delivery, now)
    return status if written.rowcount else None


def _next_state(
    delivery: Delivery, attempt: Attempt, now: datetime, jitter: float
) -> tuple[DeliveryStatus, datetime | None]:
    match attempt.verdict:
        case Verdict.DELIVERED:
            return DeliveryStatus.DELIVERED, None
        case Verdict.GONE | Verdict.REFUSED:
            return DeliveryStatus.FAILED, None
        case Verdict.FAILED:
            next_at = next_attempt_at(
                delivery.attempt, now=now, jitter=jitter, retry_after_s=attempt.retry_after_s
            )
            return (DeliveryStatus.PENDING if next_at else DeliveryStatus.FAILED), next_at
        case _ as unreachable:
            assert_never(unreachable)


def _disable(connection: Connection, delivery: Delivery, now: datetime) -> None:
    """Disable the endpoint that answered 410, unless it has got another url meanwhile."""
    connection.execute(
        update(endpoints)
        .where(
            endpoints.c.namespace == delivery.namespace,
            endpoints.c.name == delivery.endpoint_name,
            endpoints.c.url == delivery.url,
            endpoints.c.disabled_at.is_(None),
        )
        .values(disabled_at=now, disabled_reason="the receiver answered 410 Gone")
    )


def _is_pending() -> ColumnElement[bool]:
    # A literal, not a parameter: only so may a prepared plan use the partial index.
    return webhook_deliveries.c.status == literal_column("'pending'")


def _locked(is_due: ColumnElement[bool], limit: int) -> CTE:
    """Due deliveries that nobody else is claiming, each with its receiver's row if there is one."""
    row, receiver, turns = webhook_deliveries.c, endpoints.c, _turns(is_due)
    is_receiver = (receiver.namespace == row.namespace) & (receiver.name == row.endpoint_name)
    return (
        select(
            row.id,
            receiver.url.label("endpoint_url"),
            receiver.secrets,
            receiver.disabled_at,
            receiver.disabled_reason,
        )
        .join_from(webhook_deliveries, turns, turns.c.id == row.id)
        .join(endpoints, is_receiver, isouter=True)
        # Asked again of the locked row, which another sender may have claimed since.
        .where(_is_pending(), is_due)
        .order_by(turns.c.turn, row.next_attempt_at)
        .limit(limit)
        .with_for_update(of=webhook_deliveries, skip_locked=True)
        .cte("due")
    )


def _turns(is_due: ColumnElement[bool]) -> CTE:
    """Number the due deliveries of each receiver: 1 for its longest due, and so on."""
    row = webhook_deliveries.c
    candidates = (
        select(row.id, row.namespace, row.endpoint_name, row.url, row.next_attempt_at)
        .where(_is_pending(), is_due)
        .order_by(row.next_attempt_at)
        .limit(CANDIDATES_MAX)
        .subquery("candidates")
    )
    receiver = [candidates.c.namespace, candidates.c.endpoint_name, candidates.c.url]
    turn = func.row_number().over(partition_by=receiver, order_by=candidates.c.next_attempt_at)
    return select(candidates.c.id, turn.label("turn")).cte("turns")


def _to_delivery(row: Row[Any]) -> Delivery:
    is_registered = row.url is None
    is_disabled = is_registered and row.disabled_at is not None
    return Delivery(
        id=row.id,
        job_id=row.job_id,
        attempt=row.attempts,
        namespace=row.namespace,
        endpoint_name=row.endpoint_name,
        url=row.endpoint_url if is_registered else row.url,
        secrets=None if row.secrets is None else tuple(row.secrets),
        is_registered=is_registered,
        disabled_reason=(row.disabled_reason or "no reason given") if is_disabled else None,
        body=bytes(row.body),
    )
