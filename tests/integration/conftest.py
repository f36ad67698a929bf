"""A GPU process on the real servers with a tiny pipeline, and what looks into its stores.

A module chooses its cache by a `cache_options` of its own, its models by `worker_settings`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import Engine

from cache.database import connect
from cache.objects import S3Objects
from cache.settings import CacheSettings
from migrations.migrate import upgrade
from producer.settings import ProducerSettings
from tests.tiny_pipeline import build_tiny_pipeline
from workers.app import build_app
from workers.gpu_process import GpuProcess, gpu_process
from workers.process_settings import ProcessSettings
from workers.settings import WorkerSettings

POOL_SIZE = 12  # as many as a test's threads look at once


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def cache_options() -> dict[str, Any]:
    return {}


@pytest.fixture
def worker_settings(model_path: Path) -> WorkerSettings:
    return WorkerSettings(model="tiny", model_path=str(model_path), heartbeat_s=0.05)


@pytest.fixture
def settings(
    database_url: str,
    broker_url: str,
    s3_url: str,
    worker_settings: WorkerSettings,
    cache_options: dict[str, Any],
) -> ProcessSettings:
    """Of a worker on a migrated database."""
    upgrade(database_url)
    return ProcessSettings(
        producer=ProducerSettings(broker_url=broker_url),
        cache=CacheSettings.load(
            database_url=database_url,
            s3_url=s3_url,
            cache_budget_s=20,  # a loaded machine must not turn a hit into a miss
            cache_reroll_fraction=1,  # the same words twice are the simplest hit
            **cache_options,
        ),
        worker=worker_settings,
    )


@pytest.fixture
def app(settings: ProcessSettings) -> Iterator[Celery]:
    with closing(build_app(settings.producer, settings.worker)) as app:
        yield app


@pytest.fixture
def process(settings: ProcessSettings, app: Celery) -> Iterator[GpuProcess]:
    with gpu_process(settings, app) as running:
        yield running


@pytest.fixture
def database(settings: ProcessSettings) -> Iterator[Engine]:
    engine = connect(settings.cache.database_url.get_secret_value(), pool_size=POOL_SIZE)
    yield engine
    engine.dispose()


@pytest.fixture
def objects(settings: ProcessSettings) -> Iterator[S3Objects]:
    with closing(S3Objects.from_url(settings.cache.s3_url.get_secret_value())) as store:
        yield store
