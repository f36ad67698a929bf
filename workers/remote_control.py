"""The remote-control command that ends a running job at once, within a step.

The heartbeat would see the ledger's flag too, but only then: up to `heartbeat_s` later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from celery.worker.control import Panel

from workers.app import CANCEL_COMMAND


@contextmanager
def cancellations_heard(stop: Callable[[str], int]) -> Iterator[None]:
    """Take the command inside the block; `stop` ends a job here by id, and counts its claims.

    Celery's registry of commands is one for the process.
    """

    @Panel.register(  # type: ignore[untyped-decorator]
        name=CANCEL_COMMAND, type="control", args=[("job_id", str)], signature="<job_id>"
    )
    def cancel(state: Any, job_id: str) -> dict[str, int]:
        """Stop a running job whose cancellation the ledger holds."""
        return {"ok": stop(job_id)}

    try:
        yield
    finally:
        Panel.data.pop(CANCEL_COMMAND)
        Panel.meta.pop(CANCEL_COMMAND)
