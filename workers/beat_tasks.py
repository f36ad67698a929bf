"""The io worker's Celery tasks: requests without a GPU, and what beat has done periodically."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from celery import Celery
from celery.exceptions import Ignore

from cache.eviction import evict
from cache.nearest_index import maintain
from cache.sweep import sweep
from producer.contract import CANCEL_TASK, GENERATE_TASK, SIGN_TASK, ErrorCode
from producer.errors import InvalidJob, JobFailed, UnknownModel
from producer.queues import IO_QUEUE, MAINTENANCE_QUEUE, admission_queue
from producer.settings import ProducerSettings
from workers.admission import only_argument, require_job_id
from workers.app import (
    ANNOUNCE_TASK,
    DELIVER_DUE_TASK,
    DELIVER_TASK,
    EVICT_TASK,
    EXPIRE_TASK,
    INDEX_TASK,
    IO_WORKER_NAME,
    REFIT_TASK,
    RESCUE_TASK,
    SWEEP_TASK,
    build_app,
    run_worker,
    show_failed,
)
from workers.image_sweep import sweep_images
from workers.io_process import CONCURRENCY, IoProcess, io_process
from workers.process_settings import ProcessSettings
from workers.settings import WorkerSettings
from workers.shown import ShownRequest
from workers.unclaimed import utc_now

logger = logging.getLogger(__name__)

# What a report tells also where nothing was done.
_STANDING: Final = frozenset({"live_bytes", "is_repaired", "is_complete"})
_ENDS_PER_RUN_MAX: Final = 1_000
_ANNOUNCE_GRACE_S: Final = 5.0  # the worker that ended the job tells it first


def serve(settings: ProcessSettings) -> int:
    """Serve webhooks, cancellations, admissions and maintenance; returns the exit status."""
    app = build_app(settings.producer, settings.worker)
    with io_process(settings, app) as process:
        register(app, process)
        admission_queues = [admission_queue(slug) for slug in settings.worker.model_paths]
        queues = [IO_QUEUE, MAINTENANCE_QUEUE, *admission_queues]
        return run_worker(app, name=IO_WORKER_NAME, queues=queues, concurrency=CONCURRENCY)


def run_beat(producer: ProducerSettings, worker: WorkerSettings, *, schedule_path: Path) -> None:
    """Send the periodic tasks until told to stop; exactly one process of a fleet does."""
    app = build_app(producer, worker)
    # Hidden like the tasks' own events: some a second would push the jobs out of Flower.
    app.conf.task_send_sent_event = False
    app.Beat(schedule=str(schedule_path), loglevel="WARNING").run()


def register(app: Celery, process: IoProcess) -> None:
    """Add the tasks to the app, and to no other app of this process (`shared`)."""
    _register_requests(app, process)
    _register_maintenance(app, process)


def _register_requests(app: Celery, process: IoProcess) -> None:
    # Not shown as started: it only begins to wait, or, if sent twice, has ended long ago.
    @app.task(  # type: ignore[untyped-decorator]
        name=GENERATE_TASK,
        bind=True,
        Request=ShownRequest,
        track_started=False,
        shared=False,
    )
    def admit_task(task: Any, *arguments: object, **named: object) -> None:
        fields = only_argument(arguments, named)
        try:
            admit(process, task.request.id, fields, queue=task.request.delivery_info["routing_key"])
        except JobFailed as failure:
            raise show_failed(task, task.request.id, failure) from None
        raise Ignore  # the job goes on elsewhere under the same id: store no result for it here

    @app.task(name=CANCEL_TASK, shared=False)  # type: ignore[untyped-decorator]
    def cancel_task(job_id: str) -> bool:
        return process.cancellation.cancel(job_id)

    @app.task(name=SIGN_TASK, ignore_result=True, shared=False)  # type: ignore[untyped-decorator]
    def sign_task(job_id: str, token: str) -> None:
        process.image_urls.answer(UUID(job_id), token)

    @app.task(name=DELIVER_TASK, shared=False)  # type: ignore[untyped-decorator]
    def deliver_task(delivery_id: str) -> dict[str, int]:
        return {"begun": process.deliverer.send_due(UUID(delivery_id))}


def _register_maintenance(app: Celery, process: IoProcess) -> None:
    """Add the periodic tasks; they send no events, so that Flower shows jobs."""
    settings = process.settings

    def periodic(name: str, work: Callable[[], dict[str, Any]]) -> None:
        @app.task(  # type: ignore[untyped-decorator]
            name=name, send_events=False, ignore_result=True, shared=False
        )
        def periodic_task() -> dict[str, Any]:
            return _logged(process, name, work)

    periodic(DELIVER_DUE_TASK, lambda: {"begun": process.deliverer.send_due()})
    periodic(RESCUE_TASK, lambda: asdict(process.rescuer.run()))
    periodic(ANNOUNCE_TASK, lambda: {"announced": _announce_due(process)})
    periodic(
        EVICT_TASK,
        lambda: asdict(evict(process.database, process.objects, settings.cache, now=utc_now())),
    )
    periodic(SWEEP_TASK, lambda: sweep_now(process))
    periodic(INDEX_TASK, lambda: asdict(maintain(settings.cache)))
    periodic(EXPIRE_TASK, lambda: asdict(process.retention.run(now=utc_now())))
    periodic(REFIT_TASK, lambda: refit_now(process))


def sweep_now(process: IoProcess) -> dict[str, Any]:
    """Remove images and states that nothing points at, and rows that point at nothing."""
    grace_s = process.settings.cache.cache_sweep_grace_s
    images = sweep_images(process.database, process.objects, now=utc_now(), grace_s=grace_s)
    states = sweep(process.database, process.objects, now=utc_now(), repair=True, grace_s=grace_s)
    return asdict(images) | asdict(states)


def refit_now(process: IoProcess) -> dict[str, Any]:
    """Fit the match predictors anew where they are on."""
    if not process.settings.cache.cache_predictor:
        return {}
    # Only here: scikit-learn is needed by nobody else, and slow to load.
    from cache.refit import refit

    return asdict(refit(process.database, now=utc_now()))


def _announce_due(process: IoProcess) -> int:
    told = process.announcer.announce_due(older_than_s=_ANNOUNCE_GRACE_S, limit=_ENDS_PER_RUN_MAX)
    return len(told)


def _logged(process: IoProcess, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run a periodic task, count what it did, and log it only where it did something."""
    report = work()
    done = {field: value for field, value in report.items() if field not in _STANDING}
    process.maintenance.note(name, done)
    if any(done.values()):
        logger.info(name, extra=report)
    return report


def admit(process: IoProcess, task_id: str, fields: object, *, queue: str) -> None:
    """Admit a foreign client's job; raises JobFailed where it is refused."""
    require_job_id(task_id)
    try:
        process.admission.admit(task_id, fields, queue=queue)
    except InvalidJob as error:
        raise JobFailed(ErrorCode.INVALID_JOB, str(error)) from None
    except UnknownModel as error:
        raise JobFailed(ErrorCode.UNKNOWN_MODEL, str(error)) from None
