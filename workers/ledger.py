"""The ledger: who works on which job, and what came of it (docs/state.md, section 2).

A claim carries an attempt number, and every later write commits only while that number is current:
a worker that froze past its lease changes nothing when it wakes.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine

from cache.forgotten import bound_hashes
from producer.contract import GenerationJob, canonical_json
from producer.result import JobResult
from workers import ledger_statements as statements
from workers.delivery import outbox
from workers.errors import ClaimLost, DuplicateDelivery


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The right to work on a job: void as soon as another attempt number is current."""

    job_id: uuid.UUID
    attempt: int
    job: GenerationJob  #: completed with the model's defaults
    claimed_at: datetime
    deadline_at: datetime | None

    @property
    def name(self) -> str:
        """Name of this attempt: an earlier one of the same job may still be ending beside it."""
        return f"{self.job_id}/{self.attempt}"

    @property
    def owner(self) -> str:
        """Whose states the job may share: its user, or '' for an anonymous job."""
        return self.job.user or ""

    @property
    def num_inference_steps(self) -> int:
        """Steps asked for; a claimed job always names them."""
        assert self.job.num_inference_steps is not None
        return self.job.num_inference_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """What a heartbeat learned."""

    lost: tuple[Claim, ...]  #: void: stop, and write nothing
    cancelled: tuple[Claim, ...]  #: these hold, but their jobs' clients want them stopped


@dataclass(frozen=True, slots=True, kw_only=True)
class LapsedJob:
    """A running job whose worker gives no sign of life."""

    job_id: uuid.UUID
    attempt: int
    queue: str
    job: GenerationJob


