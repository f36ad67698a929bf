"""Composition root of a GPU worker: everything its process works with, built and closed."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial

import redis
from celery import Celery
from sqlalchemy import Engine as Database

from cache.approximate import ApproximateCache
from cache.calibration import read_shipped
from cache.database import connect
from cache.objects import S3Objects
from producer.broker import open_connection
from producer.models import ModelTable
from producer.trace import Progress, Traces
from workers.announcer import Announcer
from workers.app import Publisher, gpu_worker_name
from workers.captures import CaptureKeeper
from workers.denoising.engine import Engine
from workers.denoising.threads import run_apart
from workers.denoising.warm_up import warm_up
from workers.generate import Workbench
from workers.images import Images
from workers.job_records import JobRecords
from workers.leaders import Leaders
from workers.leases import LeaseKeeper
from workers.ledger import Ledger
from workers.loading import choose_device, describe_models, open_pool
from workers.metrics.jobs import EngineCollector, JobMetrics
from workers.metrics.serving import metrics_served, new_registry
from workers.model_pool import ModelPool
from workers.patience import Patience
from workers.process_settings import ProcessSettings
from workers.progress import ProgressReporter
from workers.reuse import Reuse
from workers.served_models import ServedModels
from workers.settings import WorkerSettings
from workers.shadows import Shadows
from workers.unclaimed import UnclaimedJobs


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """What the task needs beside the workbench."""

    bench: Workbench
    models: ServedModels
    unclaimed: UnclaimedJobs
    publisher: Publisher
    records: JobRecords
    metrics: JobMetrics


@contextmanager
def gpu_process(settings: ProcessSettings, app: Celery) -> Iterator[GpuProcess]:
    """Build everything a GPU process works with, and close it in reverse order.

    Raises DenoisingError where a model cannot be served.
    """
    with ExitStack() as stack:
        models, pool = describe_models(settings.worker), open_pool(settings.worker)
        engine = stack.enter_context(_start_engine(settings.worker, pool))
        connection = stack.enter_context(closing(open_connection(settings.producer.broker_url)))
        process = _compose(settings, app, models, pool, engine, connection, stack)
        table = ModelTable(connection)
        stack.enter_context(models.announced(table, partial(_seconds_per_step, pool, engine)))
        yield process


def _start_engine(settings: WorkerSettings, pool: ModelPool) -> Engine:
    """Load the default model, measure with it, and start; other models share what was chosen."""
    with pool.lease(settings.model) as family:
        tuning = run_apart(
            lambda: warm_up(
                family,
                batch_size_max=settings.batch_size_max,
                num_threads=settings.num_threads,
                jobs_in_flight=settings.jobs_in_flight,
            )
        )
    return Engine(
        device=choose_device(settings),
        batch_size_max=tuning.batch_size_max,
        threads=tuning.threads,
    )


def _speeds(pool: ModelPool, engine: Engine, worker: WorkerSettings) -> dict[str, float]:
    """Seconds a step of each model that is loaded and has been measured."""
    measured = {slug: _seconds_per_step(pool, engine, slug) for slug in worker.model_paths}
    return {slug: seconds for slug, seconds in measured.items() if seconds is not None}


def _seconds_per_step(pool: ModelPool, engine: Engine, slug: str) -> float | None:
    family = pool.peek(slug)
    return None if family is None else engine.seconds_per_step(family)


def _compose(
    settings: ProcessSettings,
    app: Celery,
    models: ServedModels,
    pool: ModelPool,
    engine: Engine,
    connection: redis.Redis,
    stack: ExitStack,
) -> GpuProcess:
    database = _open_database(settings, stack)
    ledger = _open_ledger(settings, database)
    traces = Traces(connection, retention_s=settings.producer.trace_retention_s)
    announcer = Announcer(ledger, traces)
    publisher = Publisher(app, worker_name=gpu_worker_name(settings.worker))
    cache = stack.enter_context(closing(_open_cache(settings)))
    leases = LeaseKeeper(
        ledger,
        heartbeat_s=settings.worker.heartbeat_s,
        on_stop=lambda claim: engine.cancel(claim.name),
    )
    progress = ProgressReporter(partial(tell_progress, traces, publisher))
    images = _open_images(settings, stack)
    shadows = _start_shadows(engine, pool, images, database, cache)
    bench = Workbench(
        engine=engine,
        models=pool,
        reuse=Reuse(cache, state_kind=settings.cache.cache_state_kind),
        leaders=_open_leaders(settings, cache),
        captures=stack.enter_context(closing(_open_captures(settings.worker, cache))),
        shadows=stack.enter_context(closing(shadows)),
        images=images,
        ledger=ledger,
        leases=stack.enter_context(closing(leases)),
        announcer=announcer,
        progress=stack.enter_context(closing(progress)),
        patience=Patience(settings.worker.storage_patience_s),
    )
    return GpuProcess(
        bench=bench,
        models=models,
        unclaimed=UnclaimedJobs(ledger=ledger, announcer=announcer, publisher=publisher),
        publisher=publisher,
        records=JobRecords(connection, traces, app),
        metrics=_serve_metrics(settings.worker, pool, engine, cache, stack),
    )


def _open_cache(settings: ProcessSettings) -> ApproximateCache:
    shipped = read_shipped(settings.worker.model_paths.values())
    return ApproximateCache.open(settings.cache, shipped=shipped)


def _open_leaders(settings: ProcessSettings, cache: ApproximateCache) -> Leaders:
    return Leaders(
        cache,
        sharing=settings.cache.cache_sharing,
        wait_s=settings.worker.follow_wait_s,
        reroll_fraction=settings.worker.follow_reroll_fraction,
    )


def _start_shadows(
    engine: Engine, pool: ModelPool, images: Images, database: Database, cache: ApproximateCache
) -> Shadows:
    return Shadows(
        engine=engine,
        models=pool,
        images=images,
        database=database,
        fraction_of=lambda namespace: cache.rules(namespace).shadow_fraction,
    )


def _open_captures(worker: WorkerSettings, cache: ApproximateCache) -> CaptureKeeper:
    return CaptureKeeper(
        cache,
        waiting_max=worker.captures_waiting_max,
        waiting_bytes_max=worker.captures_bytes_max,
    )


def _serve_metrics(
    worker: WorkerSettings,
    pool: ModelPool,
    engine: Engine,
    cache: ApproximateCache,
    stack: ExitStack,
) -> JobMetrics:
    """Answer Prometheus where a port is set; jobs are counted in any case."""
    registry = new_registry()
    speeds = partial(_speeds, pool, engine, worker)
    registry.register(EngineCollector(engine, cache.counts, speeds))
    stack.enter_context(
        metrics_served(registry, address=worker.metrics_address, port=worker.gpu_metrics_port)
    )
    return JobMetrics(registry)


def _open_database(settings: ProcessSettings, stack: ExitStack) -> Database:
    database = connect(
        settings.cache.database_url.get_secret_value(),
        # One for each job in flight, the heartbeat, a shadow run and a spare.
        pool_size=settings.worker.jobs_in_flight + 3,
        application_name="nirvana-gpu",
    )
    stack.callback(database.dispose)
    return database


def _open_ledger(settings: ProcessSettings, database: Database) -> Ledger:
    worker = settings.worker
    return Ledger(
        database,
        worker=f"{socket.gethostname()}:{os.getpid()}",
        lease_s=worker.lease_s,
        attempts_max=worker.attempts_max,
    )


def _open_images(settings: ProcessSettings, stack: ExitStack) -> Images:
    objects = S3Objects.from_url(settings.cache.s3_url.get_secret_value())
    return Images(
        stack.enter_context(closing(objects)),
        url_lifetime_s=settings.worker.image_url_lifetime_s,
        public_url=settings.worker.public_s3_url,
    )


def tell_progress(traces: Traces, publisher: Publisher, job_id: str, progress: Progress) -> None:
    """Show progress in the trace and to Celery's clients."""
    if traces.show_progress(job_id, progress):
        publisher.show_progress(job_id, progress)
