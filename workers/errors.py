"""Errors of the workers.

WorkerError
├── ClaimLost           another attempt owns the job, or it has ended: write nothing
├── DuplicateDelivery   the job is running elsewhere or has ended: acknowledge and forget
├── StorageUnavailable  database or object store stayed away too long
├── BrokerAway          the broker does not take what it was to be told
├── MetricsPortTaken    another process serves its metrics on that port
├── UnknownLetter       the dead-letter list has no message of that id
└── LetterCut           a message was too long to be kept whole, and cannot be sent again
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence


class WorkerError(Exception):
    """A worker cannot go on with what it was doing."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or type(self).__doc__)


class ClaimLost(WorkerError):
    """Another attempt owns the job, or the job has ended."""

    def __init__(self, job_id: uuid.UUID, attempt: int) -> None:
        super().__init__(f"attempt {attempt} of job {job_id} is not the current one any more")
        self.job_id = job_id
        self.attempt = attempt


class DuplicateDelivery(WorkerError):
    """The job is running elsewhere, or has ended already."""

    def __init__(self, job_id: uuid.UUID) -> None:
        super().__init__(f"job {job_id} is running elsewhere or has ended; message ignored")
        self.job_id = job_id


class StorageUnavailable(WorkerError):
    """The database or the object store stayed away too long."""


class BrokerAway(WorkerError):
    """The broker does not take what it was to be told."""


class MetricsPortTaken(WorkerError):
    """Another process serves its metrics on that port."""


class UnknownLetter(WorkerError):
    """The dead-letter list has no message of that id."""

    def __init__(self, letter_ids: Sequence[str]) -> None:
        super().__init__(f"the dead-letter list has no message {', '.join(letter_ids)}")


class LetterCut(WorkerError):
    """A message was too long to be kept whole, and cannot be sent again."""

    def __init__(self, letter_id: str, bytes_max: int) -> None:
        super().__init__(f"message {letter_id} was longer than {bytes_max:,} bytes; it is kept cut")