class Ledger:
    """The jobs of this fleet in Postgres. Each method is one transaction."""

    def __init__(self, engine: Engine, *, worker: str, lease_s: float, attempts_max: int) -> None:
        self._engine = engine
        self._worker = worker
        self._lease_s = lease_s
        self._attempts_max = attempts_max

    def claim(
        self, job_id: uuid.UUID, job: GenerationJob, *, queue: str, received_at: datetime
    ) -> Claim:
        """Take the job.

        Raises DuplicateDelivery when it is running elsewhere, has ended, or was forgotten.
        """
        values = _row_values(job_id, job, queue, received_at) | {
            "worker": self._worker,
            "lease_s": self._lease_s,
            "attempts_max": self._attempts_max,
        }
        with self._engine.begin() as connection:
            row = connection.execute(statements.CLAIM, values).one_or_none()
        if row is None:
            raise DuplicateDelivery(job_id)
        return Claim(
            job_id=job_id,
            attempt=row.attempt,
            job=job,
            claimed_at=row.claimed_at,
            deadline_at=row.deadline_at,
        )

    def renew(self, claims: Collection[Claim]) -> Renewal:
        """Extend the leases of `claims`, and tell which are lost or to be cancelled."""
        values = {
            "ids": [claim.job_id for claim in claims],
            "attempts": [claim.attempt for claim in claims],
            "lease_s": self._lease_s,
        }
        with self._engine.begin() as connection:
            rows = connection.execute(statements.RENEW, values).all()
        held = {(row.id, row.attempt): bool(row.is_cancelled) for row in rows}
        is_cancelled = [(claim, held.get((claim.job_id, claim.attempt))) for claim in claims]
        return Renewal(
            lost=tuple(claim for claim, found in is_cancelled if found is None),
            cancelled=tuple(claim for claim, found in is_cancelled if found),
        )

    def finish(self, claim: Claim, result: JobResult) -> uuid.UUID | None:
        """Commit the job's end and its webhook together; raises ClaimLost and writes nothing then.

        Returns the id of the delivery that is due now, if the job asked for one.
        """
        values = {
            "id": claim.job_id,
            "attempt": claim.attempt,
            "status": result.status.value,
            "result": _json(result.to_wire()),
            "steps_asked": result.steps.asked if result.steps else None,
            "steps_run": result.steps.run if result.steps else None,
        }
        with self._engine.begin() as connection:
            if connection.execute(statements.FINISH, values).one_or_none() is None:
                raise ClaimLost(claim.job_id, claim.attempt)
            return outbox.enqueue(connection, job=claim.job, result=result)

    def end_unclaimed(
        self, job: GenerationJob, result: JobResult, *, queue: str, received_at: datetime
    ) -> uuid.UUID | None:
        """End a job that no worker holds: cancelled, past its deadline, invalid, out of attempts.

        Raises DuplicateDelivery, and writes nothing, when a worker holds it, it has ended, or it
        was forgotten.
        Returns the id of the delivery that is due now, if the job asked for one.
        """
        job_id = uuid.UUID(result.job_id)
        values = _row_values(job_id, job, queue, received_at) | {
            "status": result.status.value,
            "result": _json(result.to_wire()),
        }
        with self._engine.begin() as connection:
            if connection.execute(statements.END_UNCLAIMED, values).one_or_none() is None:
                raise DuplicateDelivery(job_id)
            return outbox.enqueue(connection, job=job, result=result)

    def request_cancel(self, job_id: uuid.UUID) -> bool:
        """Ask the worker that runs the job to stop it; False when none runs it."""
        with self._engine.begin() as connection:
            return (
                connection.execute(statements.REQUEST_CANCEL, {"id": job_id}).one_or_none()
                is not None
            )

    def lapsed(self, *, limit: int) -> list[LapsedJob]:
        """Running jobs past their lease, the longest first."""
        with self._engine.connect() as connection:
            return [
                _to_lapsed(row) for row in connection.execute(statements.LAPSED, {"limit": limit})
            ]

    def give_back(self, lapsed: LapsedJob) -> bool:
        """Make a lapsed job claimable by anyone; False when somebody took it over meanwhile."""
        values = {"id": lapsed.job_id, "attempt": lapsed.attempt}
        with self._engine.begin() as connection:
            return connection.execute(statements.GIVE_BACK, values).one_or_none() is not None

    def given_back(self, *, older_than_s: float, limit: int) -> list[LapsedJob]:
        """Jobs given back that nobody has claimed again, the longest since their claim first."""
        values = {"older_than_s": older_than_s, "limit": limit}
        with self._engine.connect() as connection:
            return [_to_lapsed(row) for row in connection.execute(statements.GIVEN_BACK, values)]

    def unannounced(self, *, older_than_s: float, limit: int) -> list[JobResult]:
        """Results that the trace was not told of within `older_than_s` of the job's end."""
        values = {"older_than_s": older_than_s, "limit": limit}
        with self._engine.connect() as connection:
            rows = connection.execute(statements.UNANNOUNCED, values).all()
        return [JobResult.model_validate(row.result) for row in rows]

    def mark_announced(self, job_id: uuid.UUID) -> None:
        """Remember that the trace shows the job's end."""
        with self._engine.begin() as connection:
            connection.execute(statements.MARK_ANNOUNCED, {"id": job_id})

    def is_known(self, job_id: uuid.UUID) -> bool:
        """Whether the job has a row; one that was claimed, or refused here, and has none is gone.

        Then it was forgotten, or ended so long ago that it has expired.
        """
        with self._engine.connect() as connection:
            return bool(connection.execute(statements.IS_KNOWN, {"id": job_id}).scalar_one())

    def result(self, job_id: uuid.UUID) -> JobResult | None:
        """The result of a job that has ended."""
        with self._engine.connect() as connection:
            return _read_result(connection, job_id)


def _read_result(connection: Connection, job_id: uuid.UUID) -> JobResult | None:
    stored = connection.execute(statements.READ_RESULT, {"id": job_id}).scalar_one_or_none()
    return JobResult.model_validate(stored) if stored is not None else None


def _row_values(
    job_id: uuid.UUID, job: GenerationJob, queue: str, received_at: datetime
) -> dict[str, object]:
    return {
        "id": job_id,
        "namespace": job.namespace,
        "owner": job.user or "",
        "model": job.model or "",
        "queue": queue,
        "job": _json(job.to_wire()),
        "payload_hash": job.payload_hash,
        "submitted_at": job.submitted_at or received_at,
        "deadline_at": job.deadline_at(received_at),
        **bound_hashes(job_id, namespace=job.namespace, owner=job.user or ""),
        "since": job.submitted_at or received_at,
    }


def _to_lapsed(row: Any) -> LapsedJob:
    return LapsedJob(
        job_id=row.id,
        attempt=row.attempt,
        queue=row.queue,
        job=GenerationJob.model_validate(row.job),
    )


def _json(value: object) -> str:
    return canonical_json(value).decode()
