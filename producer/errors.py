"""Errors a client can meet.

ProducerError
├── InvalidJob          a field is missing, unknown or out of its limits
├── UnknownModel        no worker serves that model
├── JobConflict         the job id exists with another payload
├── UnknownJob          there is no trace of that job
├── QueueFull           the queue's limit is reached
├── JobFailed           the job ended as failed
│   └── JobCancelled    the job was cancelled
├── WaitTimeout         the job did not end in time
├── ImageUnavailable    the image cannot be downloaded, or is not the one of the result
│   └── UrlExpired      its signed url is past its time; another can be had
├── BrokerUnavailable   the broker cannot be reached
└── SettingsInvalid     a NIRVANA_ variable is missing or out of its limits
"""

from __future__ import annotations


class ProducerError(Exception):
    """The job cannot be handled."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or type(self).__doc__)


class InvalidJob(ProducerError):
    """The job is not valid."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class UnknownModel(ProducerError):
    """No worker serves that model."""

    def __init__(self, model: str | None, served: list[str]) -> None:
        allowed = ", ".join(sorted(served)) or "none yet (is a GPU worker running?)"
        problem = "name one, there is no default" if model is None else f"'{model}' is not served"
        super().__init__(f"model: {problem}; served: {allowed}")
        self.model = model
        self.served = served


class JobConflict(ProducerError):
    """The job id exists already with another payload."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"job_id: {job_id} exists already with another payload")
        self.job_id = job_id


class UnknownJob(ProducerError):
    """There is no trace of that job."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"unknown job {job_id}: never submitted here, or past its retention")
        self.job_id = job_id


class QueueFull(ProducerError):
    """The queue takes no more jobs for now."""

    def __init__(self, queue: str, length_max: int) -> None:
        super().__init__(
            f"queue {queue} is full: {length_max:,} jobs wait at this priority;"
            " try again later (the limit is NIRVANA_QUEUE_LENGTH_MAX)"
        )
        self.queue = queue
        self.length_max = length_max


class JobFailed(ProducerError):
    """The job ended without an image.

    Takes code and message, or both in one line: that is what Celery's JSON leaves of it.
    """

    def __init__(self, code: str, message: str | None = None) -> None:
        if message is None:
            code, _, message = code.partition(": ")
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type[JobFailed], tuple[str, str]]:
        """Keep both arguments when Celery copies the exception."""
        return type(self), (self.code, self.message)


class JobCancelled(JobFailed):
    """The job was cancelled."""


class WaitTimeout(ProducerError):
    """The job did not end in time; it goes on in the fleet."""

    def __init__(self, job_id: str, timeout_s: float, status: str) -> None:
        super().__init__(f"job {job_id} is still {status} after {timeout_s:g} s; it goes on")
        self.job_id = job_id
        self.timeout_s = timeout_s
        self.status = status


class ImageUnavailable(ProducerError):
    """The image cannot be downloaded, or is not the one of the result."""


class UrlExpired(ImageUnavailable):
    """The image's signed url is past its time."""


class BrokerUnavailable(ProducerError):
    """The broker cannot be reached."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(f"the broker {address} cannot be reached: {reason}")
        self.address = address
        self.reason = reason


class SettingsInvalid(ProducerError):
    """A setting is missing or out of its limits."""
