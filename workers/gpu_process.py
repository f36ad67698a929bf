"""Composition root of a GPU worker: everything its process works with, built and closed."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import redis
import torch
from celery import Celery

from cache.approximate import ApproximateCache
from cache.database import connect
from cache.objects import S3Objects
from producer.broker import open_connection
from producer.models import ModelTable, ServedModel
from producer.trace import Progress, Traces
from workers.announcer import Announcer
from workers.app import Publisher
from workers.captures import CaptureKeeper
from workers.denoising.engine import Engine
from workers.denoising.families import loading
from workers.denoising.families.family import Family
from workers.generate import Workbench
from workers.images import Images
from workers.leases import LeaseKeeper
from workers.ledger import Ledger
from workers.patience import Patience
from workers.process_settings import ProcessSettings
from workers.progress import ProgressReporter
from workers.reuse import Reuse
from workers.settings import WorkerSettings
from workers.unclaimed import UnclaimedJobs

logger = logging.getLogger(__name__)

_ANNOUNCE_MODEL_EVERY_S: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """What the task needs beside the workbench."""

    bench: Workbench
    unclaimed: UnclaimedJobs
    publisher: Publisher
    served_model: ServedModel


@contextmanager
def gpu_process(settings: ProcessSettings, app: Celery) -> Iterator[GpuProcess]:
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
    dtype = None if settings.latent_dtype == "auto" else getattr(torch, settings.latent_dtype)
    return loading.load(
        settings.model_path, device=device, dtype=dtype, scheduler=settings.scheduler
    )


def _compose(
    settings: ProcessSettings,
    app: Celery,
    family: Family,
    engine: Engine,
    connection: redis.Redis,
    stack: ExitStack,
) -> GpuProcess:
    ledger = _open_ledger(settings, stack)
    traces = Traces(connection, retention_s=settings.producer.trace_retention_s)
    announcer, publisher = Announcer(ledger, traces), Publisher(app)
    cache = stack.enter_context(closing(ApproximateCache.open(settings.cache)))
    captures = CaptureKeeper(cache, waiting_max=settings.worker.captures_waiting_max)
    leases = LeaseKeeper(
        ledger,
        heartbeat_s=settings.worker.heartbeat_s,
        on_stop=lambda claim: engine.cancel(claim.name),
    )
    progress = ProgressReporter(partial(tell_progress, traces, publisher))
    bench = Workbench(
        engine=engine,
        reuse=_plan_reuse(settings, cache, family),
        captures=stack.enter_context(closing(captures)),
        images=_open_images(settings, stack),
        ledger=ledger,
        leases=stack.enter_context(closing(leases)),
        announcer=announcer,
        progress=stack.enter_context(closing(progress)),
        patience=Patience(settings.worker.storage_patience_s),
    )
    return GpuProcess(
        bench=bench,
        unclaimed=UnclaimedJobs(ledger=ledger, announcer=announcer, publisher=publisher),
        publisher=publisher,
        served_model=describe_model(settings.worker, family),
    )


def _open_ledger(settings: ProcessSettings, stack: ExitStack) -> Ledger:
    worker = settings.worker
    database = connect(
        settings.cache.database_url.get_secret_value(),
        # One for each job in flight, the heartbeat and a spare.
        pool_size=worker.jobs_in_flight + 2,
        application_name="nirvana-gpu",
    )
    stack.callback(database.dispose)
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


def _plan_reuse(settings: ProcessSettings, cache: ApproximateCache, family: Family) -> Reuse:
    return Reuse(
        cache, family, model=settings.worker.model, state_kind=settings.cache.cache_state_kind
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
    if traces.show_progress(job_id, progress):
        publisher.show_progress(job_id, progress)
