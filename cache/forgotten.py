"""What was forgotten on request, remembered as hashes so that nothing comes back late.

A message may wait in its queue and latents in a worker's memory while their user is forgotten.
Claiming a job and storing its states therefore look here, in the transaction that writes:

    forget   LOCK forgotten; INSERT hash; COMMIT           then DELETE what is there, in batches
    claim                        (waits for the lock)      sees the hash, writes nothing
    claim    INSERT job; COMMIT  before the lock           is there, and is deleted
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, text

from cache.database import transaction

# Waits for transactions that have read the table, and keeps others from reading it meanwhile.
_LOCK = text("LOCK TABLE forgotten IN ACCESS EXCLUSIVE MODE")

_REMEMBER = text("""
    INSERT INTO forgotten (subject_hash, forgotten_at)
    SELECT subject_hash, clock_timestamp()
      FROM unnest(CAST(:hashes AS bytea[])) AS subjects (subject_hash)
        ON CONFLICT (subject_hash) DO UPDATE
       SET forgotten_at = excluded.forgotten_at
""")

_EXPIRE = text("""
    DELETE FROM forgotten
     WHERE subject_hash IN (
           SELECT subject_hash
             FROM forgotten
            WHERE forgotten_at < :before
            ORDER BY forgotten_at
            LIMIT :limit
              FOR UPDATE SKIP LOCKED)
""")

#: Whether a job may not be written, for statements that bind `bound_hashes` and a `:since`.
IS_FORGOTTEN = """EXISTS (
           SELECT FROM forgotten f
            WHERE f.subject_hash = :job_hash
               OR (f.subject_hash IN (:user_hash, :namespace_hash) AND f.forgotten_at >= :since))"""

_ASK = text(f"SELECT {IS_FORGOTTEN}")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSubject:
    """One job."""

    job_id: uuid.UUID

    def __str__(self) -> str:
        return f"job {self.job_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class UserSubject:
    """A user of a namespace."""

    namespace: str
    user: str

    def __str__(self) -> str:
        return f"user {self.namespace}/{self.user}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceSubject:
    """A whole namespace."""

    namespace: str

    def __str__(self) -> str:
        return f"namespace {self.namespace}"


Subject = JobSubject | UserSubject | NamespaceSubject


def subject_hash(subject: Subject) -> bytes:
    """SHA-256: that somebody was forgotten is kept, who it was is not."""
    return hashlib.sha256(str(subject).encode()).digest()


def bound_hashes(job_id: uuid.UUID, *, namespace: str, owner: str) -> dict[str, Any]:
    """What IS_FORGOTTEN binds, but for `:since`."""
    return {
        "job_hash": subject_hash(JobSubject(job_id=job_id)),
        "user_hash": subject_hash(UserSubject(namespace=namespace, user=owner)),
        "namespace_hash": subject_hash(NamespaceSubject(namespace=namespace)),
    }


def remember(engine: Engine, subjects: Sequence[Subject]) -> None:
    """From here on nothing of theirs that was begun before is written any more.

    Waits for claims and stores that are being written, milliseconds each; they are there
    afterwards, to be deleted. Raises DatabaseUnreachable.
    """
    with transaction(engine) as connection:
        connection.execute(_LOCK)
        remember_within(connection, subjects)


def remember_within(connection: Connection, subjects: Sequence[Subject]) -> None:
    """The same in the caller's transaction, without waiting for those that are being written."""
    hashes = sorted({subject_hash(subject) for subject in subjects})
    connection.execute(_REMEMBER, {"hashes": hashes})


def is_forgotten(
    connection: Connection, job_id: uuid.UUID, *, namespace: str, owner: str, since: datetime
) -> bool:
    """Whether what a job that began at `since` leaves may not be written."""
    wanted = bound_hashes(job_id, namespace=namespace, owner=owner) | {"since": since}
    return bool(connection.execute(_ASK, wanted).scalar_one())


def expire(engine: Engine, *, before: datetime, limit: int) -> int:
    """Forget that something was forgotten; answers how many times."""
    with transaction(engine) as connection:
        return connection.execute(_EXPIRE, {"before": before, "limit": limit}).rowcount
