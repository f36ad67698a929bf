"""1,000 malformed jobs through the queue, the client and the command line's file.

Real worker processes on a tiny pipeline. Each job is refused with a message that names a field the
fuzzer broke, or runs; no worker dies, no traceback reaches a user, and the queues drain.
"""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
from celery import Celery
from celery.result import AsyncResult
from sqlalchemy import text

from fleet.cli import main
from producer.broker import open_app
from producer.client import Client
from producer.contract import GENERATE_TASK
from producer.errors import InvalidJob, UnknownModel
from producer.queues import admission_queue, bucket_queue
from producer.settings import ProducerSettings
from tests.job_fuzzer import JOB, FuzzedJob, JobFuzzer
from tests.services import TestServices
from tests.tiny_pipeline import build_tiny_pipeline
from tests.worker_processes import Site, WorkerProcess, site, wait_until, workers

pytestmark = pytest.mark.timeout(600)

QUEUED, CALLED, FILED, MUTATED = 400, 300, 250, 50
WAIT_S: Final = 240.0
BUCKET: Final = bucket_queue("tiny", "default", 8)
# Messages that only a foreign client can send, into the list as kombu keeps it.
BROKEN_BODIES: Final = {
    "no JSON": b"{",
    "an endless number": b'[[{"prompt": "a", "seed": ' + b"9" * 10_000 + b"}], {}, {}]",
    "nested without end": b"[" * 200_000,
    "not three parts": b'{"prompt": "a fox"}',
    "not UTF-8": b'[[{"prompt": "\xff"}], {}, {}]',
    "nothing": b"",
}


