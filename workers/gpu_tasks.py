"""The GPU worker's Celery task: one message in, one job's committed end out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from uuid import UUID

import redis
from celery import Celery, signals
from celery.exceptions import Ignore

from producer.contract import GENERATE_TASK, ErrorCode, Status
from producer.errors import InvalidJob, JobFailed, UnknownModel
from producer.queues import bucket_queues
from producer.result import JobResult
from workers.admission import only_argument, read_job, require_job_id
from workers.app import (
    as_failure,
    build_app,
    gpu_worker_name,
    run_worker,
    show_failed,
    show_revoked,
    stop_worker,
)
from workers.denoising.engine import Engine
from workers.denoising.errors import EngineClosed
from workers.errors import ClaimLost, DuplicateDelivery, StorageUnavailable
from workers.generate import ReceivedJob, generate
from workers.gpu_process import GpuProcess, gpu_process
from workers.patience import Patience
from workers.process_settings import ProcessSettings
from workers.remote_control import cancellations_heard
from workers.shown import ShownRequest, ShownResult
from workers.unclaimed import readable_part, utc_now

logger = logging.getLogger(__name__)

_WATCH_EVERY_S: Final = 0.2


def serve(settings: ProcessSettings) -> int:
    """Load the model and serve its queues until told to stop; returns the exit status."""
    app = build_app(settings.producer, settings.worker)
    with gpu_process(settings, app) as process:
        register(app, process)
        end_patience = _ending(process.bench.patience)
        signals.worker_shutting_down.connect(end_patience)
        with ending_with(process.bench.engine), cancellations_heard(process.bench.leases.stop):
            return run_worker(
                app,
                name=gpu_worker_name(settings.worker),
                queues=[
                    queue
                    for slug in process.models.slugs
                    for queue in bucket_queues(slug, settings.producer.namespace_buckets)
                ],
                concurrency=settings.worker.jobs_in_flight,
            )


def _ending(patience: Patience) -> Callable[..., None]:
    """What to do when told to stop: jobs that wait for their storage are left to the rescuer."""

    def end_patience(**_: object) -> None:
        patience.close()

    return end_patience


@contextmanager
def ending_with(engine: Engine) -> Iterator[None]:
    """Stop the worker when its engine ends on its own: it could take jobs, and do none."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(_WATCH_EVERY_S):
            if engine.is_closed:
                logger.critical("the engine has ended, and so does this worker")
                stop_worker()
                return

    thread = threading.Thread(target=watch, name="engine-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def register(app: Celery, process: GpuProcess) -> None:
    """Add the task to the app."""

    @app.task(  # type: ignore[untyped-decorator]
        name=GENERATE_TASK,
        bind=True,
        Request=ShownRequest,
        shared=False,  # of this process: another app in it is told of another
    )
    def generate_task(task: Any, *arguments: object, **named: object) -> ShownResult:
        fields = only_argument(arguments, named)
        try:
            result = run_job(process, task.request.id, fields, queue=_queue_of(task))
        except JobFailed as failure:
            raise show_failed(task, task.request.id, failure) from None
        match result.status:
            case Status.SUCCEEDED:
                return ShownResult(result)
            case Status.CANCELLED:
                raise show_revoked(task, result.job_id)
            case _:
                raise show_failed(task, result.job_id, as_failure(result))


def run_job(process: GpuProcess, task_id: str, fields: object, *, queue: str) -> JobResult:
    """Run one message to its job's committed end.

    Of a job that had ended before the message came, that end, told once more: Celery has shown the
    message as started. Raises JobFailed for a message whose id is no job's, and celery's Ignore
    where nothing is to be stored or told: the job is somebody else's, or stays uncommitted and
    comes back by the rescuer.
    """
    job_id = require_job_id(task_id)
    try:
        job = process.models.complete(read_job(task_id, fields))
    except InvalidJob as error:
        return _refuse(process, task_id, fields, queue, ErrorCode.INVALID_JOB, str(error))
    except UnknownModel as error:
        return _refuse(process, task_id, fields, queue, ErrorCode.UNKNOWN_MODEL, str(error))
    received = ReceivedJob(job_id=job_id, job=job, queue=queue, received_at=utc_now())
    try:
        outcome = generate(received, process.bench)
    except DuplicateDelivery as error:
        logger.info("%s", error, extra={"job_id": task_id})
        return _end_before(process, job_id)
    except ClaimLost as error:
        logger.info("%s", error, extra={"job_id": task_id})
        _leave_no_record(process, job_id)
        raise Ignore from error
    except (StorageUnavailable, EngineClosed) as error:
        logger.error("left to the rescuer: %s", error, extra={"job_id": task_id})
        raise Ignore from error
    process.publisher.nudge_delivery(outcome.delivery_id)
    process.metrics.note(outcome.result)
    logger.info("job ended", extra=log_fields(outcome.result, job.namespace))
    return outcome.result


def log_fields(result: JobResult, namespace: str) -> dict[str, object]:
    """Describe a job's end in one line."""
    fields: dict[str, object] = {
        "job_id": result.job_id,
        "namespace": namespace,
        "status": result.status.value,
        "attempt": result.attempt,
    }
    if result.cache is not None and result.steps is not None:
        fields |= {"outcome": result.cache.outcome.value, "k": result.cache.k}
        fields |= {"steps_run": result.steps.run}
    if result.error is not None:
        fields |= {"code": result.error.code.value}
    return fields


def _refuse(
    process: GpuProcess,
    task_id: str,
    fields: object,
    queue: str,
    code: ErrorCode,
    message: str,
) -> JobResult:
    result = process.unclaimed.fail(
        task_id,
        readable_part(fields, task_id),
        queue=queue,
        code=code,
        message=message,
    )
    return result or _end_before(process, UUID(task_id))


def _end_before(process: GpuProcess, job_id: UUID) -> JobResult:
    """Tell how the job ended before; raises celery's Ignore where another worker holds it.

    Also in the trace: a job submitted again after its trace expired has a new one, that waits.
    Of a job that was forgotten nothing is told.
    """
    bench = process.bench
    result = bench.patience.outlast(lambda: bench.ledger.result(job_id))
    if result is None:
        _leave_no_record(process, job_id)
        raise Ignore
    bench.announcer.announce(result)
    return result


def _leave_no_record(process: GpuProcess, job_id: UUID) -> None:
    """Remove trace and Celery's result of a job whose row is gone: it was forgotten.

    Celery has just shown the message as started, with the prompt among its arguments.
    """
    bench = process.bench
    try:
        if not bench.patience.outlast(lambda: bench.ledger.is_known(job_id)):
            process.records.remove([str(job_id)])
    except (redis.RedisError, StorageUnavailable) as error:
        logger.warning("trace left to expire: %s", error, extra={"job_id": str(job_id)})


def _queue_of(task: Any) -> str:
    return str((task.request.delivery_info or {}).get("routing_key") or "")
