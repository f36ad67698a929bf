"""Composition root of an io worker: everything its process works with, built and closed.

No torch, even indirectly (a test holds it): it runs on machines without a GPU.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

import redis
from celery import Celery
from prometheus_client import CollectorRegistry
from sqlalchemy import Engine

from cache.database import connect
from cache.errors import SettingsInvalid
from cache.objects import S3Objects
from producer.broker import open_connection
from producer.contract import Priority
from producer.models import ModelTable
from producer.trace import Traces
from workers.admission import Admission
from workers.announcer import Announcer
from workers.app import Publisher
from workers.cancellation import Cancellation
from workers.dead_letters import DeadLetters
from workers.delivery.deliver import Deliverer, DeliverySettings
from workers.image_urls import ImageUrls
from workers.job_records import JobRecords
from workers.ledger import Ledger
from workers.metrics.fleet_state import FleetCollector, MaintenanceMetrics
from workers.metrics.serving import metrics_served, new_registry
from workers.process_settings import ProcessSettings
from workers.rescuer import Rescuer
from workers.retention import Retention
from workers.settings import WorkerSettings
from workers.unclaimed import UnclaimedJobs

CONCURRENCY: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class IoProcess:
    """What the tasks of an io worker work with."""

    settings: ProcessSettings
    database: Engine
    objects: S3Objects
    admission: Admission
    announcer: Announcer
    cancellation: Cancellation
    rescuer: Rescuer
    retention: Retention
    deliverer: Deliverer
    image_urls: ImageUrls
    maintenance: MaintenanceMetrics


class ValkeyLists:
    """Lengths of kombu's lists: the queue's name, and for a number other than 0 that after it."""

    def __init__(self, connection: redis.Redis) -> None:
        self._connection = connection

    def length(self, queue: str, priority: Priority) -> int:
        """Messages that wait there."""
        number = priority.celery_number
        name = f"{queue}\x06\x16{number}" if number else queue
        return int(self._connection.llen(name))


@contextmanager
def io_process(settings: ProcessSettings, app: Celery) -> Iterator[IoProcess]:
    """Build everything an io worker works with, and close it in reverse order.

    Raises SettingsInvalid where it could not fit the match predictor that is asked for.
    """
    if settings.cache.cache_predictor and find_spec("sklearn") is None:
        reason = "on needs scikit-learn: pip install 'nirvana-serving[predictor]'"
        raise SettingsInvalid("NIRVANA_CACHE_PREDICTOR", reason)
    with ExitStack() as stack:
        connection = stack.enter_context(closing(open_connection(settings.producer.broker_url)))
        database = connect(
            settings.cache.database_url.get_secret_value(),
            pool_size=CONCURRENCY + 2,
            application_name="nirvana-io",
        )
        stack.callback(database.dispose)
        objects = stack.enter_context(
            closing(S3Objects.from_url(settings.cache.s3_url.get_secret_value()))
        )
        registry = new_registry()
        process = _compose(settings, app, connection, database, objects, registry)
        stack.callback(process.deliverer.close)
        stack.enter_context(
            metrics_served(
                registry,
                address=settings.worker.metrics_address,
                port=settings.worker.io_metrics_port,
            )
        )
        yield process


def _compose(
    settings: ProcessSettings,
    app: Celery,
    connection: redis.Redis,
    database: Engine,
    objects: S3Objects,
    registry: CollectorRegistry,
) -> IoProcess:
    ledger = _ledger(settings.worker, database)
    traces = Traces(connection, retention_s=settings.producer.trace_retention_s)
    publisher = Publisher(app)
    announcer = Announcer(ledger, traces, show_end=publisher.show_end)
    unclaimed = UnclaimedJobs(ledger=ledger, announcer=announcer, publisher=publisher)
    registry.register(FleetCollector(database, traces, DeadLetters(connection)))
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
        cancellation=Cancellation(
            ledger=ledger,
            traces=traces,
            unclaimed=unclaimed,
            tell_workers=publisher.tell_cancelled,
        ),
        retention=Retention(database, JobRecords(connection, traces, app), settings.worker),
        rescuer=Rescuer(
            ledger=ledger,
            traces=traces,
            publisher=publisher,
            unclaimed=unclaimed,
            lists=ValkeyLists(connection),
            attempts_max=settings.worker.attempts_max,
            grace_s=settings.worker.resend_grace_s,
        ),
        deliverer=Deliverer(database, _delivery_settings(settings.worker)),
        image_urls=_image_urls(settings.worker, ledger, objects, connection),
        maintenance=MaintenanceMetrics(registry),
    )


def _image_urls(
    worker: WorkerSettings, ledger: Ledger, objects: S3Objects, connection: redis.Redis
) -> ImageUrls:
    return ImageUrls(
        ledger=ledger,
        objects=objects,
        connection=connection,
        url_lifetime_s=worker.image_url_lifetime_s,
        public_url=worker.public_s3_url,
    )


def _ledger(worker: WorkerSettings, database: Engine) -> Ledger:
    return Ledger(
        database,
        worker=f"{socket.gethostname()}:{os.getpid()}",
        lease_s=worker.lease_s,
        attempts_max=worker.attempts_max,
    )


def _delivery_settings(worker: WorkerSettings) -> DeliverySettings:
    return DeliverySettings(
        timeout_s=worker.webhook_timeout_s,
        allow_private_addresses=worker.webhook_allow_private_addresses,
        default_secret=worker.webhook_secret,
        # Room for a database that is slow to be told of an attempt's end.
        lease_s=2 * worker.webhook_timeout_s + 10,
        in_flight_max=worker.webhooks_in_flight_max,
        per_receiver_max=worker.webhooks_per_receiver_max,
    )
