"""Records: what came of an attempt, in the delivery's row and in one of its own."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, assert_never

from sqlalchemy import ColumnElement, Connection, literal, select, update
from sqlalchemy.dialects.postgresql import Insert, insert

from workers.delivery.claims import Delivery, is_pending
from workers.delivery.outbox import DeliveryStatus
from workers.delivery.retry import next_attempt_at
from workers.delivery.webhooks import Attempt, Verdict
from workers.tables import endpoints, webhook_attempts, webhook_deliveries


def record(
    connection: Connection, delivery: Delivery, attempt: Attempt, *, now: datetime, jitter: float
) -> DeliveryStatus | None:
    """Write what came of an attempt that ended `now`; after a 410 disable the endpoint.

    `jitter` is uniform in [0, 1). Returns the delivery's new status, or None, with nothing but the
    attempt's own row written, if its lease lapsed and another sender took it over; a 2xx counts
    even then.
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
        update(webhook_deliveries).where(is_ours, is_pending()).values(changes)
    )
    connection.execute(_history_row(delivery, attempt, now))
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
                delivery.attempt - delivery.attempts_before,
                now=now,
                jitter=jitter,
                retry_after_s=attempt.retry_after_s,
            )
            return (DeliveryStatus.PENDING if next_at else DeliveryStatus.FAILED), next_at
        case _ as unreachable:
            assert_never(unreachable)


def _history_row(delivery: Delivery, attempt: Attempt, now: datetime) -> Insert:
    """The row of this attempt, unless retention has removed its delivery meanwhile."""
    values = {
        "delivery_id": delivery.id,
        "attempt": delivery.attempt,
        "attempted_at": now - timedelta(seconds=attempt.latency_s),
        "status_code": attempt.status_code,
        "error_kind": attempt.error_kind,
        "error": attempt.error,
        "latency_s": attempt.latency_s,
        "response": attempt.response,
    }
    columns = webhook_attempts.c
    row = (
        select(*(literal(value, columns[name].type) for name, value in values.items()))
        .where(webhook_deliveries.c.id == delivery.id)
        .with_for_update(key_share=True, read=True)
    )
    # What is recorded stays, should a commit be retried whose answer was lost.
    return insert(webhook_attempts).from_select(list(values), row).on_conflict_do_nothing()


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
