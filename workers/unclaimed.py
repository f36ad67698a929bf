"""Jobs that end although no worker holds them: invalid, cancelled, too late, out of attempts."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime

from pydantic import ValidationError

from producer.contract import ErrorCode, GenerationJob, Status
from producer.result import JobError, JobResult
from workers.announcer import Announcer
from workers.app import Publisher
from workers.errors import DuplicateDelivery
from workers.ledger import Ledger


def utc_now() -> datetime:
    """Tell the time; the default clock of everything here."""
    return datetime.now(UTC)


class UnclaimedJobs:
    """Commits the end, tells the trace, and has the webhook sent."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        announcer: Announcer,
        publisher: Publisher,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._ledger = ledger
        self._announcer = announcer
        self._publisher = publisher
        self._clock = clock

    def fail(
        self,
        job_id: str,
        job: GenerationJob,
        *,
        queue: str,
        code: ErrorCode,
        message: str,
        attempt: int = 0,
    ) -> JobResult | None:
        """End the job as failed; None when a worker holds it or it has ended."""
        error = JobError(code=code, message=message)
        return self._end(job_id, job, queue, Status.FAILED, error, attempt)

    def cancel(self, job_id: str, job: GenerationJob, *, queue: str) -> JobResult | None:
        """End the job as cancelled; None when a worker holds it or it has ended."""
        return self._end(job_id, job, queue, Status.CANCELLED, None, 0)

    def _end(
        self,
        job_id: str,
        job: GenerationJob,
        queue: str,
        status: Status,
        error: JobError | None,
        attempt: int,
    ) -> JobResult | None:
        result = JobResult(
            job_id=job_id, status=status, attempt=attempt, error=error, metadata=job.metadata
        )
        try:
            delivery_id = self._ledger.end_unclaimed(
                job, result, queue=queue, received_at=self._clock()
            )
        except DuplicateDelivery:
            return None
        self._announcer.announce(result)
        self._publisher.nudge_delivery(delivery_id)
        return result


def readable_part(fields: object, job_id: str) -> GenerationJob:
    """What of an invalid job can be kept in its row: enough to call back whoever sent it.

    The result is not a valid job; it is stored and reported, never run.
    """
    sent = fields if isinstance(fields, dict) else {}
    kept: dict[str, object] = {"prompt": "", "job_id": uuid.UUID(job_id)}
    for name in ("namespace", "user", "webhook", "metadata", "model"):
        try:
            probe = GenerationJob.model_validate({"prompt": "-", name: sent[name]})
        except (KeyError, ValidationError):
            continue
        kept[name] = getattr(probe, name)
    return GenerationJob.model_construct(_fields_set=set(kept), **kept)
