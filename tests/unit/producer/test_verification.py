from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta

import pytest
import standardwebhooks

from producer.contract import Status
from producer.result import JobResult
from producer.verification import (
    SecretInvalid,
    VerificationError,
    WebhookRefused,
    decode_secret,
    sign,
    verify,
)

SECRET = "whsec_" + base64.b64encode(bytes(range(24))).decode()
OTHER_SECRET = "whsec_" + base64.b64encode(b"o" * 24).decode()
NOW = datetime(2026, 1, 1, tzinfo=UTC)
RESULT = JobResult(job_id="j", status=Status.SUCCEEDED, attempt=1, metadata={"größe": "10 €"})
BODY = json.dumps(
    {"type": "job.succeeded", "timestamp": "2026-01-01T00:00:00Z", "data": RESULT.to_wire()}
).encode()


def signed(body: bytes = BODY, *, at: datetime = NOW, secret: str = SECRET) -> dict[str, str]:
    """The headers the reference library makes."""
    signature = standardwebhooks.Webhook(secret).sign("msg_1", at, body.decode())
    return {
        "Webhook-Id": "msg_1",
        "Webhook-Timestamp": str(int(at.timestamp())),
        "Webhook-Signature": signature,
    }


def test_a_webhook_of_the_reference_library_is_verified_and_read() -> None:
    event = verify(BODY, signed(), secret=SECRET, now=NOW)
    assert (event.webhook_id, event.type) == ("msg_1", "job.succeeded")
    assert event.timestamp == "2026-01-01T00:00:00Z"
    assert event.result == RESULT


def test_the_clock_is_this_moment_unless_given() -> None:
    headers = signed(at=datetime.now(UTC))
    assert verify(BODY, headers, secret=SECRET).type == "job.succeeded"
    assert standardwebhooks.Webhook(SECRET).verify(BODY, headers) == json.loads(BODY)


def test_our_signature_is_the_reference_librarys() -> None:
    headers = signed()
    ours = sign(BODY, secret=SECRET, webhook_id="msg_1", timestamp=headers["Webhook-Timestamp"])
    assert ours == headers["Webhook-Signature"]


def test_the_specifications_example_signs_as_printed() -> None:
    """The vector that the reference libraries test themselves with."""
    ours = sign(
        b'{"test": 2432232314}',
        secret="whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        webhook_id="msg_p5jXN8AQM9LWM0D4loKWxJek",
        timestamp="1614265330",
    )
    assert ours == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("name", ["Webhook-Id", "Webhook-Timestamp", "Webhook-Signature"])
def test_a_missing_header_is_named(name: str) -> None:
    headers = signed()
    del headers[name]
    with pytest.raises(WebhookRefused, match=name.lower()):
        verify(BODY, headers, secret=SECRET, now=NOW)


@pytest.mark.parametrize(
    "change",
    [
        {"Webhook-Id": "msg_2"},
        {"Webhook-Timestamp": str(int(NOW.timestamp()) + 1)},
        {"Webhook-Signature": ""},
        {"Webhook-Signature": "v1,"},
        {"Webhook-Signature": "v1"},
        {"Webhook-Signature": "v1,größe"},
        {"Webhook-Signature": signed()["Webhook-Signature"].replace("v1,", "v1a,")},
        {"Webhook-Signature": signed()["Webhook-Signature"].removeprefix("v1,")},
        {"Webhook-Signature": signed(secret=OTHER_SECRET)["Webhook-Signature"]},
    ],
)
def test_one_changed_header_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(WebhookRefused):
        verify(BODY, signed() | change, secret=SECRET, now=NOW)


def test_a_changed_body_is_refused_down_to_a_space() -> None:
    with pytest.raises(WebhookRefused):
        verify(BODY + b" ", signed(), secret=SECRET, now=NOW)


def test_one_matching_signature_among_several_is_enough() -> None:
    headers = signed()
    other = signed(secret=OTHER_SECRET)["Webhook-Signature"]
    headers["Webhook-Signature"] = f"v1a,xyz {other} {headers['Webhook-Signature']}"
    for secret in (SECRET, OTHER_SECRET):
        assert verify(BODY, headers, secret=secret, now=NOW).webhook_id == "msg_1"


@pytest.mark.parametrize("age_s", [-301, 301, 86_400])
def test_an_old_or_future_webhook_is_refused(age_s: int) -> None:
    with pytest.raises(WebhookRefused, match="300 s"):
        verify(BODY, signed(), secret=SECRET, now=NOW + timedelta(seconds=age_s))


@pytest.mark.parametrize("timestamp", ["", "soon", "1e9", "-5", "٣", "9" * 5_000, "nan"])
def test_a_timestamp_that_is_none_is_refused(timestamp: str) -> None:
    headers = signed() | {"Webhook-Timestamp": timestamp}
    with pytest.raises(WebhookRefused):
        verify(BODY, headers, secret=SECRET, now=NOW)


@pytest.mark.parametrize("body", [b"", b"[]", b"1", b"{}", b'{"type": "x"}', b"not json"])
def test_a_signed_body_of_another_form_is_refused(body: bytes) -> None:
    with pytest.raises(WebhookRefused, match="body"):
        verify(body, signed(body), secret=SECRET, now=NOW)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_!", "whsec_A", "MfKQ9r8GKYqrTwjU"])
def test_a_secret_of_another_form_is_named_and_not_shown(secret: str) -> None:
    with pytest.raises(SecretInvalid) as invalid:
        verify(BODY, signed(), secret=secret, now=NOW)
    assert str(invalid.value) == "The webhook secret must be 'whsec_' followed by base64."
    assert isinstance(invalid.value, VerificationError)


def test_a_secret_may_lack_its_padding() -> None:
    assert decode_secret("whsec_YWJjZA") == decode_secret("whsec_YWJjZA==") == b"abcd"
