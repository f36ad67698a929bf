"""The wire form, version 1: what came of a job; also the `data` of its webhook."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field

from producer.contract import CacheOutcome, ErrorCode, Status, WireForm
from producer.errors import JobCancelled, JobFailed


class StoredImage(WireForm):
    """The image of a job in the object store; `url` is signed when read, and expires."""

    key: str
    url: str | None = None
    width: int
    height: int
    sha256: str


class CacheReport(WireForm):
    """What the cache did; `source_job_id` is told only to the owner of that job."""

    outcome: Annotated[CacheOutcome, Field(strict=False)]
    k: int = 0
    similarity: float | None = None
    state_id: int | None = None
    source_job_id: str | None = None
    reason: str | None = None


class Steps(WireForm):
    """Denoising steps the job asked for, and those that ran for it."""

    asked: int
    run: int


class Timings(WireForm):
    """Seconds spent in each part of a job's life."""

    queued_s: float | None = None
    encode_s: float | None = None
    lookup_s: float | None = None
    fetch_s: float | None = None
    denoise_s: float | None = None
    decode_s: float | None = None
    store_s: float | None = None


class JobError(WireForm):
    """Why a job failed, for a person to read."""

    code: Annotated[ErrorCode, Field(strict=False)]
    message: str


class JobResult(WireForm):
    """What came of a job; also the `data` of its webhook."""

    job_id: str
    status: Annotated[Status, Field(strict=False)]
    attempt: int
    image: StoredImage | None = None
    seed: int | None = None
    cache: CacheReport | None = None
    steps: Steps | None = None
    timings: Timings | None = None
    error: JobError | None = None
    metadata: dict[str, str] = Field(default_factory=dict)

    def raise_for_status(self) -> Self:
        """Return the result of a job that succeeded; raises JobCancelled or JobFailed."""
        match self.status:
            case Status.SUCCEEDED:
                return self
            case Status.CANCELLED:
                raise JobCancelled("cancelled", f"job {self.job_id} was cancelled")
            case _:
                error = self.error or JobError(code=ErrorCode.INTERNAL, message="no reason given")
                raise JobFailed(error.code, error.message)
