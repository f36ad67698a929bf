"""A submitted job in the hands of whoever submitted it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from producer.contract import Status
from producer.errors import UnknownJob
from producer.position import Position
from producer.result import JobResult
from producer.trace import Trace

if TYPE_CHECKING:
    from producer.client import Client


@dataclass(frozen=True, slots=True)
class JobHandle:
    """A submitted job; `str(handle)` is its id."""

    job_id: str
    _client: Client = field(repr=False, compare=False)

    def __str__(self) -> str:
        return self.job_id

    def status(self) -> Status:
        return self._client.status(self.job_id).status

    def position(self) -> Position:
        return self._client.position(self.job_id)

    def wait(self, timeout_s: float | None = None) -> JobResult:
        return self._client.wait(self.job_id, timeout_s)

    def result(self) -> JobResult | None:
        return self._client.result(self.job_id)

    def progress(self, timeout_s: float | None = None) -> Iterator[Trace]:
        return self._client.progress(self.job_id, timeout_s)

    def cancel(self) -> bool:
        return self._client.cancel(self.job_id)

    def image(self) -> bytes:
        return self._client.image(self.job_id)

    def image_url(self) -> str:
        return self._client.image_url(self.job_id)


JobId = str | uuid.UUID | JobHandle


def checked_id(job_id: JobId) -> str:
    """Bring an id to its one form; what is no UUID is the id of no job."""
    try:
        return str(uuid.UUID(str(job_id)))
    except ValueError:
        raise UnknownJob(str(job_id)) from None
