"""The io worker and beat: composition root of their processes, and the periodic tasks.

No torch, even indirectly (a test holds it): these run on machines without a GPU.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import redis
from celery import Celery
from celery.exceptions import Ignore
from sqlalchemy import Engine

from cache.database import connect
from cache.eviction import evict
from cache.objects import S3Objects
from cache.settings import CacheSettings
from cache.sweep import sweep
from producer.broker import open_connection
from producer.contract import CANCEL_TASK, GENERATE_TASK, ErrorCode, Priority
from producer.errors import InvalidJob, JobFailed, UnknownModel
from producer.models import ModelTable
from producer.queues import IO_QUEUE, MAINTENANCE_QUEUE, admission_queue
from producer.settings import ProducerSettings
from producer.trace import Traces
from workers.admission import Admission, is_job_id
from workers.announcer import Announcer
from workers.app import (
    ANNOUNCE_TASK,
    DELIVER_DUE_TASK,
    DELIVER_TASK,
    EVICT_TASK,
    RESCUE_TASK,
    SWEEP_TASK,
    Publisher,
    build_app,
    run_worker,
)
from workers.cancellation import Cancellation
from workers.delivery.deliver import DeliverySettings, deliver
from workers.ledger import Ledger
from workers.rescuer import Rescuer
from workers.settings import WorkerSettings
from workers.unclaimed import UnclaimedJobs, utc_now

logger = logging.getLogger(__name__)

_CONCURRENCY: Final = 8
# What a report tells also where nothing was done.
_STANDING: Final = frozenset({"live_bytes", "is_repaired", "is_complete"})
_ENDS_PER_RUN_MAX: Final = 1_000
_ANNOUNCE_GRACE_S: Final = 5.0  # the worker that ended the job tells it first


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that an io worker is told."""

    producer: ProducerSettings
    cache: CacheSettings
    worker: WorkerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class IoProcess:
    """What the tasks of an io worker work with."""

    settings: Settings
    database: Engine
    objects: S3Objects
    admission: Admission
    announcer: Announcer
    cancellation: Cancellation
    rescuer: Rescuer
    delivery: DeliverySettings


class ValkeyLists:
    """Lengths of kombu's lists: the queue's name, and for a number other than 0 that after it."""

    def __init__(self, connection: redis.Redis) -> None:
        self._connection = connection

    def length(self, queue: str, priority: Priority) -> int:
        """Messages that wait there."""
        number = priority.celery_number
        name = f"{queue}\x06\x16{number}" if number else queue
        return int(self._connection.llen(name))


def serve(settings: Settings) -> int:
    """Serve webhooks, cancellations, admissions and maintenance; returns the exit status."""
    app = build_app(settings.producer, settings.worker)
    with io_process(settings, app) as process:
        register(app, process)
        queues = [IO_QUEUE, MAINTENANCE_QUEUE, admission_queue(settings.worker.model)]
        return run_worker(app, name="io", queues=queues, concurrency=_CONCURRENCY)


def run_beat(producer: ProducerSettings, worker: WorkerSettings, *, schedule_path: Path) -> None:
    """Send the periodic tasks until told to stop; exactly one process of a fleet does."""
    app = build_app(producer, worker)
    app.Beat(schedule=str(schedule_path), loglevel="WARNING").run()


@contextmanager
def io_process(settings: Settings, app: Celery) -> Iterator[IoProcess]:
    """Build everything an io worker works with, and close it in reverse order."""
    with ExitStack() as stack:
        connection = stack.enter_context(closing(open_connection(settings.producer.broker_url)))
        database = connect(
            settings.cache.database_url.get_secret_value(),
            pool_size=_CONCURRENCY + 2,
            application_name="nirvana-io",
        )
        stack.callback(database.dispose)
        objects = stack.enter_context(
            closing(S3Objects.from_url(settings.cache.s3_url.get_secret_value()))
        )
        yield _compose(settings, app, connection, database, objects)


