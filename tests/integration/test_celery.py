"""What Celery makes of our results and of other clients' messages, on the real broker."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from celery.result import AsyncResult
from kombu.entity import Queue
from redis import Redis

from producer.contract import ErrorCode, Status
from producer.errors import JobFailed
from producer.result import JobError, JobResult
from producer.settings import ProducerSettings
from workers.app import Publisher, build_app
from workers.dead_letters import DeadLetters
from workers.settings import WorkerSettings

QUEUE = "generate.small"


@pytest.fixture
def app(broker_url: str) -> Iterator[Celery]:
    built = build_app(ProducerSettings(broker_url=broker_url), WorkerSettings())
    yield built
    built.close()


def test_a_failed_job_raises_what_our_own_client_raises(app: Celery) -> None:
    job_id = str(uuid.uuid4())
    error = JobError(code=ErrorCode.INVALID_JOB, message="width: must be 8 to 32: no more")
    Publisher(app).show_end(JobResult(job_id=job_id, status=Status.FAILED, attempt=0, error=error))
    with pytest.raises(JobFailed) as raised:
        AsyncResult(job_id, app=app).get(timeout=5)
    assert (raised.value.code, raised.value.message) == (error.code, error.message)
    assert str(raised.value) == "invalid_job: width: must be 8 to 32: no more"


def envelope(**changes: Any) -> bytes:
    """A message as kombu puts it into a list, with what `changes` breaks."""
    whole = {
        "body": "W1t7fV0se30se31d",
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"task": "nirvana.generate", "id": str(uuid.uuid4())},
        "properties": {
            "delivery_tag": str(uuid.uuid4()),
            "delivery_info": {"exchange": "", "routing_key": QUEUE},
            "body_encoding": "base64",
        },
    }
    return json.dumps(whole | changes).encode()


NO_ENVELOPE = {
    "no JSON": b"hello",
    "no text": b"\xff\xfe\x00",
    "nothing": b"",
    "a number": b"7",
    "a list": b"[]",
    "an empty object": b"{}",
    "nested without end": b"[" * 200_000,
    "a huge number": b"1" * 5_000,
    "no properties": envelope(properties=None),
    "a tag of no text": envelope(
        properties={"delivery_tag": ["x"], "delivery_info": {"exchange": "", "routing_key": QUEUE}}
    ),
    "no delivery information": envelope(properties={"delivery_tag": "t"}),
    "body of no base64": envelope(body="e"),
    "a body that is a number": envelope(body=7),
    "a type of kombu's that is none": b'{"__type__": "datetime", "__value__": "never"}',
}
NO_TASK = {
    "no id": envelope(headers={"task": "nirvana.generate"}),
    "a number for an id": envelope(headers={"task": "nirvana.generate", "id": 12}),
    "no headers": envelope(headers=None),
    "headers that are a list": envelope(headers=[]),
    "unknown task": envelope(headers={"task": "no.such.task", "id": str(uuid.uuid4())}),
    "a task that is a list": envelope(headers={"task": [], "id": str(uuid.uuid4())}),
    "a body that is no call": envelope(body="e30="),
    "a body that is no JSON": envelope(body="e30" + "e30="),
    "pickle": envelope(**{"content-type": "application/x-python-serialize"}),
}
MALFORMED = NO_ENVELOPE | NO_TASK


@pytest.mark.parametrize("message", MALFORMED.values(), ids=MALFORMED)
def test_a_worker_outlives_and_keeps_a_message_that_nobody_can_read(
    app: Celery, broker_url: str, message: bytes
) -> None:
    done = threading.Event()

    @app.task(name="nirvana.generate", shared=False)  # type: ignore[untyped-decorator]
    def generate_task(fields: object) -> None:
        if fields == "the last":
            done.set()

    app.conf.task_queues = [Queue(QUEUE)]  # type: ignore[no-untyped-call]
    with Redis.from_url(broker_url) as broker:
        broker.lpush(QUEUE, message)
        app.send_task("nirvana.generate", args=["the last"], queue=QUEUE)
        with start_worker(app, pool="threads", perform_ping_check=False, queues=[QUEUE]):
            assert done.wait(5)
        assert broker.llen(QUEUE) == 0
        assert broker.hlen("unacked") == 0
        letters = DeadLetters(broker)
        (letter,) = letters.read()
        assert (letter.queue, letter.list_name) == (QUEUE, QUEUE)
        assert letter.reason
        assert _same(letter.encoded(), message)
        letters.retry([letter.letter_id])
        assert _same(broker.lindex(QUEUE, 0), message)


def _same(kept: bytes | None, sent: bytes) -> bool:
    """Whether it is the message, or for one that was read its JSON."""
    assert kept is not None
    return kept == sent or json.loads(kept) == json.loads(sent)
