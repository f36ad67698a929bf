"""Claims: a due delivery is leased to one sender, and receivers take turns.

Claiming one moves `next_attempt_at` to the end of a lease and counts the attempt; a sender that
dies leaves the row pending, and the lease's end makes it due again under the same webhook-id.
Delivery is therefore at least once.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    CTE,
    ColumnElement,
    Connection,
    Integer,
    Row,
    Text,
    func,
    literal,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from workers.tables import endpoints, webhook_deliveries

# Due deliveries among which receivers take turns; a claim reads no more of them.
CANDIDATES_MAX: Final = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A claimed delivery with what its receiver's row says at this moment."""

    id: uuid.UUID
    job_id: uuid.UUID
    attempt: int  # from 1; the fencing token of `records.record`
    attempts_before: int  # made until the last replay
    namespace: str
    receiver: str  # whose deliveries share one bound
    endpoint_name: str | None
    url: str | None  # None: no endpoint of that name, or one that only holds secrets
    secrets: tuple[str, ...] | None = field(repr=False)  # None: no row of that name
    is_registered: bool  # the url is the endpoint's own, not given by the job
    disabled_reason: str | None  # of a disabled registered endpoint
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """How many deliveries one receiver may have in flight, and who has how many already."""

    per_receiver_max: int
    in_flight: Mapping[str, int] = field(default_factory=dict)


def claim_due(
    connection: Connection,
    *,
    limit: int,
    now: datetime,
    lease_s: float,
    bound: Bound,
    delivery_id: uuid.UUID | None = None,
) -> list[Delivery]:
    """Lease at most `limit` due deliveries within `bound`; skip what others are claiming.

    Receivers take turns, the longest due first, so that one with a backlog delays no other. With
    `delivery_id` only that one, its first attempt whatever this machine's clock says of the one
    that wrote it.
    """
    row = webhook_deliveries.c
    is_due: ColumnElement[bool] = row.next_attempt_at <= now
    if delivery_id is not None:
        is_due = (row.id == delivery_id) & or_(row.attempts == 0, is_due)
    due = _locked(is_due, limit, bound)
    statement = (
        update(webhook_deliveries)
        .where(row.id == due.c.id)
        .values(attempts=row.attempts + 1, next_attempt_at=now + timedelta(seconds=lease_s))
        .returning(webhook_deliveries, *(column for column in due.c if column.name != "id"))
    )
    return [_to_delivery(claimed) for claimed in connection.execute(statement)]


def is_pending() -> ColumnElement[bool]:
    """Whether a delivery is still to be made, as the partial index says it."""
    # A literal, not a parameter: only so may a prepared plan use the index.
    return webhook_deliveries.c.status == literal_column("'pending'")


def _locked(is_due: ColumnElement[bool], limit: int, bound: Bound) -> CTE:
    """Due deliveries that nobody else is claiming, each with its receiver's row if there is one."""
    row, receiver, turns = webhook_deliveries.c, endpoints.c, _turns(is_due, bound)
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
        .where(is_pending(), is_due, turns.c.turn <= bound.per_receiver_max)
        .order_by(turns.c.turn, row.next_attempt_at)
        .limit(limit)
        .with_for_update(of=webhook_deliveries, skip_locked=True)
        .cte("due")
    )


def _turns(is_due: ColumnElement[bool], bound: Bound) -> CTE:
    """Number the due deliveries of each receiver, from 1 or behind those it has in flight."""
    row = webhook_deliveries.c
    busy = func.unnest(
        literal(list(bound.in_flight), ARRAY(Text)),
        literal(list(bound.in_flight.values()), ARRAY(Integer)),
    )
    in_flight = busy.table_valued("receiver", "num").render_derived(name="in_flight")
    full = [name for name, num in bound.in_flight.items() if num >= bound.per_receiver_max]
    candidates = (
        select(row.id, row.receiver, row.next_attempt_at)
        # Who can have no more must not fill the places of those who can.
        .where(is_pending(), is_due, row.receiver != func.all(literal(full, ARRAY(Text))))
        .order_by(row.next_attempt_at)
        .limit(CANDIDATES_MAX)
        .subquery("candidates")
    )
    num_ahead = func.coalesce(in_flight.c.num, 0)
    place = func.row_number().over(
        partition_by=candidates.c.receiver, order_by=candidates.c.next_attempt_at
    )
    return (
        select(candidates.c.id, (place + num_ahead).label("turn"))
        .join(in_flight, in_flight.c.receiver == candidates.c.receiver, isouter=True)
        .cte("turns")
    )


def _to_delivery(row: Row[Any]) -> Delivery:
    is_registered = row.url is None
    is_disabled = is_registered and row.disabled_at is not None
    return Delivery(
        id=row.id,
        job_id=row.job_id,
        attempt=row.attempts,
        attempts_before=row.attempts_before,
        namespace=row.namespace,
        receiver=row.receiver,
        endpoint_name=row.endpoint_name,
        url=row.endpoint_url if is_registered else row.url,
        secrets=None if row.secrets is None else tuple(row.secrets),
        is_registered=is_registered,
        disabled_reason=(row.disabled_reason or "no reason given") if is_disabled else None,
        body=bytes(row.body),
    )