def _compose(
    settings: Settings,
    app: Celery,
    connection: redis.Redis,
    database: Engine,
    objects: S3Objects,
) -> IoProcess:
    worker = settings.worker
    ledger = Ledger(
        database,
        worker=f"{socket.gethostname()}:{os.getpid()}",
        lease_s=worker.lease_s,
        attempts_max=worker.attempts_max,
    )
    traces = Traces(connection, retention_s=settings.producer.trace_retention_s)
    publisher = Publisher(app)
    announcer = Announcer(ledger, traces, show_end=publisher.show_end)
    unclaimed = UnclaimedJobs(ledger=ledger, announcer=announcer, publisher=publisher)
    return IoProcess(
        settings=settings,
        database=database,
        objects=objects,
        admission=Admission(
            models=ModelTable(connection),
            traces=traces,
            publisher=publisher,
            unclaimed=unclaimed,
            num_buckets=settings.producer.namespace_buckets,
        ),
        announcer=announcer,
        cancellation=Cancellation(ledger=ledger, traces=traces, unclaimed=unclaimed),
        rescuer=Rescuer(
            ledger=ledger,
            traces=traces,
            publisher=publisher,
            unclaimed=unclaimed,
            lists=ValkeyLists(connection),
            attempts_max=worker.attempts_max,
            grace_s=worker.resend_grace_s,
        ),
        delivery=DeliverySettings(
            timeout_s=worker.webhook_timeout_s,
            allow_private_addresses=worker.webhook_allow_private_addresses,
            default_secret=worker.webhook_secret,
        ),
    )


def register(app: Celery, process: IoProcess) -> None:
    """Add the tasks to the app."""
    _register_requests(app, process)
    _register_maintenance(app, process)


def _register_requests(app: Celery, process: IoProcess) -> None:
    @app.task(name=GENERATE_TASK, bind=True, throws=(JobFailed,))  # type: ignore[untyped-decorator]
    def admit_task(task: Any, fields: object) -> None:
        admit(process, task.request.id, fields, queue=task.request.delivery_info["routing_key"])
        raise Ignore  # the job goes on elsewhere under the same id: store no result for it here

    @app.task(name=CANCEL_TASK)  # type: ignore[untyped-decorator]
    def cancel_task(job_id: str) -> bool:
        return process.cancellation.cancel(job_id)

    @app.task(name=DELIVER_TASK)  # type: ignore[untyped-decorator]
    def deliver_task(delivery_id: str) -> dict[str, int]:
        return deliver_now(process, UUID(delivery_id))


def _register_maintenance(app: Celery, process: IoProcess) -> None:
    """Add the periodic tasks; they send no events, so that Flower shows jobs."""
    settings = process.settings

    def periodic(name: str, work: Callable[[], dict[str, Any]]) -> None:
        @app.task(name=name, send_events=False, ignore_result=True)  # type: ignore[untyped-decorator]
        def periodic_task() -> dict[str, Any]:
            return _logged(name, work)

    periodic(DELIVER_DUE_TASK, lambda: deliver_now(process))
    periodic(RESCUE_TASK, lambda: asdict(process.rescuer.run()))
    periodic(ANNOUNCE_TASK, lambda: {"announced": _announce_due(process)})
    periodic(
        EVICT_TASK,
        lambda: asdict(evict(process.database, process.objects, settings.cache, now=utc_now())),
    )
    periodic(
        SWEEP_TASK,
        lambda: asdict(
            sweep(
                process.database,
                process.objects,
                now=utc_now(),
                repair=True,
                grace_s=settings.cache.cache_sweep_grace_s,
            )
        ),
    )


def deliver_now(process: IoProcess, delivery_id: UUID | None = None) -> dict[str, int]:
    """Attempt one delivery, or all that are due."""
    report = deliver(process.database, process.delivery, now=utc_now(), delivery_id=delivery_id)
    return asdict(report)


def _announce_due(process: IoProcess) -> int:
    told = process.announcer.announce_due(older_than_s=_ANNOUNCE_GRACE_S, limit=_ENDS_PER_RUN_MAX)
    return len(told)


def _logged(name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run a periodic task, and say so only where it did something."""
    report = work()
    if any(value for field, value in report.items() if field not in _STANDING):
        logger.info(name, extra=report)
    return report


def admit(process: IoProcess, task_id: str, fields: object, *, queue: str) -> None:
    """Admit a foreign client's job; raises JobFailed where it is refused."""
    if not is_job_id(task_id):
        raise JobFailed(ErrorCode.INVALID_JOB, f"the task id must be a UUID, not {task_id!r}")
    try:
        process.admission.admit(task_id, fields, queue=queue)
    except InvalidJob as error:
        raise JobFailed(ErrorCode.INVALID_JOB, str(error)) from None
    except UnknownModel as error:
        raise JobFailed(ErrorCode.UNKNOWN_MODEL, str(error)) from None
