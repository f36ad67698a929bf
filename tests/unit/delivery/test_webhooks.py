from __future__ import annotations

import base64
import json
import socket
import ssl
import threading
import time
from datetime import UTC, datetime

import pytest
import standardwebhooks

from tests.unit.delivery.receiver import (
    CERTIFICATE,
    Receiver,
    UnreachableNetwork,
    endless_body,
    raw,
    receiver,
    status,
)
from workers.delivery.network import Network
from workers.delivery.webhooks import ERROR_CHARACTERS_MAX, Attempt, Message, Verdict, send

SECRET = "whsec_" + base64.b64encode(b"k" * 24).decode()
OLD_SECRET = "whsec_" + base64.b64encode(b"o" * 32).decode()
LOOPBACK = Network(allow_private_addresses=True)
BODY = json.dumps({"type": "job.succeeded", "data": {"prompt": "ein Fuchs, größer"}}).encode()


def attempt(
    url: str,
    *,
    network: Network = LOOPBACK,
    timeout_s: float = 5.0,
    secrets: tuple[str, ...] = (SECRET,),
) -> Attempt:
    message = Message(webhook_id="msg_1", url=url, secrets=secrets, body=BODY)
    return send(message, network=network, timeout_s=timeout_s, now=datetime.now(UTC))


def delivered(server: Receiver) -> None:
    assert attempt(server.url()).verdict is Verdict.DELIVERED


def test_what_is_sent_verifies_with_the_reference_library() -> None:
    with receiver() as server:
        delivered(server)
        (request,) = server.requests
    assert request.body == BODY
    assert request.headers["content-type"] == "application/json"
    assert standardwebhooks.Webhook(SECRET).verify(request.body, request.headers) == json.loads(
        BODY
    )


def test_during_rotation_either_secret_verifies() -> None:
    with receiver() as server:
        attempt(server.url(), secrets=(SECRET, OLD_SECRET))
        (request,) = server.requests
    assert len(request.headers["webhook-signature"].split(" ")) == 2
    for secret in (SECRET, OLD_SECRET):
        assert standardwebhooks.Webhook(secret).verify(request.body, request.headers)


@pytest.mark.parametrize("secret", ["", "plain", "whsec_", "whsec_***", "whsec_A"])
def test_a_secret_that_is_none_is_refused_without_being_told(secret: str) -> None:
    backend = UnreachableNetwork()
    outcome = attempt(
        "http://93.184.215.14/", network=Network(backend=backend), secrets=(SECRET, secret)
    )
    assert outcome.verdict is Verdict.REFUSED
    assert backend.asked == []
    assert outcome.error == "The webhook secret must be 'whsec_' followed by base64."


def test_secrets_stay_out_of_representations() -> None:
    message = Message(webhook_id="m", url="http://h/", secrets=[SECRET], body=BODY)
    assert SECRET not in repr(message)


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        *[(code, Verdict.DELIVERED) for code in (200, 202, 299)],
        *[(code, Verdict.FAILED) for code in (300, 301, 304, 307, 400, 404, 429, 500, 503)],
        (410, Verdict.GONE),
    ],
)
def test_2xx_alone_is_success(code: int, verdict: Verdict) -> None:
    with receiver(status(code)) as server:
        outcome = attempt(server.url())
    assert (outcome.status_code, outcome.verdict) == (code, verdict)
    assert (outcome.error is None) == (verdict is Verdict.DELIVERED)
    assert 0 < outcome.latency_s < 5


def test_retry_after_is_passed_on_from_any_failure() -> None:
    with receiver(status(503, "Retry-After: 120"), status(200, "Retry-After: 120")) as server:
        assert attempt(server.url()).retry_after_s == 120
        assert attempt(server.url()).retry_after_s is None


