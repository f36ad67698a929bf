"""The wire form: pinned by golden files, and fuzzed from the schema and around it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producer.contract import EventType, GenerationJob, Priority, Status, canonical_json
from producer.errors import InvalidJob, JobCancelled, JobFailed
from producer.result import JobResult

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["job_minimal.json", "job_full.json"])
def test_a_job_has_the_pinned_form(name: str) -> None:
    pinned = golden(name)
    assert GenerationJob.from_wire(pinned["sent"]).to_wire() == pinned["completed"]
    assert GenerationJob.from_wire(pinned["completed"]).to_wire() == pinned["completed"]


@pytest.mark.parametrize("name", ["result_hit.json", "result_failed.json"])
def test_a_result_has_the_pinned_form(name: str) -> None:
    pinned = golden(name)
    assert JobResult.model_validate(pinned).to_wire() == pinned


def test_the_payload_hash_is_pinned_and_knows_neither_id_nor_time() -> None:
    sent = golden("job_full.json")["sent"]
    without = {k: v for k, v in sent.items() if k not in ("job_id", "submitted_at")}
    payload_hash = GenerationJob.from_wire(sent).payload_hash
    assert payload_hash == golden("job_full.json")["payload_hash"]
    assert payload_hash == GenerationJob.from_wire(without).payload_hash
    assert payload_hash != GenerationJob.from_wire(without | {"seed": 8}).payload_hash


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "prompt: is required"),
        ({"prompt": ""}, "prompt: must have 1 to 4,000 characters"),
        ({"prompt": " \n"}, "prompt: must not be blank"),
        ({"prompt": "x" * 10_000_000}, "prompt: must have 1 to 4,000 characters"),
        ({"prompt": "a\x00"}, "prompt: must not contain the character U+0000"),
        ({"prompt": "\ud800"}, "prompt: must be valid Unicode, without lone surrogates"),
        ({"prompt": "x", "num_inference_steps": 0}, "num_inference_steps: must be 1 to 200"),
        ({"prompt": "x", "num_inference_steps": 10**6}, "num_inference_steps: must be 1 to 200"),
        (
            {"prompt": "x", "num_inference_steps": "20"},
            "num_inference_steps: input should be a valid integer",
        ),
        ({"prompt": "x", "seed": True}, "seed: input should be a valid integer"),
        ({"prompt": "x", "seed": 2**53}, "seed: must be 0 to 9,007,199,254,740,991"),
        ({"prompt": "x", "width": 7}, "width: must be 8 to 8,192"),
        ({"prompt": "x", "namespace": "A b"}, "namespace: must match '^[a-z0-9-]{1,64}$'"),
        (
            {"prompt": "x", "priority": "high"},
            "priority: input should be 'interactive', 'standard' or 'batch'",
        ),
        ({"prompt": "x", "metadata": {"a": "b" * 513}}, "metadata.a: must have 0 to 512"),
        ({"prompt": "x", "metadata": {str(i): "" for i in range(17)}}, "metadata: must have 0 to"),
        ({"prompt": "x", "webhook": {}}, "webhook: give either 'endpoint' or 'url'"),
        (
            {"prompt": "x", "webhook": {"url": "https://a.b", "secret": "s"}},
            "webhook.secret: unknown field; known: endpoint, url, secret_name, events",
        ),
        ({"prompt": "x", "webhook": {"url": "ftp://a"}}, "webhook.url: must match '^https?://'"),
        ({"prompt": "x", "submitted_at": 12}, "submitted_at: must be a time as in RFC 3339"),
        ({"prompt": "x", "submitted_at": "1764000000"}, "submitted_at: must be a time as in RFC"),
        ({"prompt": "x", "\ud800": 1}, "\\ud800: unknown field; known: version"),
        ({"prompt": "x", "webhook": {"\ud800": 1}}, "webhook.\\ud800: unknown field; known: endp"),
        ({"prompt": "x", "submitted_at": "9999-12-31T23:59:59Z"}, "submitted_at: must lie in"),
        ({"prompt": "x", "deadline_s": 0.5}, "deadline_s: must be 1 to 86,400"),
        ({"prompt": "x", "version": 2}, "version: input should be 1"),
        ({"prompt": "x", "version": True}, "version: input should be 1"),
        ({"prompt": "x", "job_id": "seven"}, "job_id: input should be a valid UUID"),
        ([], "job: must be a JSON object, not list"),
        (None, "job: must be a JSON object, not NoneType"),
    ],
)
def test_a_bad_job_is_refused_naming_the_field_and_the_limit(fields: Any, message: str) -> None:
    with pytest.raises(InvalidJob) as raised:
        GenerationJob.from_wire(fields)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("fields", [{"a\x00": 1}, {"job_id": "\x00"}, {"priority": "\x1b["}])
def test_what_was_sent_is_quoted_without_control_characters(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidJob) as raised:
        GenerationJob.from_wire({"prompt": "x", **fields})
    assert str(raised.value).isprintable()


def test_an_unknown_field_is_named_short_and_printable() -> None:
    with pytest.raises(InvalidJob) as raised:
        GenerationJob.from_wire({"prompt": "x", "\N{SNOWMAN}" * 1_000: 1})
    assert raised.value.field.isascii()
    assert len(raised.value.field) < 80
    assert "unknown field; known: version, prompt" in raised.value.reason


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    # What json.loads makes of an escaped lone surrogate.
    | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(sorted(GenerationJob.model_fields)) | st.text()
NEARLY_RIGHT = st.fixed_dictionaries(
    {"prompt": st.text(min_size=1, max_size=40)},
    optional={
        "negative_prompt": st.text(max_size=20),
        "model": st.sampled_from(["small", "", "../x"]) | JSON,
        "num_inference_steps": st.integers(-5, 250) | JSON,
        "guidance_scale": st.floats(-1, 31) | JSON,
        "height": st.integers(0, 9_000) | JSON,
        "seed": st.integers(-1, 2**53) | JSON,
        "namespace": st.from_regex(r"[a-zA-Z0-9-]{1,8}") | JSON,
        "user": st.text(max_size=130) | JSON,
        "priority": st.sampled_from([*Priority, "high"]) | JSON,
        "cache": st.sampled_from(["use", "bypass", "never"]) | JSON,
        "webhook": st.fixed_dictionaries({}, optional={"url": st.just("http://a"), "events": JSON})
        | JSON,
        "metadata": st.dictionaries(st.text(max_size=3), st.text(max_size=3) | JSON),
        "submitted_at": st.datetimes(timezones=st.just(UTC)).map(datetime.isoformat) | JSON,
        "deadline_s": st.floats(0, 90_000) | JSON,
        "job_id": st.uuids().map(str) | JSON,
    },
)


@settings(max_examples=600, deadline=None)
@given(NEARLY_RIGHT | st.dictionaries(NAMES, JSON) | JSON)
def test_whatever_is_sent_is_refused_in_words_or_round_trips(sent: Any) -> None:
    refused: InvalidJob | None = None
    try:
        job = GenerationJob.from_wire(sent)
    except InvalidJob as error:
        refused = error
    if refused is not None:
        assert refused.field.isascii()
        assert refused.reason
        assert str(refused).isprintable()  # PostgreSQL takes no U+0000, and terminals obey escapes
        return
    again = GenerationJob.from_wire(json.loads(canonical_json(job.to_wire())))
    assert again == job
    assert again.payload_hash == job.payload_hash
    job.deadline_at(datetime(2026, 11, 23, tzinfo=UTC))


def test_a_deadline_counts_from_the_submission_or_else_the_receipt() -> None:
    received_at = datetime(2026, 11, 23, 12, tzinfo=UTC)
    job = GenerationJob.from_wire({"prompt": "x", "deadline_s": 60.0})
    assert job.deadline_at(received_at) == received_at + timedelta(seconds=60)
    sent = job.model_copy(update={"submitted_at": received_at - timedelta(hours=1)})
    assert sent.deadline_at(received_at) == received_at - timedelta(minutes=59)


def test_kombu_serves_interactive_first_and_batch_last() -> None:
    numbers = [Priority(name).celery_number for name in ("interactive", "standard", "batch")]
    assert numbers == sorted(numbers) == [0, 3, 6]


@pytest.mark.parametrize("status", [status for status in Status if status.is_terminal])
def test_every_terminal_status_has_its_event(status: Status) -> None:
    assert EventType.of(status).value == f"job.{status}"


def test_a_result_raises_what_became_of_its_job() -> None:
    succeeded = JobResult.model_validate(golden("result_hit.json"))
    assert succeeded.raise_for_status() is succeeded
    with pytest.raises(JobFailed, match="deadline_exceeded: not started within 60 s"):
        JobResult.model_validate(golden("result_failed.json")).raise_for_status()
    with pytest.raises(JobCancelled):
        succeeded.model_copy(update={"status": Status.CANCELLED}).raise_for_status()
