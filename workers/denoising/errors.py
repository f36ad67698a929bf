"""What can go wrong while denoising.

DenoisingError
 +- UnsupportedModel       at load: the folder is not of a known family
 +- UnsupportedScheduler   at load: its states cannot be resumed at step k
 +- InvalidRequest         at submission: the request contradicts itself or the model
 +- QueueFull              more jobs wait than the engine holds
 +- EngineClosed           the engine was closed before the job ended
 +- Cancelled
 +- DeadlineExceeded
 +- OutOfMemory            the job does not fit even alone
 +- DenoisingFailed        anything else that the model raised (see __cause__)

DeviceBroken               no job's fault: no pass succeeds any more, the engine ends

The docstring of each is its default message.
"""

from __future__ import annotations


class DenoisingError(Exception):
    """The job could not be denoised."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or type(self).__doc__)


class UnsupportedModel(DenoisingError):
    """The model folder is not of a supported family."""


class UnsupportedScheduler(DenoisingError):
    """The scheduler cannot resume from a cached state."""


class InvalidRequest(DenoisingError, ValueError):
    """The request contradicts itself or the model."""


class QueueFull(DenoisingError):
    """As many jobs wait for the engine as it holds."""


class EngineClosed(DenoisingError):
    """The engine was closed before the job ended."""


class Cancelled(DenoisingError):
    """The job was cancelled."""


class DeadlineExceeded(DenoisingError):
    """The job's deadline passed before its last step."""


class OutOfMemory(DenoisingError):
    """The job does not fit into memory even alone."""


class DenoisingFailed(DenoisingError):
    """The model failed."""


class DeviceBroken(Exception):
    """Every forward pass fails: the process must be started anew."""
