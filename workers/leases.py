"""Signs of life: one thread renews the leases of every job this process works on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy.exc import SQLAlchemyError

from workers.ledger import Claim, Ledger, Renewal

logger = logging.getLogger(__name__)


class LeaseKeeper:
    """Renews each `heartbeat_s`; `on_stop` is told of claims that are lost or to be cancelled.

    While the database is away the leases lapse in it too: nobody can take a job over before it is
    back, so a failed heartbeat is only logged.
    """

    def __init__(
        self, ledger: Ledger, *, heartbeat_s: float, on_stop: Callable[[Claim], object]
    ) -> None:
        self._ledger = ledger
        self._heartbeat_s = heartbeat_s
        self._on_stop = on_stop
        self._held: dict[str, Claim] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leases", daemon=True)
        self._thread.start()

    @contextmanager
    def hold(self, claim: Claim) -> Iterator[Claim]:
        """Keep the claim's lease alive inside the block."""
        with self._lock:
            self._held[claim.name] = claim
        try:
            yield claim
        finally:
            with self._lock:
                del self._held[claim.name]

    def stop(self, job_id: str) -> int:
        """Tell `on_stop` of the claims held here of a job, now; returns how many there are."""
        with self._lock:
            claims = [claim for claim in self._held.values() if str(claim.job_id) == job_id]
        for claim in claims:
            self._on_stop(claim)
        return len(claims)

    def close(self) -> None:
        """Stop renewing; what is still held lapses."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(self._heartbeat_s):
            with self._lock:
                held = list(self._held.values())
            if held:
                self._beat(held)

    def _beat(self, held: list[Claim]) -> None:
        try:
            renewal = self._ledger.renew(held)
        except SQLAlchemyError as error:
            logger.warning("leases not renewed: %s", error.__class__.__name__)
            return
        self._stop_those(renewal)

    def _stop_those(self, renewal: Renewal) -> None:
        for claim in renewal.lost + renewal.cancelled:
            logger.info("stopping job", extra={"job_id": str(claim.job_id)})
            self._on_stop(claim)
