"""Errors a client can meet.

ProducerError
├── InvalidJob          a field is missing, unknown or out of its limits
├── UnknownModel        no worker serves that model
├── JobConflict         the job id exists with another payload
├── UnknownJob          there is no trace of that job
├── QueueFull           the queue's limit is reached
├── JobFailed           the job ended as failed
├── WaitTimeout         the job did not end in time
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

    def __init__(self, model: str, served: list[str]) -> None:
        allowed = ", ".join(sorted(served)) or "none yet: is a GPU worker running?"
        super().__init__(f"model: '{model}' is not served; served: {allowed}")
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


class JobFailed(ProducerError):
    """The job ended without an image."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type[JobFailed], tuple[str, str]]:
        """Keep both arguments when Celery copies the exception."""
        return type(self), (self.code, self.message)


class WaitTimeout(ProducerError):
    """The job did not end in time; it goes on in the fleet."""


class BrokerUnavailable(ProducerError):
    """The broker cannot be reached."""


class SettingsInvalid(ProducerError):
    """A setting is missing or out of its limits."""
