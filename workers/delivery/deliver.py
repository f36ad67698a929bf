"""Send the webhooks that are due: the one code path of first tries and retries.

    claim (transaction) --> send (none open, all at once) --> record (a transaction each)

A crash before `record` leaves the lease to lapse, and the delivery is sent again.
"""

from __future__ import annotations

import logging
import random
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import Engine

from producer.verification import decode_secret
from workers.delivery import outbox
from workers.delivery.errors import ReceiverRefused
from workers.delivery.network import Network
from workers.delivery.outbox import Delivery, DeliveryStatus
from workers.delivery.webhooks import Attempt, Message, send

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverySettings:
    """How webhooks are sent.

    `default_secret` signs those of jobs that give a url and name no secret; None fails them.
    Raises ValueError or SecretInvalid.
    """

    timeout_s: float = 20.0  # one attempt, all of it
    allow_private_addresses: bool = False
    default_secret: str | None = field(default=None, repr=False)
    batch_size: int = 32  # deliveries claimed, and in flight, at once
    lease_s: float = 60.0  # after it the delivery of a dead sender is due again

    def __post_init__(self) -> None:
        if self.lease_s <= self.timeout_s:
            raise ValueError("lease_s must be longer than timeout_s, or live senders are overtaken")
        if self.default_secret is not None:
            decode_secret(self.default_secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryReport:
    """What one run did, in deliveries."""

    claimed: int = 0
    delivered: int = 0
    retried: int = 0  # failed, and due again later
    failed: int = 0  # for good
    overtaken: int = 0  # the lease lapsed, and another sender owns it


def deliver(
    engine: Engine,
    settings: DeliverySettings,
    *,
    now: datetime,
    delivery_id: uuid.UUID | None = None,
    limit: int | None = None,
    network: Network | None = None,
    jitter: Callable[[], float] = random.random,
) -> DeliveryReport:
    """Attempt the due deliveries, at most `limit` (default: `batch_size`), or the one named.

    Takes about `timeout_s` at worst. Database errors pass through; what was sent and not recorded
    by then is sent again after `lease_s`.
    """
    with engine.begin() as connection:
        deliveries = outbox.claim_due(
            connection,
            limit=min(limit or settings.batch_size, settings.batch_size),
            now=now,
            lease_s=settings.lease_s,
            delivery_id=delivery_id,
        )
    if not deliveries:
        return DeliveryReport()
    network = network or Network(allow_private_addresses=settings.allow_private_addresses)
    statuses: Counter[DeliveryStatus | None] = Counter()
    with ThreadPoolExecutor(len(deliveries), thread_name_prefix="webhook") as senders:
        attempts = {
            senders.submit(_attempt, delivery, settings, network, now): delivery
            for delivery in deliveries
        }
        # As they end, so that a slow receiver holds up nobody else's record.
        for attempt in as_completed(attempts):
            delivery = attempts[attempt]
            statuses[_record(engine, delivery, _outcome(attempt), now, jitter())] += 1
    return _report(len(deliveries), statuses)


def _attempt(
    delivery: Delivery, settings: DeliverySettings, network: Network, now: datetime
) -> Attempt:
    try:
        message = _message(delivery, settings.default_secret)
    except ReceiverRefused as refusal:
        return Attempt(error=str(refusal), is_refused=True)
    return send(message, network=network, timeout_s=settings.timeout_s, now=now)


def _message(delivery: Delivery, default_secret: str | None) -> Message:
    """What to send for a delivery; raises ReceiverRefused with the reason it cannot be sent."""
    where = f"'{delivery.endpoint_name}' in namespace '{delivery.namespace}'"
    if delivery.url is None:
        raise ReceiverRefused(f"no endpoint {where} with a url")
    if delivery.disabled_reason is not None:
        raise ReceiverRefused(f"endpoint {where} is disabled: {delivery.disabled_reason}")
    return Message(
        webhook_id=str(delivery.id),
        url=delivery.url,
        secrets=_secrets(delivery, default_secret, where),
        body=delivery.body,
    )


def _secrets(delivery: Delivery, default_secret: str | None, where: str) -> Sequence[str]:
    if delivery.secrets is not None:
        return delivery.secrets
    if delivery.endpoint_name is not None:
        raise ReceiverRefused(f"no secret {where}")
    if default_secret is None:
        raise ReceiverRefused("no secret: the job names none, and the fleet has no default")
    return [default_secret]


def _outcome(attempt: Future[Attempt]) -> Attempt:
    """The attempt, or for a fault of ours a failed one: the others of its batch are recorded."""
    if (fault := attempt.exception()) is None:
        return attempt.result()
    logger.error("webhook attempt broke", exc_info=fault)
    return Attempt(error=f"internal: {type(fault).__name__}")


def _record(
    engine: Engine, delivery: Delivery, attempt: Attempt, claimed_at: datetime, jitter: float
) -> DeliveryStatus | None:
    ended_at = claimed_at + timedelta(seconds=attempt.latency_s)
    with engine.begin() as connection:
        status = outbox.record(connection, delivery, attempt, now=ended_at, jitter=jitter)
    logger.info(
        "webhook attempt",
        extra={
            "job_id": str(delivery.job_id),
            "namespace": delivery.namespace,
            "webhook_id": str(delivery.id),
            "attempt": delivery.attempt,
            "status": status,
            "status_code": attempt.status_code,
            "error": attempt.error,
            "latency_s": attempt.latency_s,
        },
    )
    return status


def _report(num_claimed: int, statuses: Counter[DeliveryStatus | None]) -> DeliveryReport:
    return DeliveryReport(
        claimed=num_claimed,
        delivered=statuses[DeliveryStatus.DELIVERED],
        retried=statuses[DeliveryStatus.PENDING],
        failed=statuses[DeliveryStatus.FAILED],
        overtaken=statuses[None],
    )