@pytest.fixture(scope="module")
def place(services: TestServices, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("malformed")
    with site(services, folder, build_tiny_pipeline(folder / "tiny")) as place:
        yield place


@pytest.fixture(scope="module")
def running(place: Site) -> Iterator[dict[str, WorkerProcess]]:
    """Both workers; asserts at the end that the queues drained and that both outlived it all."""
    with workers(place, NIRVANA_JOBS_IN_FLIGHT="8") as running:
        yield running
        wait_until(lambda: place.num_messages() == 0, WAIT_S)
        for worker in running.values():
            worker.check_alive()
            assert worker.stop() == 0, worker.log[-4_000:]


@pytest.fixture
def quiet(running: dict[str, WorkerProcess]) -> Iterator[None]:
    """Assert that no worker logs a traceback meanwhile."""
    read_until = {kind: len(worker.log) for kind, worker in running.items()}
    yield
    for kind, worker in running.items():
        before, found, after = worker.log[read_until[kind] :].partition("Traceback")
        assert not found, before[-500:] + found + after[:4_000]
        assert "CRITICAL" not in before


@pytest.fixture
def fuzzer(place: Site, quiet: None, request: pytest.FixtureRequest) -> JobFuzzer:
    model = place.served()
    assert model is not None
    return JobFuzzer(len(request.node.name), model)


@pytest.fixture
def app(place: Site) -> Iterator[Celery]:
    with closing(open_app(place.broker_url, name="foreign")) as app:
        yield app


@pytest.fixture
def client(place: Site) -> Iterator[Client]:
    with Client(ProducerSettings(broker_url=place.broker_url)) as client:
        yield client


def check_refusal(job: FuzzedJob, field: str, message: str) -> None:
    assert job.refuses(field), (message, job)
    assert message.isprintable()
    assert "Traceback" not in message


def statuses(place: Site, job_ids: list[str]) -> dict[str, str]:
    with place.database() as engine, engine.connect() as connection:
        rows = connection.execute(
            text("SELECT id, status FROM jobs WHERE id = ANY(CAST(:ids AS uuid[]))"),
            {"ids": job_ids},
        )
        return {str(row.id): row.status for row in rows}


def test_through_the_queue(place: Site, fuzzer: JobFuzzer, app: Celery) -> None:
    """As a foreign client's, for an io worker to admit, or past it straight to a GPU worker."""
    sent: dict[str, FuzzedJob] = {}
    for number, job in enumerate(fuzzer.jobs(QUEUED)):
        job_id = str(uuid.uuid4())
        queue = BUCKET if number % 4 == 0 else admission_queue("tiny")
        arguments, named = _as_arguments(job, number)
        app.send_task(GENERATE_TASK, args=arguments, kwargs=named, task_id=job_id, queue=queue)
        is_whole = arguments == [job.sent] and not named
        sent[job_id] = job if is_whole else FuzzedJob(sent=arguments, broken=frozenset({JOB}))
    for job_id, job in sent.items():
        outcome = AsyncResult(job_id, app=app)
        result = outcome.get(timeout=WAIT_S, propagate=False)
        assert outcome.state == ("FAILURE" if job.broken else "SUCCESS"), (result, job)
        if job.broken:
            code, field, _ = str(result).split(": ", 2)
            assert code in ("invalid_job", "unknown_model")
            check_refusal(job, field, str(result))
            assert outcome.traceback is None
    expected = {i: "failed" if job.broken else "succeeded" for i, job in sent.items()}
    assert statuses(place, list(sent)) == expected


def _as_arguments(job: FuzzedJob, number: int) -> tuple[list[Any], dict[str, Any]]:
    """Mostly the one positional argument; else what an author might take for it."""
    match number % 50:
        case 1:
            return [], {}
        case 2:
            return [job.sent, job.sent], {}
        case 3:
            return [], {"job": job.sent}
        case 4 if isinstance(job.sent, dict):
            return [job.sent], {"priority": 1}
        case _:
            return [job.sent], {}


@pytest.mark.parametrize("body", BROKEN_BODIES.values(), ids=BROKEN_BODIES)
@pytest.mark.parametrize("queue", [BUCKET, admission_queue("tiny")])
def test_a_body_that_is_no_message_is_dropped(
    place: Site, running: dict[str, WorkerProcess], queue: str, body: bytes
) -> None:
    envelope = {
        "body": body.decode("latin-1"),
        "content-type": "application/json",
        "content-encoding": "latin-1" if b"\xff" not in body else "utf-8",
        "headers": {"task": GENERATE_TASK, "id": str(uuid.uuid4())},
        "properties": {
            "delivery_tag": str(uuid.uuid4()),
            "delivery_info": {"exchange": "", "routing_key": queue},
        },
    }
    with place.connection() as connection:
        connection.lpush(queue, json.dumps(envelope))
    wait_until(lambda: place.num_messages() == 0, WAIT_S)
    for worker in running.values():
        worker.check_alive()


def test_through_the_client(place: Site, fuzzer: JobFuzzer, client: Client) -> None:
    job_ids = []
    for job in fuzzer.jobs(CALLED):
        if not job.broken or isinstance(job.sent, str):  # a prompt alone is a job here
            job_ids.append(client.submit(job.sent).job_id)
            continue
        with pytest.raises((InvalidJob, UnknownModel)) as raised:
            pytest.fail(f"{client.submit(job.sent)} was not refused: {job}")
        field = raised.value.field if isinstance(raised.value, InvalidJob) else "model"
        check_refusal(job, field, str(raised.value))
    for job_id in job_ids:
        client.wait(job_id, timeout_s=WAIT_S)
    assert set(statuses(place, job_ids).values()) == {"succeeded"}


@pytest.fixture
def submit(
    place: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Run `nirvana submit --file` on a file of one line."""
    monkeypatch.setenv("NIRVANA_BROKER_URL", place.broker_url)
    file = tmp_path / "jobs.jsonl"

    def submit(line: bytes) -> tuple[int, list[str], str]:
        file.write_bytes(line + b"\n")
        # Some lines are made twice.
        code = main(["submit", "--file", str(file), "--again"])
        printed = capsys.readouterr()
        assert printed.err.count("\n") <= 1, printed.err
        assert "Traceback" not in printed.err
        assert "unexpected" not in printed.err
        return code, printed.out.split(), printed.err.removeprefix(f"nirvana: {file}:1: ").strip()

    return submit


def test_through_a_file_of_the_command_line(
    place: Site, fuzzer: JobFuzzer, client: Client, submit: Any
) -> None:
    job_ids: list[str] = []
    for job in fuzzer.jobs(FILED):
        code, printed, refused = submit(job.line)
        if job.broken:
            assert code == 2, (refused, job)
            field, separator, _ = refused.partition(": ")
            named = field if separator else JOB
            is_object = isinstance(job.sent, dict)
            assert job.refuses(named) if is_object else "must be a JSON object" in refused, refused
        else:
            assert (code, refused) == (0, ""), (refused, job)
            job_ids += printed
    for job_id in job_ids:
        client.wait(job_id, timeout_s=WAIT_S)
    assert set(statuses(place, job_ids).values()) == {"succeeded"}


def test_through_a_file_with_bytes_changed(fuzzer: JobFuzzer, client: Client, submit: Any) -> None:
    """What an editor, a disk or a pipe makes of a line: refused in one line, or run."""
    changes = random.Random(50)
    job_ids: list[str] = []
    for job in fuzzer.jobs(MUTATED):
        line = bytearray(job.line)[:2_000]
        for _ in range(changes.randint(1, 3)):
            line[changes.randrange(len(line))] = changes.choice(b'{}[]",:\\\x00\xff\xf0 0')
        code, printed, refused = submit(bytes(line).replace(b"\n", b" "))
        assert (code == 2 and refused) or (code == 0 and printed), refused
        job_ids += printed
    for job_id in job_ids:
        client.wait(job_id, timeout_s=WAIT_S)
