"""Forgetting leaves nothing behind, whatever is under way: on real servers and a tiny pipeline."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery.contrib.testing.worker import start_worker
from celery.exceptions import Ignore
from kombu.entity import Queue
from sqlalchemy import Engine, text

from cache.entry import StateKind
from cache.forgotten import JobSubject, NamespaceSubject, Subject, UserSubject
from cache.objects import S3Objects
from fleet.cli import main
from producer.broker import open_connection
from producer.contract import CacheOutcome, GenerationJob
from producer.result import JobResult, StoredImage
from producer.submission import publish
from producer.trace import Traces
from workers.forgetting import ForgetReport, Forgetter
from workers.gpu_process import GpuProcess
from workers.gpu_tasks import register, run_job
from workers.images import Images
from workers.job_records import JobRecords
from workers.ledger import Ledger
from workers.process_settings import ProcessSettings

QUEUE = "generate.tiny.0"
ADA = UserSubject(namespace="studio", user="ada.lovelace")
NUM_STATES = 5  # of a job of 10 steps that starts from noise
TABLES = (
    "jobs",
    "webhook_deliveries",
    "webhook_attempts",
    "endpoints",
    "namespaces",
    "scopes",
    "cached_prompts",
)


@pytest.fixture
def cache_options() -> dict[str, Any]:
    return {"cache_state_kind": StateKind.INTERMEDIATE}


@pytest.fixture
def connection(broker_url: str) -> Iterator[redis.Redis]:
    with closing(open_connection(broker_url)) as connected:
        yield connected


@pytest.fixture
def traces(connection: redis.Redis) -> Traces:
    return Traces(connection, retention_s=3_600)


@pytest.fixture
def forgetter(
    database: Engine, objects: S3Objects, connection: redis.Redis, traces: Traces, app: Celery
) -> Forgetter:
    records = JobRecords(connection, traces, app)
    return Forgetter(database=database, objects=objects, records=records)


def forget(forgetter: Forgetter, subject: Subject) -> ForgetReport:
    return forgetter.forget(subject, now=datetime.now(UTC))


def job_of(user: str, **fields: Any) -> GenerationJob:
    return GenerationJob.from_wire(
        {
            "prompt": f"a fox for {user}",
            "model": "tiny",
            "namespace": "studio",
            "user": user,
            "num_inference_steps": 10,
            "seed": 1,
            "submitted_at": datetime.now(UTC).isoformat(),
            **fields,
        }
    )


def ada(**fields: Any) -> GenerationJob:
    return job_of(ADA.user, **fields)


def submit(traces: Traces, job: GenerationJob) -> str:
    """Write the trace, as a client does before it publishes."""
    job_id = str(uuid.uuid4())
    traces.create(job_id, job, payload_hash=job.payload_hash, queue=QUEUE)
    return job_id


def run(process: GpuProcess, job_id: str, job: GenerationJob) -> JobResult:
    result = run_job(process, job_id, job.to_wire(), queue=QUEUE)
    process.bench.captures.drain()
    return result


def submit_and_run(process: GpuProcess, traces: Traces, job: GenerationJob) -> JobResult:
    return run(process, submit(traces, job), job)


def remains(
    database: Engine, objects: S3Objects, connection: redis.Redis, *words: str
) -> list[str]:
    """Where one of the words is still found: in any row, object key, or value of the broker."""
    found = []
    with database.connect() as looking:
        for table in TABLES:
            rows = looking.execute(text(f"SELECT t::text FROM {table} t")).scalars()
            found += [f"{table}: {row}" for row in rows if any(word in row for word in words)]
    listed = [each.key for each in objects.list("")]
    found += [key for key in listed if any(word in key for word in words)]
    for key in connection.scan_iter("*"):
        value = f"{key} {connection.dump(key)!r}" if key.startswith(("celery", "nirvana")) else ""
        found += [key for word in words if word in value]
    return found


def num_rows(database: Engine, table: str) -> int:
    with database.connect() as looking:
        return int(looking.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())


def test_a_user_goes_whole_and_others_stay(
    process: GpuProcess,
    traces: Traces,
    forgetter: Forgetter,
    database: Engine,
    objects: S3Objects,
    connection: redis.Redis,
) -> None:
    webhook = {"url": "https://example.com/hook", "secret_name": "main"}
    first = submit_and_run(process, traces, ada(webhook=webhook))
    refused = ada(webhook=webhook).to_wire() | {"num_inference_steps": 0}
    second_id = str(uuid.uuid4())
    run_job(process, second_id, refused, queue=QUEUE)
    submit(traces, ada(seed=2))  # nobody has claimed it
    submit_and_run(process, traces, job_of("grace"))

    preview = forgetter.preview(ADA)
    report = forget(forgetter, ADA)

    assert (report.jobs, report.deliveries, report.images) == (2, 2, 1)
    assert (report.traces, report.cached_prompts, report.cached_states) == (2, 1, NUM_STATES)
    assert report.objects_left == 0
    assert replace(preview, is_dry_run=False) == report
    assert remains(database, objects, connection, ADA.user, first.job_id, second_id) == []
    assert num_rows(database, "webhook_deliveries") == 0
    assert len(list(objects.list("images/"))) == 1
    assert len(list(objects.list("states/"))) == NUM_STATES
    again = submit_and_run(process, traces, job_of("grace"))
    assert again.cache is not None
    assert again.cache.outcome is CacheOutcome.HIT


def test_forgetting_again_finds_nothing(
    process: GpuProcess, traces: Traces, forgetter: Forgetter
) -> None:
    submit_and_run(process, traces, ada())
    forget(forgetter, ADA)
    again = forget(forgetter, ADA)
    assert (again.jobs, again.traces, again.cached_states, again.images) == (0, 0, 0, 0)


def test_one_job_goes_with_the_states_it_left(
    process: GpuProcess,
    traces: Traces,
    forgetter: Forgetter,
    database: Engine,
    objects: S3Objects,
    connection: redis.Redis,
) -> None:
    gone = submit_and_run(process, traces, ada())
    stays = submit_and_run(process, traces, ada(prompt="another prompt", cache="refresh"))
    report = forget(forgetter, JobSubject(job_id=uuid.UUID(gone.job_id)))
    assert (report.jobs, report.images, report.traces, report.cached_states) == (
        1,
        1,
        1,
        NUM_STATES,
    )
    assert remains(database, objects, connection, gone.job_id) == []
    assert traces.read(stays.job_id).result is not None
    assert num_rows(database, "cached_prompts") == 1


def test_a_namespace_goes_with_its_endpoints_and_comes_back_with_its_next_job(
    process: GpuProcess,
    traces: Traces,
    forgetter: Forgetter,
    database: Engine,
    objects: S3Objects,
    connection: redis.Redis,
) -> None:
    submit_and_run(process, traces, ada())
    submit_and_run(process, traces, ada(namespace="other"))
    with database.begin() as writing:
        writing.execute(
            text("INSERT INTO endpoints (namespace, name, secrets) VALUES ('studio', 'x', '{s}')")
        )
    report = forget(forgetter, NamespaceSubject(namespace="studio"))
    assert (report.jobs, report.endpoints, report.cached_states) == (1, 1, NUM_STATES)
    assert remains(database, objects, connection, "studio") == []
    # The worker still knows the scope under its old id: its row is made anew.
    submit_and_run(process, traces, ada())
    after = submit_and_run(process, traces, ada())
    assert after.cache is not None
    assert after.cache.outcome is CacheOutcome.HIT


def test_a_message_that_comes_late_leaves_nothing(
    process: GpuProcess,
    app: Celery,
    traces: Traces,
    forgetter: Forgetter,
    database: Engine,
    objects: S3Objects,
    connection: redis.Redis,
) -> None:
    """Through a Celery worker, which shows every message as started before the job is looked at."""
    job = ada()
    job_id = submit(traces, job)
    publish(app, job_id, job, queue=QUEUE)
    forget(forgetter, ADA)
    register(app, process)
    app.conf.task_queues = [Queue(QUEUE)]  # type: ignore[no-untyped-call]
    with start_worker(app, pool="threads", perform_ping_check=False, queues=[QUEUE]):
        wait_until(lambda: not connection.exists(QUEUE, f"{QUEUE}\x06\x163", "unacked"))
        later = submit(traces, ada())  # who comes back is served
        publish(app, later, ada(), queue=QUEUE)
        wait_until(lambda: traces.read(later).status.is_terminal)
    assert remains(database, objects, connection, job_id) == []


def test_a_job_that_runs_is_stopped_and_leaves_nothing(
    process: GpuProcess,
    traces: Traces,
    forgetter: Forgetter,
    database: Engine,
    objects: S3Objects,
    connection: redis.Redis,
) -> None:
    job = ada(num_inference_steps=200, prompt="a long run")
    job_id = submit(traces, job)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, process, job_id, job)
        wait_until(lambda: num_rows(database, "jobs") == 1)
        report = forget(forgetter, ADA)
        with pytest.raises(Ignore):
            running.result(60)
    assert (report.jobs, report.running_jobs) == (1, 1)
    assert remains(database, objects, connection, ADA.user, job_id) == []
    assert list(objects.list("")) == []


class ForgettingImages(Images):
    """Stores an image, and has its user forgotten before the job can be committed."""

    forget: Callable[[], object]

    def put(self, *arguments: Any, **named: Any) -> StoredImage:
        image = super().put(*arguments, **named)
        self.forget()
        return image


def test_an_image_stored_while_its_user_is_forgotten_is_taken_back(
    process: GpuProcess,
    traces: Traces,
    forgetter: Forgetter,
    database: Engine,
    objects: S3Objects,
    connection: redis.Redis,
) -> None:
    images = ForgettingImages(objects, url_lifetime_s=60)
    images.forget = lambda: forget(forgetter, ADA)
    late = replace(process, bench=replace(process.bench, images=images))
    with pytest.raises(Ignore):
        submit_and_run(late, traces, ada())
    assert remains(database, objects, connection, ADA.user) == []
    assert list(objects.list("")) == []


def test_states_that_wait_to_be_stored_are_dropped(
    process: GpuProcess,
    traces: Traces,
    forgetter: Forgetter,
    database: Engine,
    objects: S3Objects,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept: list[tuple[Any, Any]] = []
    monkeypatch.setattr(
        process.bench.captures, "keep", lambda states, then: kept.append((states, then))
    )
    submit_and_run(process, traces, ada())
    monkeypatch.undo()
    forget(forgetter, ADA)
    states, then = kept[0]
    process.bench.captures.keep(states, then=then)
    process.bench.captures.drain()
    assert num_rows(database, "cached_prompts") == 0
    assert list(objects.list("")) == []


def test_a_claim_that_is_being_committed_is_waited_for(
    forgetter: Forgetter, database: Engine, traces: Traces, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(database, worker="one", lease_s=60, attempts_max=3)
    claimed, may_commit = threading.Event(), threading.Event()
    begin = database.begin

    class SlowCommit:
        def __init__(self) -> None:
            self._begun = begin()

        def __enter__(self) -> Any:
            return self._begun.__enter__()

        def __exit__(self, *error: Any) -> Any:
            claimed.set()
            assert may_commit.wait(30)
            return self._begun.__exit__(*error)

    def claim() -> None:
        monkeypatch.setattr(database, "begin", SlowCommit)
        ledger.claim(uuid.uuid4(), ada(), queue=QUEUE, received_at=datetime.now(UTC))

    with ThreadPoolExecutor(2) as pool:
        claiming = pool.submit(claim)
        assert claimed.wait(30)
        monkeypatch.undo()
        forgetting = pool.submit(forget, forgetter, ADA)
        wait_until(lambda: num_waiting_for_locks(database) == 1)
        assert not forgetting.done()
        may_commit.set()
        claiming.result(30)
        assert forgetting.result(30).jobs == 1
    assert num_rows(database, "jobs") == 0


def test_objects_wait_for_a_store_that_is_away(
    process: GpuProcess, traces: Traces, forgetter: Forgetter, database: Engine, objects: S3Objects
) -> None:
    submit_and_run(process, traces, ada())
    away = S3Objects.from_url("http://a:b@127.0.0.1:9/bucket")
    cut_off = Forgetter(database=database, objects=away, records=process.records)
    assert forget(cut_off, ADA).objects_left == NUM_STATES + 1
    assert num_rows(database, "jobs") == 0
    assert forget(forgetter, ADA).objects_left == 0
    assert list(objects.list("")) == []


def addresses(settings: ProcessSettings) -> dict[str, str]:
    return {
        "NIRVANA_DATABASE_URL": settings.cache.database_url.get_secret_value(),
        "NIRVANA_S3_URL": settings.cache.s3_url.get_secret_value(),
        "NIRVANA_BROKER_URL": settings.producer.broker_url,
    }


def forget_command(settings: ProcessSettings, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fleet.cli", "forget", *options],
        env={**addresses(settings), "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def insert_ended_jobs(database: Engine, count: int) -> None:
    with database.begin() as writing:
        writing.execute(
            text("""
                INSERT INTO jobs (id, namespace, owner, model, queue, job, payload_hash, status,
                                  attempt, submitted_at, finished_at)
                SELECT gen_random_uuid(), 'studio', :owner, 'tiny', 'q', '{}', '', 'failed', 1,
                       now(), now()
                  FROM generate_series(1, :count)"""),
            {"owner": ADA.user, "count": count},
        )


def test_a_run_that_is_killed_is_made_good_by_the_next(
    settings: ProcessSettings, database: Engine
) -> None:
    insert_ended_jobs(database, 1_200)
    with database.begin() as holding:
        # A row that it cannot have yet: it is killed while it waits for it.
        holding.execute(text("SELECT id FROM jobs ORDER BY id DESC LIMIT 1 FOR UPDATE"))
        with forget_command(settings, "--user", "studio/ada.lovelace", "--yes") as killed:
            wait_until(lambda: num_rows(database, "jobs") == 1)
            killed.send_signal(signal.SIGKILL)
    assert num_rows(database, "jobs") == 1
    with forget_command(settings, "--user", "studio/ada.lovelace", "--yes", "--json") as again:
        told, complaint = again.communicate(timeout=60)
    assert again.returncode == 0, complaint
    assert json.loads(told)["jobs"] == 1
    assert num_rows(database, "jobs") == 0
    assert num_rows(database, "doomed_objects") == 0


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--user", "studio/ada.lovelace", "--dry-run"], 0, "would be removed"),
        (["--user", "studio/ada.lovelace"], 2, "give --yes"),
        (["--user", "ada"], 2, "must be NAMESPACE/USER"),
        (["--namespace", "Studio"], 2, "--namespace"),
        (["--job", "7"], 2, "must be a UUID"),
        ([], 2, "one of --job, --user and --namespace"),
    ],
)
def test_the_command_removes_nothing_unless_it_is_sure(
    settings: ProcessSettings,
    database: Engine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    said: str,
) -> None:
    insert_ended_jobs(database, 3)
    for name, value in addresses(settings).items():
        monkeypatch.setenv(name, value)
    assert main(["forget", *options]) == code
    told, complaint = capsys.readouterr()
    assert said in told + complaint
    assert num_rows(database, "jobs") == 3


def num_waiting_for_locks(database: Engine) -> int:
    with database.connect() as looking:
        waiting = looking.execute(
            text("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'relation'")
        )
        return int(waiting.scalar_one())


def wait_until(is_so: Callable[[], object], timeout_s: float = 60.0) -> None:
    give_up_at = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
