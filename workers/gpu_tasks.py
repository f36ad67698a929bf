"""The GPU worker: composition root of its process, and the Celery task that runs jobs."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final
from uuid import UUID

import redis
import torch
from celery import Celery
from celery.exceptions import Ignore

from cache.approximate import ApproximateCache
from cache.database import connect
from cache.objects import S3Objects
from cache.settings import CacheSettings
from producer.broker import open_connection
from producer.contract import GENERATE_TASK, ErrorCode, Status
from producer.errors import InvalidJob, JobFailed
from producer.models import ModelTable, ServedModel
from producer.queues import bucket_queues
from producer.result import JobResult
from producer.settings import ProducerSettings
from producer.trace import Progress, Traces
from workers.admission import is_job_id, read_job
from workers.announcer import Announcer
from workers.app import Publisher, as_failure, build_app, run_worker, show_revoked
from workers.captures import CaptureKeeper
from workers.denoising.engine import Engine
from workers.denoising.families import stable_diffusion
from workers.denoising.families.family import Family
from workers.errors import ClaimLost, DuplicateDelivery, StorageUnavailable
from workers.generate import ReceivedJob, Workbench, generate
from workers.images import Images
from workers.leases import LeaseKeeper
from workers.ledger import Ledger
from workers.patience import Patience
from workers.progress import ProgressReporter
from workers.reuse import Reuse
from workers.settings import WorkerSettings
from workers.unclaimed import UnclaimedJobs, readable_part, utc_now

logger = logging.getLogger(__name__)

_ANNOUNCE_MODEL_EVERY_S: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that a GPU worker is told."""

    producer: ProducerSettings
    cache: CacheSettings
    worker: WorkerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """What the task needs beside the workbench."""

    bench: Workbench
    unclaimed: UnclaimedJobs
    publisher: Publisher
    served_model: ServedModel


def serve(settings: Settings) -> int:
    """Load the model and serve its queues until told to stop; returns the exit status."""
    app = build_app(settings.producer, settings.worker)
    with gpu_process(settings, app) as process:
        register(app, process)
        return run_worker(
            app,
            name=f"gpu-{settings.worker.model}",
            queues=bucket_queues(settings.worker.model, settings.producer.namespace_buckets),
            concurrency=settings.worker.jobs_in_flight,
        )


@contextmanager
def gpu_process(settings: Settings, app: Celery) -> Iterator[GpuProcess]:
    """Build everything a GPU process works with, and close it in reverse order."""
    with ExitStack() as stack:
        family = load_family(settings.worker)
        engine = Engine(
            family,
            batch_size_max=settings.worker.batch_size_max,
            num_threads=settings.worker.num_threads,
        )
        stack.callback(engine.close)
        connection = stack.enter_context(closing(open_connection(settings.producer.broker_url)))
        process = _compose(settings, app, family, engine, connection, stack)
        stack.enter_context(_announced(ModelTable(connection), process.served_model, engine))
        yield process


def load_family(settings: WorkerSettings) -> Family:
    """Load the model onto its device; raises DenoisingError where it cannot be served."""
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = settings.latent_dtype
    if dtype == "auto":
        dtype = "float16" if device.startswith("cuda") else "float32"
    return stable_diffusion.load(
        settings.model_path, device=torch.device(device), dtype=getattr(torch, dtype)
    )


def _compose(
    settings: Settings,
    app: Celery,
    family: Family,
    engine: Engine,
    connection: redis.Redis,
    stack: ExitStack,
) -> GpuProcess:
    worker = settings.worker
    database = connect(
        settings.cache.database_url.get_secret_value(),
        pool_size=worker.jobs_in_flight + 2,
        application_name="nirvana-gpu",
    )
    stack.callback(database.dispose)
    objects = stack.enter_context(
        closing(S3Objects.from_url(settings.cache.s3_url.get_secret_value()))
    )
    cache = stack.enter_context(closing(ApproximateCache.open(settings.cache)))
    ledger = Ledger(
        database,
        worker=f"{socket.gethostname()}:{os.getpid()}",
        lease_s=worker.lease_s,
        attempts_max=worker.attempts_max,
    )
    traces = Traces(connection, retention_s=settings.producer.trace_retention_s)
    announcer = Announcer(ledger, traces)
    publisher = Publisher(app)
    bench = Workbench(
        engine=engine,
        reuse=Reuse(cache, family, model=worker.model, state_kind=settings.cache.cache_state_kind),
        captures=stack.enter_context(
            closing(CaptureKeeper(cache, waiting_max=worker.captures_waiting_max))
        ),
        images=Images(
            objects,
            url_lifetime_s=worker.image_url_lifetime_s,
            public_url=worker.public_s3_url,
        ),
        ledger=ledger,
        leases=stack.enter_context(
            closing(
                LeaseKeeper(
                    ledger,
                    heartbeat_s=worker.heartbeat_s,
                    on_stop=lambda job_id: engine.cancel(str(job_id)),
                )
            )
        ),
        announcer=announcer,
        progress=stack.enter_context(
            closing(ProgressReporter(partial(tell_progress, traces, publisher)))
        ),
        patience=Patience(worker.storage_patience_s),
    )
    return GpuProcess(
        bench=bench,
        unclaimed=UnclaimedJobs(ledger=ledger, announcer=announcer, publisher=publisher),
        publisher=publisher,
        served_model=describe_model(worker, family),
    )


