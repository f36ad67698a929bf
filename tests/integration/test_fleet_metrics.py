"""What an io worker tells of the fleet, read from real services, with and without them."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime

import pytest
import redis
from prometheus_client import CollectorRegistry
from sqlalchemy import Engine

from cache.database import connect
from migrations.migrate import upgrade
from producer.broker import open_connection
from producer.contract import GenerationJob, Status, Webhook
from producer.result import JobResult
from producer.settings import ProducerSettings
from producer.trace import Traces
from tests.integration import cache_harness
from workers.dead_letters import DeadLetters
from workers.ledger import Ledger
from workers.metrics.fleet_state import FleetCollector, MaintenanceMetrics

QUEUE = "generate.small.0"


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    upgrade(database_url)
    connected = connect(database_url)
    yield connected
    connected.dispose()


@pytest.fixture
def connection(broker_url: str) -> Iterator[redis.Redis]:
    with closing(open_connection(ProducerSettings(broker_url=broker_url).broker_url)) as opened:
        yield opened


def registered(engine: Engine, connection: redis.Redis) -> CollectorRegistry:
    registry = CollectorRegistry()
    traces = Traces(connection, retention_s=600)
    registry.register(FleetCollector(engine, traces, DeadLetters(connection)))
    return registry


def test_queues_webhooks_jobs_and_the_cache(engine: Engine, connection: redis.Redis) -> None:
    traces = Traces(connection, retention_s=600)
    job = GenerationJob(prompt="a fox", model="small", num_inference_steps=10)
    for _ in range(2):
        traces.create(str(uuid.uuid4()), job, queue=QUEUE, payload_hash=job.payload_hash)
    ledger = Ledger(engine, worker="one", lease_s=60, attempts_max=3)

    def claim(webhook: Webhook | None = None) -> object:
        called_back = job.model_copy(update={"webhook": webhook})
        held = ledger.claim(uuid.uuid4(), called_back, queue=QUEUE, received_at=datetime.now(UTC))
        if webhook is not None:
            ledger.finish(
                held, JobResult(job_id=str(held.job_id), status=Status.SUCCEEDED, attempt=1)
            )
        return held

    claim()
    claim(Webhook(url="https://example.com/hook"))
    DeadLetters(connection).keep(b"junk", list_name=QUEUE, reason="no JSON")
    cache_harness.insert(engine, cache_harness.register(engine), [(10, 1_000), (20, 500)])
    registry = registered(engine, connection)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    priority = job.priority.value
    assert value("nirvana_jobs_waiting", queue=QUEUE, priority=priority) == 2
    age = value("nirvana_oldest_waiting_seconds", queue=QUEUE, priority=priority)
    assert age is not None
    assert 0 <= age < 60
    assert value("nirvana_jobs_running") == 1
    assert value("nirvana_webhooks_pending") == 1
    assert value("nirvana_dead_letters") == 1
    assert value("nirvana_cache_states", namespace="default") == 2
    assert value("nirvana_cache_bytes", namespace="default") == 1_500


def test_a_database_that_is_away_leaves_the_rest(
    connection: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    away = connect("postgresql://nobody:x@127.0.0.1:9/none")
    with caplog.at_level(logging.ERROR):
        registry = registered(away, connection)
        assert registry.get_sample_value("nirvana_dead_letters") is not None
        assert registry.get_sample_value("nirvana_jobs_running") is None
    assert "metrics are left out" in caplog.text
    away.dispose()


def test_what_periodic_tasks_did_is_counted() -> None:
    registry = CollectorRegistry()
    metrics = MaintenanceMetrics(registry)
    for _ in range(2):
        metrics.note("nirvana.evict", {"evicted_bytes": 100, "evicted_states": 0, "note": "x"})
    labels = {"task": "nirvana.evict", "what": "evicted_bytes"}
    assert registry.get_sample_value("nirvana_maintenance_total", labels) == 200
    labels["what"] = "evicted_states"
    assert registry.get_sample_value("nirvana_maintenance_total", labels) is None
