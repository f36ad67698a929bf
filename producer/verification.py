"""Webhooks as a receiver sees them: verify one, and the signature itself.

Standard Webhooks, symmetric scheme: `v1,` and the base64 of HMAC-SHA256 over the exact bytes
`{webhook-id}.{webhook-timestamp}.{body}`. No dependency beyond the standard library.

ProducerError
└── VerificationError
    ├── SecretInvalid       the secret is not `whsec_` and base64
    └── WebhookRefused      the request is not a webhook of ours, or an old one sent again
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from producer.errors import ProducerError
from producer.result import JobResult

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - the public prefix, not a secret
TOLERANCE_S: Final = 300.0  # between the signed timestamp and the receiver's clock, either way


class VerificationError(ProducerError):
    """The webhook cannot be verified."""


class SecretInvalid(VerificationError):
    """The webhook secret must be 'whsec_' followed by base64."""


class WebhookRefused(VerificationError):
    """The request is not a webhook signed with this secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEvent:
    """A verified webhook.

    `webhook_id` is the same on every attempt: remember it, and ignore an event seen before.
    """

    webhook_id: str
    type: str  # one of contract.EventType, or one that a newer fleet knows
    timestamp: str  # when it happened, RFC 3339
    data: dict[str, Any]

    @property
    def result(self) -> JobResult:
        """What came of the job; raises pydantic's ValidationError on a newer fleet's form."""
        return JobResult.model_validate(self.data)


def verify(
    body: bytes,
    headers: Mapping[str, str],
    *,
    secret: str,
    now: datetime | None = None,
    tolerance_s: float = TOLERANCE_S,
) -> WebhookEvent:
    """Read a webhook of ours; answer 2xx after it, and 4xx to one that raises.

    `body` is the request's exact bytes, before any JSON parsing. `now` defaults to this moment.
    Raises WebhookRefused, or SecretInvalid.
    """
    webhook_id, timestamp, signatures = _signed_headers(headers)
    _check_age(timestamp, now or datetime.now(UTC), tolerance_s)
    expected = sign(body, secret=secret, webhook_id=webhook_id, timestamp=timestamp).encode()
    # One match is enough: while a secret is rotated the sender signs with both.
    matches = [hmac.compare_digest(expected, given.encode()) for given in signatures.split()]
    if not any(matches):
        raise WebhookRefused
    return _event(webhook_id, body)


def sign(body: bytes, *, secret: str, webhook_id: str, timestamp: str) -> str:
    """One signature, `v1,...`; `timestamp` in whole seconds since 1970. Raises SecretInvalid."""
    signed = b".".join((webhook_id.encode(), timestamp.encode(), body))
    digest = hmac.digest(decode_secret(secret), signed, hashlib.sha256)
    return "v1," + base64.b64encode(digest).decode()


def decode_secret(secret: str) -> bytes:
    """The key inside `whsec_...`, base64 with or without padding; raises SecretInvalid."""
    if not secret.startswith(SECRET_PREFIX):
        raise SecretInvalid
    encoded = secret.removeprefix(SECRET_PREFIX).rstrip("=")
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise SecretInvalid from None
    if not key:
        raise SecretInvalid
    return key


def _signed_headers(headers: Mapping[str, str]) -> tuple[str, str, str]:
    by_name = {name.lower(): value for name, value in headers.items()}
    try:
        return (
            by_name["webhook-id"],
            by_name["webhook-timestamp"],
            by_name["webhook-signature"],
        )
    except KeyError as missing:
        raise WebhookRefused(f"the header {missing} is missing") from None


def _check_age(timestamp: str, now: datetime, tolerance_s: float) -> None:
    """Refuse what was signed long ago: a request overheard and sent again."""
    if not (timestamp.isascii() and timestamp.isdigit()):
        raise WebhookRefused("the header webhook-timestamp is not in seconds since 1970")
    if abs(float(timestamp) - now.timestamp()) > tolerance_s:
        raise WebhookRefused(f"the webhook was not signed within {tolerance_s:g} s of now")


def _event(webhook_id: str, body: bytes) -> WebhookEvent:
    try:
        fields = json.loads(body)
        return WebhookEvent(
            webhook_id=webhook_id,
            type=fields["type"],
            timestamp=fields["timestamp"],
            data=fields["data"],
        )
    except (ValueError, KeyError, TypeError):
        raise WebhookRefused("the body is not {type, timestamp, data}") from None