@pytest.mark.parametrize("answer", ["silence", "drip_head"])
def test_a_receiver_that_does_not_answer_in_time_has_failed(answer: str) -> None:
    started_s = time.monotonic()
    with receiver(answer) as server:
        outcome = attempt(server.url(), timeout_s=0.4)
        assert time.monotonic() - started_s < 2
    assert (outcome.verdict, outcome.error) == (Verdict.FAILED, "no answer within 0.4 s")


def test_a_body_that_drips_after_the_status_line_does_not_hold_the_sender() -> None:
    with receiver("drip_body") as server:
        outcome = attempt(server.url(), timeout_s=0.4)
    assert (outcome.status_code, outcome.verdict) == (200, Verdict.DELIVERED)
    assert outcome.latency_s < 2


def test_a_body_without_end_is_not_read_to_its_end() -> None:
    with receiver(endless_body) as server:
        outcome = attempt(server.url())
    assert outcome.verdict is Verdict.DELIVERED
    assert outcome.latency_s < 2


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 100_000,
        b"HTTP/1.1 999999 \x00\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
    ],
)
def test_what_is_no_http_answer_is_a_failure_in_few_words(answer: bytes) -> None:
    with receiver(raw(answer)) as server:
        outcome = attempt(server.url())
    assert (outcome.status_code, outcome.verdict) == (None, Verdict.FAILED)
    assert outcome.error
    assert "\x00" not in outcome.error
    assert len(outcome.error) <= ERROR_CHARACTERS_MAX


def test_a_refused_connection_is_a_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    outcome = attempt(f"http://127.0.0.1:{port}/")
    assert outcome.verdict is Verdict.FAILED
    assert outcome.error is not None
    assert "Connection refused" in outcome.error


def test_a_name_nobody_knows_is_a_failure() -> None:
    def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(-2, "Name or service not known")

    outcome = attempt("http://gone.example/", network=Network(resolve=unknown))
    assert outcome.verdict is Verdict.FAILED
    assert outcome.error is not None
    assert "gone.example cannot be resolved" in outcome.error


def test_a_resolver_that_does_not_answer_is_not_waited_for() -> None:
    is_over = threading.Event()

    def silent(host: str, port: int) -> list[str]:
        is_over.wait()
        return []

    outcome = attempt("http://slow.example/", network=Network(resolve=silent), timeout_s=0.2)
    is_over.set()
    assert (outcome.verdict, outcome.error) == (Verdict.FAILED, "no answer within 0.2 s")


def test_tls_is_asked_for_the_name_in_the_url_and_checked_against_it() -> None:
    trusting = ssl.create_default_context(cafile=str(CERTIFICATE))
    network = Network(
        resolve=lambda host, port: ["127.0.0.1"], tls=trusting, allow_private_addresses=True
    )
    with receiver(is_tls=True) as server:
        right = attempt(server.url(host="receiver.example", scheme="https"), network=network)
        wrong = attempt(server.url(host="other.example", scheme="https"), network=network)
    assert right.verdict is Verdict.DELIVERED
    assert wrong.verdict is Verdict.FAILED
    assert wrong.error is not None
    assert "certificate" in wrong.error
    assert server.server_names == ["receiver.example", "other.example"]
    assert len(server.requests) == 1


def test_a_certificate_nobody_vouches_for_is_a_failure() -> None:
    with receiver(is_tls=True) as server:
        outcome = attempt(server.url(scheme="https"))
    assert outcome.verdict is Verdict.FAILED
    assert outcome.error is not None
    assert "certificate verify failed" in outcome.error
    assert server.requests == []


def test_https_to_a_plain_http_server_is_a_failure() -> None:
    with receiver() as server:
        outcome = attempt(server.url(scheme="https"), timeout_s=0.4)
    assert outcome.verdict is Verdict.FAILED


def test_credentials_in_the_url_are_sent_as_basic_authentication() -> None:
    with receiver() as server:
        attempt(server.url().replace("://", "://us%40er:pass@"))
        (request,) = server.requests
    assert request.headers["authorization"] == "Basic " + base64.b64encode(b"us@er:pass").decode()
