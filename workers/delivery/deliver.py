"""Send the webhooks that are due: the one code path of first tries and retries.

    claim (transaction) --> send, each in a thread of its own --> record (a transaction each)

Nobody waits for a receiver but the thread that sends to it, and a receiver has a bounded number of
them: one that hangs delays neither the others nor whoever nudges. A crash before `record` leaves
the lease to lapse, and the delivery is sent again.
"""

from __future__ import annotations

import logging
import random
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from producer.verification import decode_secret
from workers.delivery import claims, records
from workers.delivery.claims import Bound, Delivery
from workers.delivery.errors import ReceiverRefused
from workers.delivery.network import Network
from workers.delivery.outbox import DeliveryStatus
from workers.delivery.receivers import message_for
from workers.delivery.webhooks import Attempt, ErrorKind, send

logger = logging.getLogger(__name__)

# Whoever waits longer for another's claim leaves the work to the next sweep.
_CLAIM_PATIENCE_S: Final = 1.0
_CLOSE_GRACE_S: Final = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverySettings:
    """How webhooks are sent.

    `default_secret` signs those of jobs that give a url and name no secret; None fails them.
    Raises ValueError or SecretInvalid.
    """

    timeout_s: float = 20.0  # one attempt, all of it
    allow_private_addresses: bool = False
    default_secret: str | None = field(default=None, repr=False)
    in_flight_max: int = 64  # requests of this process at once
    per_receiver_max: int = 8  # of them, to one receiver
    lease_s: float = 60.0  # after it the delivery of a dead sender is due again

    def __post_init__(self) -> None:
        if self.lease_s <= self.timeout_s:
            raise ValueError("lease_s must be longer than timeout_s, or live senders are overtaken")
        if self.default_secret is not None:
            decode_secret(self.default_secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryReport:
    """What a deliverer has done, in deliveries."""

    claimed: int = 0
    delivered: int = 0
    retried: int = 0  # failed, and due again later
    failed: int = 0  # for good
    overtaken: int = 0  # the lease lapsed, and another sender owns it
    unrecorded: int = 0  # the database was away: sent again after the lease


class Deliverer:
    """Claims due deliveries and sends each in a thread of its own, within two bounds.

    Thread-safe. `close` it: what is still being sent then is sent again after its lease.
    """

    def __init__(
        self,
        engine: Engine,
        settings: DeliverySettings,
        *,
        network: Network | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._network = network or Network(allow_private_addresses=settings.allow_private_addresses)
        self._clock = clock
        self._jitter = jitter
        self._is_closed = False
        # One claim at a time, or two would each take what the bounds leave.
        self._claiming = threading.Lock()
        self._changed = threading.Condition()
        self._in_flight: Counter[str] = Counter()  # by receiver
        self._may_be_more = False  # due, and left behind by a bound
        self._num_senders = 0  # threads: one whose delivery has ended may look for the next
        self._statuses: Counter[DeliveryStatus | str | None] = Counter()

    def send_due(self, delivery_id: uuid.UUID | None = None) -> int:
        """Begin to send what is due, or the one named, as far as the bounds allow.

        Returns how many, and waits for none of them. Database errors pass through. What is left
        follows as soon as there is room for it.
        """
        if not self._claiming.acquire(timeout=_CLAIM_PATIENCE_S):
            self._may_be_more = True
            return 0
        try:
            now, in_flight = self._clock(), self._snapshot()
            claimed = self._claimed(now, in_flight, delivery_id)
            self._may_be_more = self._is_at_a_bound(in_flight, claimed)
            for delivery in claimed:
                self._begin(delivery, now)
        finally:
            self._claiming.release()
        return len(claimed)

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until nothing is being sent; False if something still is after `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._num_senders, timeout_s)

    def report(self) -> DeliveryReport:
        """Tell what has been done since the start."""
        with self._changed:
            statuses = Counter(self._statuses)
        return DeliveryReport(
            claimed=statuses["claimed"],
            delivered=statuses[DeliveryStatus.DELIVERED],
            retried=statuses[DeliveryStatus.PENDING],
            failed=statuses[DeliveryStatus.FAILED],
            overtaken=statuses[None],
            unrecorded=statuses["unrecorded"],
        )

    def close(self) -> None:
        """Claim no more, and give what is being sent a few seconds."""
        self._is_closed = True
        if not self.wait_idle(_CLOSE_GRACE_S):
            logger.warning("webhooks still being sent; they are due again after their lease")

    def _snapshot(self) -> Counter[str]:
        with self._changed:
            return Counter(self._in_flight)

    def _claimed(
        self, now: datetime, in_flight: Counter[str], delivery_id: uuid.UUID | None
    ) -> list[Delivery]:
        num_free = self._settings.in_flight_max - in_flight.total()
        if num_free <= 0 or self._is_closed:
            return []
        per_receiver_max = self._settings.per_receiver_max
        with self._engine.begin() as connection:
            return claims.claim_due(
                connection,
                limit=num_free,
                now=now,
                lease_s=self._settings.lease_s,
                bound=Bound(per_receiver_max=per_receiver_max, in_flight=in_flight),
                delivery_id=delivery_id,
            )

    def _is_at_a_bound(self, in_flight: Counter[str], claimed: list[Delivery]) -> bool:
        """Whether the claim may have left something that is due behind."""
        now_in_flight = in_flight + Counter(delivery.receiver for delivery in claimed)
        return (
            now_in_flight.total() >= self._settings.in_flight_max
            or max(now_in_flight.values(), default=0) >= self._settings.per_receiver_max
        )

    def _begin(self, delivery: Delivery, now: datetime) -> None:
        with self._changed:
            self._in_flight[delivery.receiver] += 1
            self._num_senders += 1
            self._statuses["claimed"] += 1
        # A daemon: a receiver that hangs must not keep a process that ends.
        threading.Thread(
            target=self._attempt_and_record, args=[delivery, now], name="webhook", daemon=True
        ).start()

    def _attempt_and_record(self, delivery: Delivery, now: datetime) -> None:
        outcome: DeliveryStatus | str | None = "unrecorded"
        try:
            outcome = self._record(delivery, self._attempt(delivery, now), now)
        except SQLAlchemyError as error:
            logger.error("webhook attempt not recorded: %s", error, extra=_names(delivery))
        finally:
            self._end(delivery, outcome)

    def _attempt(self, delivery: Delivery, now: datetime) -> Attempt:
        try:
            message = message_for(delivery, self._settings.default_secret)
            return send(message, network=self._network, timeout_s=self._settings.timeout_s, now=now)
        except ReceiverRefused as refusal:
            return Attempt(error=str(refusal), error_kind=ErrorKind.REFUSED)
        except Exception as fault:
            # Ours, and recorded as such: an attempt that is not would be repeated without end.
            logger.exception("webhook attempt broke", extra=_names(delivery))
            kind = ErrorKind.INTERNAL
            return Attempt(error=f"internal: {type(fault).__name__}", error_kind=kind)

    def _record(
        self, delivery: Delivery, attempt: Attempt, claimed_at: datetime
    ) -> DeliveryStatus | None:
        ended_at = claimed_at + timedelta(seconds=attempt.latency_s)
        with self._engine.begin() as connection:
            status = records.record(
                connection, delivery, attempt, now=ended_at, jitter=self._jitter()
            )
        extra = _names(delivery) | {
            "attempt": delivery.attempt,
            "status": status,
            "status_code": attempt.status_code,
            "error": attempt.error,
            "latency_s": attempt.latency_s,
        }
        logger.info("webhook attempt", extra=extra)
        return status

    def _end(self, delivery: Delivery, outcome: DeliveryStatus | str | None) -> None:
        """Free the place, and take the next into it where some may wait."""
        with self._changed:
            self._statuses[outcome] += 1
            self._in_flight[delivery.receiver] -= 1
            self._in_flight += Counter()  # drops the receivers that have none
        try:
            if self._may_be_more and not self._is_closed:
                self.send_due()
        except SQLAlchemyError as error:
            logger.warning("due webhooks wait for the sweep: %s", error)
        finally:
            with self._changed:
                self._num_senders -= 1
                self._changed.notify_all()


def _names(delivery: Delivery) -> dict[str, object]:
    return {
        "job_id": str(delivery.job_id),
        "namespace": delivery.namespace,
        "webhook_id": str(delivery.id),
    }
