"""Who is served next, in a real worker on the real broker: the order in which jobs are claimed.

One job at a time is in flight, so that "within the time of two jobs" is two claims.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Final

import pytest
from celery.result import AsyncResult
from sqlalchemy import text

from producer.broker import open_app
from producer.client import Client
from producer.contract import GENERATE_TASK
from producer.models import ModelTable
from producer.queues import admission_queue, bucket_queue
from producer.settings import ProducerSettings
from tests.served_models import SMALL
from tests.services import TestServices
from tests.tiny_pipeline import build_tiny_pipeline
from tests.worker_processes import Site, site, wait_until, workers

pytestmark = pytest.mark.timeout(300)

BACKLOG: Final = 2_000
NUM_BUCKETS: Final = 8
WAIT_S: Final = 90.0
BUSY: Final = "busy"
# Another bucket than the busy tenant's: two in one bucket share a turn.
OTHER: Final = next(
    name
    for name in map("tenant-{}".format, itertools.count())
    if bucket_queue("tiny", name, NUM_BUCKETS) != bucket_queue("tiny", BUSY, NUM_BUCKETS)
)


@pytest.fixture(scope="module")
def models(
    services: TestServices, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[TestServices, Site]]:
    folder = tmp_path_factory.mktemp("fairness")
    with site(services, folder, build_tiny_pipeline(folder / "tiny")) as place:
        yield services, place


@pytest.fixture
def place(models: tuple[TestServices, Site]) -> Iterator[Site]:
    """A place of the test's own, where clients are told of the model before a worker starts."""
    services, shared = models
    with site(services, shared.folder, shared.model_path) as place:
        with place.connection() as connection:
            tiny = replace(SMALL, slug="tiny", height=16, width=16, size_min=16)
            ModelTable(connection).announce(tiny)
        yield place


@pytest.fixture
def client(place: Site) -> Iterator[Client]:
    with Client(ProducerSettings(broker_url=place.broker_url)) as client:
        yield client


def job(**fields: object) -> dict[str, object]:
    return {"prompt": "a fox", "num_inference_steps": 1, "cache": "bypass", **fields}


def queue_backlog(client: Client, count: int = BACKLOG) -> None:
    client.submit_many(job(namespace=BUSY) for _ in range(count))


def claimed(place: Site) -> list[str]:
    """Ids of the jobs claimed so far, in order."""
    with place.database() as engine, engine.connect() as connection:
        rows = connection.execute(
            text("SELECT id FROM jobs WHERE claimed_at IS NOT NULL ORDER BY claimed_at")
        )
        return [str(row.id) for row in rows]


def wait_for_claims(place: Site, *job_ids: str) -> list[str]:
    wait_until(lambda: set(job_ids) <= set(claimed(place)), WAIT_S)
    return claimed(place)


def submit_behind_a_busy_worker(place: Site, client: Client, **fields: object) -> tuple[str, int]:
    """Submit while the worker works through the backlog; also how many claims came before."""
    wait_until(lambda: len(claimed(place)) >= 3, WAIT_S)
    job_id = str(uuid.uuid4())
    num_before = len(claimed(place))
    client.submit(job(job_id=job_id, **fields))
    return job_id, num_before


def test_a_standard_job_waits_for_two_jobs_behind_2000_of_another_namespace(
    place: Site, client: Client
) -> None:
    queue_backlog(client)
    with workers(place, kinds=["gpu"], NIRVANA_JOBS_IN_FLIGHT="1"):
        overtaken = []
        for _ in range(5):
            job_id, num_before = submit_behind_a_busy_worker(place, client, namespace=OTHER)
            overtaken.append(wait_for_claims(place, job_id).index(job_id) - num_before)
    assert len(claimed(place)) < BACKLOG / 2, "the backlog was there all the time"
    # The one that ran and the one whose turn it was; a claim may fall between count and submission.
    assert sorted(overtaken)[len(overtaken) // 2] <= 2, overtaken


def test_priorities_are_kept_inside_a_namespace(place: Site, client: Client) -> None:
    ids = {
        priority: [client.submit(job(namespace=BUSY, priority=priority)).job_id for _ in range(20)]
        for priority in ("batch", "standard", "interactive")
    }
    with workers(place, kinds=["gpu"], NIRVANA_JOBS_IN_FLIGHT="1"):
        order = wait_for_claims(place, *itertools.chain(*ids.values()))
    assert order == [*ids["interactive"], *ids["standard"], *ids["batch"]]


def test_a_foreign_job_without_a_priority_overtakes_no_interactive_one(
    place: Site, client: Client
) -> None:
    """Celery gives it the number 0, which is kombu's best list."""
    interactive = [
        client.submit(job(namespace=BUSY, priority="interactive")).job_id for _ in range(20)
    ]
    foreign = [str(uuid.uuid4()) for _ in range(20)]
    with closing(open_app(place.broker_url, name="foreign")) as app:
        for job_id in foreign:
            app.send_task(
                GENERATE_TASK,
                args=[job(namespace=BUSY)],
                task_id=job_id,
                queue=admission_queue("tiny"),
            )
        with workers(place, kinds=["io"]):
            wait_until(lambda: _num_waiting(place) == 40, WAIT_S)
        with workers(place, kinds=["gpu"], NIRVANA_JOBS_IN_FLIGHT="1"):
            order = wait_for_claims(place, *interactive, *foreign)
            states = [AsyncResult(job_id, app=app).get(timeout=WAIT_S) for job_id in foreign]
    assert order[:20] == interactive
    assert set(order[20:]) == set(foreign)
    assert len(states) == 20


def _num_waiting(place: Site) -> int:
    with place.connection() as connection:
        return sum(int(connection.zcard(key)) for key in connection.scan_iter("nirvana:waiting:*"))
