"""The client against the real broker; the test plays the worker, through the same traces."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import http.server
import json
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
import redis

from producer.broker import open_connection
from producer.client import Client
from producer.contract import CacheOutcome, ErrorCode, GenerationJob, Status
from producer.errors import (
    BrokerUnavailable,
    ImageUnavailable,
    InvalidJob,
    JobCancelled,
    JobConflict,
    JobFailed,
    QueueFull,
    UnknownJob,
    UnknownModel,
    WaitTimeout,
)
from producer.handle import JobHandle
from producer.models import ModelTable, ServedModel
from producer.queues import bucket_queue
from producer.result import CacheReport, JobError, JobResult, Steps, StoredImage
from producer.settings import ProducerSettings
from producer.trace import Progress, Traces
from tests.served_models import SMALL

FOXES = "\N{FOX FACE}" * 512  # four bytes each
QUEUE = bucket_queue("small", "default", 8)


@pytest.fixture
def broker(broker_url: str) -> Iterator[redis.Redis]:
    with closing(open_connection(broker_url)) as connection:
        ModelTable(connection).announce(SMALL)
        yield connection


@pytest.fixture
def traces(broker: redis.Redis) -> Traces:
    return Traces(broker, retention_s=60)


@pytest.fixture
def client(broker: redis.Redis, broker_url: str) -> Iterator[Client]:
    with Client(ProducerSettings(broker_url=broker_url, queue_length_max=10)) as client:
        yield client


def messages(broker: redis.Redis, queue: str = QUEUE, number: int = 3) -> list[dict[str, Any]]:
    # kombu's name of a queue's list: the number stands behind two separators, but for the first.
    name = f"{queue}\x06\x16{number}" if number else queue
    return [json.loads(raw) for raw in reversed(broker.lrange(name, 0, -1))]


def arguments(message: dict[str, Any]) -> list[Any]:
    return list(json.loads(base64.b64decode(message["body"]))[0])


def succeeded(job_id: str, **fields: Any) -> JobResult:
    return JobResult(
        job_id=job_id,
        status=Status.SUCCEEDED,
        attempt=1,
        seed=7,
        cache=CacheReport(outcome=CacheOutcome.HIT, k=5, similarity=0.9),
        steps=Steps(asked=20, run=15),
        **fields,
    )


def test_a_job_is_traced_and_published_as_the_wire_form_says(
    client: Client, broker: redis.Redis
) -> None:
    handle = client.submit("a red fox", seed=7, metadata={"order": "12"})

    trace = client.status(handle)
    assert trace.status is Status.SUBMITTED
    assert trace.queue == QUEUE
    assert trace.job["num_inference_steps"] == 20
    (message,) = messages(broker)
    assert message["headers"]["task"] == "nirvana.generate"
    assert message["headers"]["id"] == message["properties"]["correlation_id"] == str(handle)
    assert message["headers"]["ignore_result"] is not True
    assert message["content-type"] == "application/json"
    assert message["properties"]["delivery_mode"] == 2
    assert message["properties"]["priority"] == 3
    assert message["properties"]["delivery_info"]["routing_key"] == QUEUE
    (wire,) = arguments(message)
    assert wire == trace.job
    assert wire["submitted_at"] is not None
    assert GenerationJob.from_wire(wire).payload_hash


def test_flower_is_told_a_short_form_without_the_webhook(
    client: Client, broker: redis.Redis
) -> None:
    client.submit("fox " * 500, webhook={"url": "https://example.com/secret-path"})
    (message,) = messages(broker)
    assert len(message["headers"]["argsrepr"]) < 200
    assert "secret-path" not in message["headers"]["argsrepr"]


@pytest.mark.parametrize(("priority", "number"), [("interactive", 0), ("batch", 6)])
def test_a_priority_is_a_list_of_the_queue(
    client: Client, broker: redis.Redis, priority: str, number: int
) -> None:
    client.submit("a fox", priority=priority)
    assert len(messages(broker, number=number)) == 1


def test_a_namespace_has_its_bucket_and_the_settings_give_the_default(
    broker: redis.Redis, broker_url: str
) -> None:
    settings = ProducerSettings(broker_url=broker_url, namespace="acme", namespace_buckets=64)
    with Client(settings) as client:
        named = client.status(client.submit("a fox", namespace="other"))
        unnamed = client.status(client.submit("a fox"))
    assert unnamed.job["namespace"] == "acme"
    assert unnamed.queue == bucket_queue("small", "acme", 64)
    assert named.queue == bucket_queue("small", "other", 64)


def test_seeds_give_one_job_each(client: Client) -> None:
    handles = client.submit("a fox", seeds=[1, 2, 3])
    assert [client.status(handle).job["seed"] for handle in handles] == [1, 2, 3]
    assert len({handle.job_id for handle in handles}) == 3
    with pytest.raises(InvalidJob, match="job_id: names one job"):
        client.submit("a fox", seeds=[1], job_id=str(uuid.uuid4()))
    with pytest.raises(InvalidJob, match="seed: must be 0 to"):
        client.submit("a fox", seeds=[-1])


def test_the_same_id_and_payload_is_the_same_job(client: Client, broker: redis.Redis) -> None:
    job_id = str(uuid.uuid4())
    first = client.submit("a fox", job_id=job_id)
    # The hash is of the job as given: the model's default may change between the two.
    ModelTable(broker).announce(ServedModel(**(_fields(SMALL) | {"num_inference_steps": 30})))
    again = client.submit("a fox", job_id=job_id)

    assert first == again
    assert len(messages(broker)) == 1
    with pytest.raises(JobConflict, match="exists already with another payload"):
        client.submit("a wolf", job_id=job_id)
    assert len(messages(broker)) == 1


def test_bad_jobs_are_refused_before_anything_is_written(
    client: Client, broker: redis.Redis
) -> None:
    keys = set(broker.keys())
    with pytest.raises(InvalidJob, match="width: must be a multiple of 8, 32 to 128"):
        client.submit("a fox", width=36)
    with pytest.raises(UnknownModel, match="'huge' is not served; served: small"):
        client.submit("a fox", model="huge")
    with pytest.raises(InvalidJob, match=r"job: must be at most 65,536 bytes"):
        client.submit("a fox", metadata={f"{i:02}" + FOXES[2:]: FOXES for i in range(16)})
    with pytest.raises(InvalidJob, match="steps: unknown field; known: version, prompt"):
        client.submit_many([{"prompt": "a fox"}, {"prompt": "a fox", "steps": 5}])
    assert set(broker.keys()) == keys


def test_a_full_queue_refuses_a_job_and_a_batch_as_a_whole(
    client: Client, broker: redis.Redis
) -> None:
    with pytest.raises(QueueFull):
        client.submit_many(["a fox"] * 11)
    assert messages(broker) == []
    job_ids = [str(uuid.uuid4()) for _ in range(10)]
    client.submit_many([{"prompt": "a fox", "job_id": job_id} for job_id in job_ids])
    with pytest.raises(QueueFull, match="10 jobs wait at this priority"):
        client.submit("a fox")
    assert client.submit("a fox", job_id=job_ids[0]).job_id == job_ids[0]
    client.submit("a fox", priority="interactive")
    sent_before = [{"prompt": "a fox", "job_id": job_id} for job_id in job_ids]
    assert [handle.job_id for handle in client.submit_many(sent_before)] == job_ids
    assert len(messages(broker)) == 10


def test_wait_and_progress_follow_a_job_to_its_result(client: Client, traces: Traces) -> None:
    handle = client.submit("a fox")

    def work() -> None:
        traces.mark_running(handle.job_id, 1)
        for step in (10, 20):
            traces.show_progress(handle.job_id, Progress(steps_done=step, steps_asked=20))
            time.sleep(0.3)
        traces.mark_finished(succeeded(handle.job_id))

    assert handle.result() is None
    worker = threading.Thread(target=work)
    worker.start()
    seen = list(handle.progress(timeout_s=10))
    result = handle.wait(timeout_s=10)
    worker.join()

    assert result == succeeded(handle.job_id) == handle.result()
    assert seen[-1].status is Status.SUCCEEDED
    assert Progress(steps_done=10, steps_asked=20) in [trace.progress for trace in seen]


def test_jobs_come_as_they_end_however_they_end(client: Client, traces: Traces) -> None:
    first, second, third = client.submit("a fox", seeds=[1, 2, 3])
    looks: list[int] = []
    results = client.as_completed(
        [first, second, third, second], timeout_s=10, on_look=lambda left: looks.append(len(left))
    )
    traces.mark_finished(succeeded(third.job_id))
    assert next(results) == succeeded(third.job_id)
    cancelled = JobResult(job_id=first.job_id, status=Status.CANCELLED, attempt=0)
    traces.mark_finished(cancelled)
    assert next(results) == cancelled
    traces.mark_finished(succeeded(second.job_id))
    assert list(results) == [succeeded(second.job_id)]
    assert looks[0] == 3
    with pytest.raises(WaitTimeout, match="still submitted"):
        list(client.as_completed([client.submit("a fox")], timeout_s=0.1))
    with pytest.raises(UnknownJob):
        list(client.as_completed([uuid.uuid4()]))


def test_many_jobs_are_asked_after_at_once(client: Client, broker_url: str) -> None:
    with Client(ProducerSettings(broker_url=broker_url)) as roomy:
        handles = roomy.submit_many(["a fox"] * 1_001)
        traces = roomy.statuses(handles)
        assert roomy.known([*handles, uuid.uuid4()]) == {handle.job_id for handle in handles}
    assert [trace.job_id for trace in traces] == [handle.job_id for handle in handles]


def test_a_client_inside_asyncio_does_not_hold_up_its_loop(client: Client, traces: Traces) -> None:
    """The loop itself ends the job while the client waits for it: else nobody would."""

    async def submit_and_wait() -> JobResult:
        handle = await asyncio.to_thread(client.submit, "a fox")
        waiting = asyncio.create_task(asyncio.to_thread(handle.wait, 30))
        progress = handle.progress(timeout_s=30)
        seen = await asyncio.to_thread(next, progress)
        assert seen.status is Status.SUBMITTED
        assert not waiting.done()
        traces.mark_finished(succeeded(handle.job_id))
        last = await asyncio.to_thread(next, progress)
        assert last.status is Status.SUCCEEDED
        return await waiting

    result = asyncio.run(submit_and_wait())
    assert result.status is Status.SUCCEEDED


def test_a_job_without_an_image_raises_what_became_of_it(client: Client, traces: Traces) -> None:
    failed, cancelled = client.submit("a fox"), client.submit("a fox")
    error = JobError(code=ErrorCode.OUT_OF_MEMORY, message="the batch did not fit")
    traces.mark_finished(
        JobResult(job_id=failed.job_id, status=Status.FAILED, attempt=1, error=error)
    )
    traces.mark_finished(JobResult(job_id=cancelled.job_id, status=Status.CANCELLED, attempt=0))

    with pytest.raises(JobFailed, match="out_of_memory: the batch did not fit"):
        failed.wait(timeout_s=5)
    with pytest.raises(JobCancelled):
        cancelled.wait(timeout_s=5)


def test_waiting_ends_in_time(client: Client) -> None:
    handle = client.submit("a fox")
    started_at = time.monotonic()
    with pytest.raises(WaitTimeout, match=r"still submitted after 0\.3 s"):
        handle.wait(timeout_s=0.3)
    assert time.monotonic() - started_at < 1.5


def test_a_job_nobody_submitted_is_unknown_and_not_queued(client: Client) -> None:
    for job_id in (str(uuid.uuid4()), "no-uuid"):
        with pytest.raises(UnknownJob):
            client.status(job_id)
        with pytest.raises(UnknownJob):
            client.cancel(job_id)


def test_position_counts_better_priorities_and_other_namespaces(
    client: Client, traces: Traces
) -> None:
    first, second = client.submit_many(["a fox", "a wolf"])
    assert first.position().num_ahead == 0
    assert second.position().num_ahead == 1
    assert second.position().estimated_wait_s == pytest.approx(10.0)
    client.submit("a cat", priority="interactive", namespace="urgent")
    client.submit_many([{"prompt": "a cat", "namespace": "noisy"}] * 5)
    # One better job, one of its own queue, and two turns of the other queue's five.
    assert second.position().num_ahead == 4
    traces.mark_running(second.job_id, 1)
    assert second.position().num_ahead == 0


def test_cancel_asks_the_io_workers_once(
    client: Client, broker: redis.Redis, traces: Traces
) -> None:
    handle = client.submit("a fox")
    assert handle.cancel() is True
    (message,) = messages(broker, queue="io", number=0)
    assert message["headers"]["task"] == "nirvana.cancel"
    assert arguments(message) == [handle.job_id]
    traces.mark_finished(succeeded(handle.job_id))
    assert handle.cancel() is False


def test_a_client_leaves_no_subscription_and_works_in_many_threads(
    client: Client, broker: redis.Redis
) -> None:
    handles: list[JobHandle] = []
    threads = [
        threading.Thread(target=lambda: handles.append(client.submit("a fox"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({handle.job_id for handle in handles}) == len(messages(broker)) == 8
    assert broker.pubsub_channels("celery-task-meta-*") == []


@pytest.mark.parametrize("kind", ["refuses", "is silent"])
def test_a_broker_that_is_away_is_one_line_within_ten_seconds(kind: str) -> None:
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        if kind == "is silent":
            server.listen()
        url = f"redis://:sesame@127.0.0.1:{server.getsockname()[1]}/0"
        started_at = time.monotonic()
        with (
            Client(ProducerSettings(broker_url=url)) as client,
            pytest.raises(BrokerUnavailable, match=r"redis://127\.0\.0\.1:\d+/0") as raised,
        ):
            client.submit("a fox")
    assert time.monotonic() - started_at < 10
    assert "sesame" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_image_is_downloaded_by_its_url_and_checked(client: Client) -> None:
    with serving({"/a.png": b"png bytes"}) as address:
        image = StoredImage(
            key="images/a.png",
            url=f"{address}/a.png",
            width=64,
            height=64,
            sha256=hashlib.sha256(b"png bytes").hexdigest(),
        )
        job_id = str(uuid.uuid4())
        assert client.image(succeeded(job_id, image=image)) == b"png bytes"
        with pytest.raises(ImageUnavailable, match="checksum differs"):
            client.image(succeeded(job_id, image=image.model_copy(update={"sha256": "0" * 64})))
        missing = image.model_copy(update={"url": f"{address}/b.png"})
        with pytest.raises(ImageUnavailable, match="answers 404: the image is past its retention"):
            client.image(succeeded(job_id, image=missing))
    with pytest.raises(ImageUnavailable, match="has no image: it is succeeded"):
        client.image(succeeded(job_id))
    with pytest.raises(ImageUnavailable, match="has no image yet: it is submitted"):
        client.submit("a fox").image_url()
    with pytest.raises(ImageUnavailable, match=r"no io worker signed .* within 0\.2 s"):
        client.image_url(succeeded(job_id, image=image), timeout_s=0.2)
    with pytest.raises(ImageUnavailable, match="cannot be reached"):
        client.image(succeeded(job_id, image=image))
    with pytest.raises(ImageUnavailable, match="must be http or https"):
        client.image(succeeded(job_id, image=image.model_copy(update={"url": "file:///etc/x"})))


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def _fields(model: ServedModel) -> dict[str, Any]:
    return {name: getattr(model, name) for name in ServedModel.__slots__}
