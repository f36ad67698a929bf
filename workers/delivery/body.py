"""The body of a webhook: the exact bytes that are stored, signed and sent."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Final

from producer.contract import EventType, canonical_json
from producer.result import JobResult

BODY_BYTES_MAX: Final = 20_000  # Standard Webhooks' recommendation
ERROR_MESSAGE_CHARACTERS_MAX: Final = 1_000  # in a body that would be too long

logger = logging.getLogger(__name__)


def event_body(event: EventType, result: JobResult, *, now: datetime) -> bytes:
    """`{type, timestamp, data}`, the result as its data.

    At most BODY_BYTES_MAX: where metadata or an error's message would exceed it, the metadata are
    left out and the message is cut. The job's trace and row keep them whole.
    """
    body = _json(event, result, now)
    if len(body) <= BODY_BYTES_MAX:
        return body
    logger.warning("webhook body cut to fit: no metadata", extra={"job_id": result.job_id})
    error = result.error and result.error.model_copy(
        update={"message": result.error.message[:ERROR_MESSAGE_CHARACTERS_MAX]}
    )
    return _json(event, result.model_copy(update={"metadata": {}, "error": error}), now)


def _json(event: EventType, result: JobResult, now: datetime) -> bytes:
    timestamp = now.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return canonical_json({"type": event, "timestamp": timestamp, "data": result.to_wire()})