def describe_model(settings: WorkerSettings, family: Family) -> ServedModel:
    """Tell clients what this worker serves."""
    spec = family.spec
    return ServedModel(
        slug=settings.model,
        is_default=True,
        num_inference_steps=spec.num_inference_steps,
        guidance_scale=spec.guidance_scale,
        height=spec.height,
        width=spec.width,
        size_multiple=spec.unit,
        size_min=spec.size_min,
        size_max=min(spec.size_max, settings.image_size_max),
        seconds_per_step=0.0,
        jobs_in_flight=settings.jobs_in_flight,
    )


@contextmanager
def _announced(table: ModelTable, model: ServedModel, engine: Engine) -> Iterator[None]:
    """Keep the model in `nirvana:models` while the block runs."""
    closing_down = threading.Event()

    def announce() -> None:
        while True:
            measured = engine.seconds_per_step or 0.0
            try:
                table.announce(replace(model, seconds_per_step=measured))
            except redis.RedisError as error:
                logger.warning("model not announced: %s", error)
            if closing_down.wait(_ANNOUNCE_MODEL_EVERY_S):
                return

    thread = threading.Thread(target=announce, name="models", daemon=True)
    thread.start()
    try:
        yield
    finally:
        closing_down.set()
        thread.join()


def tell_progress(traces: Traces, publisher: Publisher, job_id: str, progress: Progress) -> None:
    """Show progress in the trace and to Celery's clients."""
    traces.show_progress(job_id, progress)
    publisher.show_progress(job_id, progress)


def register(app: Celery, process: GpuProcess) -> None:
    """Add the task to the app."""

    @app.task(name=GENERATE_TASK, bind=True, throws=(JobFailed,))  # type: ignore[untyped-decorator]
    def generate_task(task: Any, fields: object) -> dict[str, Any]:
        result: JobResult = run_job(process, task.request.id, fields, queue=_queue_of(task))
        match result.status:
            case Status.SUCCEEDED:
                return result.to_wire()
            case Status.CANCELLED:
                raise show_revoked(task, result.job_id)
            case _:
                raise as_failure(result)


def run_job(process: GpuProcess, task_id: str, fields: object, *, queue: str) -> JobResult:
    """Run one message to its job's committed end.

    Raises celery's Ignore where nothing is to be stored or told: the job is somebody else's, or
    stays uncommitted and comes back by the rescuer.
    """
    if not is_job_id(task_id):
        raise JobFailed(ErrorCode.INVALID_JOB, f"the task id must be a UUID, not {task_id!r}")
    try:
        job = process.served_model.complete(read_job(task_id, fields))
    except InvalidJob as error:
        return _refuse(process, task_id, fields, queue, str(error))
    received = ReceivedJob(job_id=UUID(task_id), job=job, queue=queue, received_at=utc_now())
    try:
        outcome = generate(received, process.bench)
    except (DuplicateDelivery, ClaimLost) as error:
        logger.info("%s", error, extra={"job_id": task_id})
        raise Ignore from error
    except StorageUnavailable as error:
        logger.error("left to the rescuer: %s", error, extra={"job_id": task_id})
        raise Ignore from error
    process.publisher.nudge_delivery(outcome.delivery_id)
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
    process: GpuProcess, task_id: str, fields: object, queue: str, message: str
) -> JobResult:
    result = process.unclaimed.fail(
        task_id,
        readable_part(fields, task_id),
        queue=queue,
        code=ErrorCode.INVALID_JOB,
        message=message,
    )
    if result is None:
        raise Ignore
    return result


def _queue_of(task: Any) -> str:
    return str((task.request.delivery_info or {}).get("routing_key") or "")
