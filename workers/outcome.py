"""What came of a job, in the words of the contract."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from producer.contract import ErrorCode, Status
from producer.result import CacheReport, JobError, JobResult, Steps, StoredImage, Timings
from workers.denoising.errors import (
    Cancelled,
    DeadlineExceeded,
    DenoisingError,
    InvalidRequest,
    OutOfMemory,
)
from workers.denoising.request import Denoised
from workers.ledger import Claim


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A job's committed end."""

    result: JobResult
    delivery_id: uuid.UUID | None  #: of the webhook that is due now


def success(
    claim: Claim,
    *,
    image: StoredImage,
    seed: int,
    cache: CacheReport,
    denoised: Denoised,
    seconds: Mapping[str, float],
) -> JobResult:
    """Describe a job that has its image."""
    return JobResult(
        job_id=str(claim.job_id),
        status=Status.SUCCEEDED,
        attempt=claim.attempt,
        image=image,
        seed=seed,
        cache=cache,
        steps=Steps(asked=claim.num_inference_steps, run=denoised.steps_run),
        timings=_timings(claim, seconds, denoised),
        metadata=claim.job.metadata,
    )


def failure(claim: Claim, error: DenoisingError) -> JobResult:
    """Describe a job that ended without an image: cancelled, or failed with a code."""
    if isinstance(error, Cancelled):
        return _without_image(claim, Status.CANCELLED, None)
    message = str(error).strip() or type(error).__name__
    return _without_image(claim, Status.FAILED, JobError(code=_code(error), message=message))


def _without_image(claim: Claim, status: Status, error: JobError | None) -> JobResult:
    return JobResult(
        job_id=str(claim.job_id),
        status=status,
        attempt=claim.attempt,
        error=error,
        metadata=claim.job.metadata,
    )


def _code(error: DenoisingError) -> ErrorCode:
    match error:
        case DeadlineExceeded():
            return ErrorCode.DEADLINE_EXCEEDED
        case OutOfMemory():
            return ErrorCode.OUT_OF_MEMORY
        case InvalidRequest():
            return ErrorCode.INVALID_JOB
        case _:
            return ErrorCode.INTERNAL


def _timings(claim: Claim, seconds: Mapping[str, float], denoised: Denoised) -> Timings:
    return Timings(
        queued_s=_queued_s(claim.claimed_at, claim.job.submitted_at),
        encode_s=seconds["encode"],
        lookup_s=seconds["lookup"],
        fetch_s=seconds["fetch"],
        denoise_s=denoised.denoise_s,
        decode_s=denoised.decode_s,
        store_s=seconds["store"],
    )


def _queued_s(claimed_at: datetime, submitted_at: datetime | None) -> float | None:
    """Between two machines' clocks, so never less than zero."""
    return max(0.0, (claimed_at - submitted_at).total_seconds()) if submitted_at else None
