"""One attempt to send one webhook, signed by Standard Webhooks.

- 2xx alone is success. A redirect is a failure and never followed; so is anything else.
- The status line decides: a receiver that then drips its answer's body has answered.
- Connecting, TLS, sending and reading end together, `timeout_s` after the start.
"""

from __future__ import annotations

import base64
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

import httpcore
import httpx

from producer.verification import SecretInvalid
from producer.verification import sign as sign_once
from workers.delivery.errors import DeliveryError, UrlRefused
from workers.delivery.network import Network
from workers.delivery.retry import parse_retry_after

RESPONSE_BYTES_MAX: Final = 64 * 1024
RESPONSE_BYTES_KEPT: Final = 1_024  # of an answer's body, for whoever looks for the fault
ERROR_CHARACTERS_MAX: Final = 500


class Verdict(StrEnum):
    """What an attempt means for its delivery."""

    DELIVERED = "delivered"
    FAILED = "failed"  # to be tried again
    GONE = "gone"  # 410: the receiver wants no webhook any more
    REFUSED = "refused"  # by us; another try would end the same way


class ErrorKind(StrEnum):
    """What went wrong, in one word."""

    STATUS = "status"  # an answer other than 2xx
    TIMEOUT = "timeout"
    CONNECTION = "connection"  # no such name, refused, reset
    TLS = "tls"
    PROTOCOL = "protocol"  # no HTTP answer
    REFUSED = "refused"  # by us, before anything was sent
    INTERNAL = "internal"  # a fault of ours


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What is sent, and where."""

    webhook_id: str
    url: str
    secrets: Sequence[str] = field(repr=False)  # two while one is rotated out
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What came of one attempt; `error` and its kind are None only after a 2xx."""

    status_code: int | None = None
    error: str | None = None
    error_kind: ErrorKind | None = None
    latency_s: float = 0.0
    retry_after_s: float | None = None
    response: bytes = field(default=b"", repr=False)  # the first bytes of the answer's body

    @property
    def verdict(self) -> Verdict:
        """What follows from it."""
        if self.error_kind is ErrorKind.REFUSED:
            return Verdict.REFUSED
        if self.status_code == 410:
            return Verdict.GONE
        is_success = self.status_code is not None and 200 <= self.status_code < 300
        return Verdict.DELIVERED if is_success else Verdict.FAILED


def sign(message: Message, *, timestamp: str) -> str:
    """The webhook-signature header: one signature per secret; raises SecretInvalid."""
    return " ".join(
        sign_once(message.body, secret=secret, webhook_id=message.webhook_id, timestamp=timestamp)
        for secret in message.secrets
    )


def send(message: Message, *, network: Network, timeout_s: float, now: datetime) -> Attempt:
    """Send it once, signed as of `now`; whatever goes wrong is told in the attempt."""
    started_s = time.monotonic()
    try:
        answer, beginning = _post(message, network=network, timeout_s=timeout_s, now=now)
    except (DeliveryError, SecretInvalid) as refusal:
        return _failure(ErrorKind.REFUSED, str(refusal), started_s)
    except httpcore.TimeoutException:
        return _failure(ErrorKind.TIMEOUT, f"no answer within {timeout_s:g} s", started_s)
    except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
        return _failure(_kind_of(error), f"{type(error).__name__}: {error}", started_s)
    return _attempt(answer, beginning, latency_s=time.monotonic() - started_s, now=now)


def _kind_of(error: Exception) -> ErrorKind:
    # httpcore's own errors hold the one they stand for; its pool cuts their chain.
    if any(isinstance(inner, ssl.SSLError) for inner in (error, *error.args)):
        return ErrorKind.TLS
    is_answer = isinstance(error, httpcore.ProtocolError)
    return ErrorKind.PROTOCOL if is_answer else ErrorKind.CONNECTION


def _post(
    message: Message, *, network: Network, timeout_s: float, now: datetime
) -> tuple[httpcore.Response, bytes]:
    """Post it; returns the answer and the first bytes of its body."""
    url = parse_url(message.url)
    with (
        network.connections(timeout_s=timeout_s) as connections,
        connections.stream(
            "POST",
            httpcore.URL(
                scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
            ),
            headers=_headers(message, url, timestamp=str(int(now.timestamp()))),
            content=message.body,
        ) as answer,
    ):
        return answer, _beginning(answer)


def parse_url(text: str) -> httpx.URL:
    """Read a url that webhooks can be sent to; raises UrlRefused."""
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError) as error:
        raise UrlRefused(f"refused: the url is not valid: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise UrlRefused("refused: the url must be http:// or https:// and name a host")
    if url.port is not None and not 0 < url.port < 65_536:
        raise UrlRefused("refused: the url's port must be 1 to 65535")
    return url


def _headers(message: Message, url: httpx.URL, *, timestamp: str) -> list[tuple[str, str]]:
    headers = [
        ("content-type", "application/json"),
        ("user-agent", "nirvana-webhooks/1"),
        ("accept-encoding", "identity"),
        ("connection", "close"),
        ("webhook-id", message.webhook_id),
        ("webhook-timestamp", timestamp),
        ("webhook-signature", sign(message, timestamp=timestamp)),
    ]
    if url.userinfo:
        credentials = base64.b64encode(f"{url.username}:{url.password}".encode()).decode()
        headers.append(("authorization", f"Basic {credentials}"))
    return headers


def _beginning(answer: httpcore.Response) -> bytes:
    """Read a little of the body, so that ordinary receivers see their answer taken; keep less."""
    kept, num_bytes = b"", 0
    try:
        for chunk in answer.iter_stream():
            kept += chunk[: RESPONSE_BYTES_KEPT - len(kept)]
            num_bytes += len(chunk)
            if num_bytes >= RESPONSE_BYTES_MAX:
                break
    except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError):
        pass  # the status line has been read, and decides
    return kept


def _attempt(
    answer: httpcore.Response, beginning: bytes, *, latency_s: float, now: datetime
) -> Attempt:
    if 200 <= answer.status < 300:
        return Attempt(status_code=answer.status, latency_s=latency_s, response=beginning)
    headers = {name.lower(): value for name, value in answer.headers}
    asked = headers.get(b"retry-after", b"").decode("latin-1")
    return Attempt(
        status_code=answer.status,
        error=f"answered {answer.status}",
        error_kind=ErrorKind.STATUS,
        latency_s=latency_s,
        retry_after_s=parse_retry_after(asked, now=now),
        response=beginning,
    )


def _failure(kind: ErrorKind, reason: str, started_s: float) -> Attempt:
    # PostgreSQL's text holds no U+0000, and a receiver's words may be long.
    return Attempt(
        error=reason.replace("\x00", "")[:ERROR_CHARACTERS_MAX],
        error_kind=kind,
        latency_s=time.monotonic() - started_s,
    )
