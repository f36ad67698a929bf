"""What an io worker tells of the whole fleet: queues, webhooks, the cache's size, dead letters.

Read from Valkey and PostgreSQL when Prometheus asks; of several io workers each tells the same, so
take `max` over them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy import Engine, text

from producer.trace import Traces
from workers.dead_letters import DeadLetters

logger = logging.getLogger(__name__)

_RUNNING = text("SELECT count(*) FROM jobs WHERE status = 'running'")

_WEBHOOKS = text("""
    SELECT count(*) AS num_pending,
           COALESCE(EXTRACT(EPOCH FROM now() - min(next_attempt_at)), 0)::float8 AS overdue_s
      FROM webhook_deliveries
     WHERE status = 'pending'
""")

_CACHE = text("""
    SELECT c.namespace, count(*) AS num_states, sum(s.num_bytes)::float8 AS num_bytes
      FROM cached_states s
      JOIN cached_prompts p ON p.id = s.prompt_id
      JOIN scopes c ON c.id = p.scope_id
     GROUP BY c.namespace
""")

CACHE_EVERY_S = 30.0  # it reads every state's row: no more often


class MaintenanceMetrics:
    """What the periodic tasks did, by the numbers of their reports."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._done = Counter(
            "nirvana_maintenance",
            "What periodic tasks did: evicted_bytes of the task nirvana.evict, for one.",
            ("task", "what"),
            registry=registry,
        )

    def note(self, task: str, report: Mapping[str, object]) -> None:
        """Add a report's whole numbers."""
        for what, value in report.items():
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                self._done.labels(task, what).inc(value)


class FleetCollector(Collector):
    """Read when Prometheus asks; a service that is away leaves its metrics out, and is logged."""

    def __init__(self, database: Engine, traces: Traces, dead_letters: DeadLetters) -> None:
        self._database, self._traces, self._dead_letters = database, traces, dead_letters
        self._cache: tuple[float, list[Metric]] = (-CACHE_EVERY_S, [])

    def describe(self) -> Iterator[Metric]:
        """Nothing beforehand: registering must not need the services."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield each metric."""
        for read in (self._queues, self._dead, self._database_state, self._cache_size):
            try:
                yield from list(read())
            except Exception:
                logger.exception("metrics are left out")

    def _queues(self) -> Iterator[Metric]:
        depth = GaugeMetricFamily(
            "nirvana_jobs_waiting", "Jobs that nobody has claimed.", labels=("queue", "priority")
        )
        age = GaugeMetricFamily(
            "nirvana_oldest_waiting_seconds",
            "Since the message of the job that is next was sent.",
            labels=("queue", "priority"),
        )
        now = time.time()
        for job in self._traces.waiting(limit_per_list=1):
            labels = (job.queue, job.priority.value)
            age.add_metric(labels, max(0.0, now - job.sent_at))
            depth.add_metric(labels, self._traces.num_waiting(job.queue, job.priority))
        yield depth
        yield age

    def _dead(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "nirvana_dead_letters",
            "Messages that nobody could read: `nirvana dead list`.",
            value=self._dead_letters.count(),
        )

    def _database_state(self) -> Iterator[Metric]:
        with self._database.connect() as connection:
            running = connection.execute(_RUNNING).scalar_one()
            webhooks = connection.execute(_WEBHOOKS).one()
        yield GaugeMetricFamily("nirvana_jobs_running", "Jobs with a lease.", value=running)
        yield GaugeMetricFamily(
            "nirvana_webhooks_pending", "Webhooks not yet delivered.", value=webhooks.num_pending
        )
        yield GaugeMetricFamily(
            "nirvana_webhooks_overdue_seconds",
            "How long the next attempt of a webhook is overdue; 0 where none is.",
            value=max(0.0, webhooks.overdue_s),
        )

    def _cache_size(self) -> Iterator[Metric]:
        read_at, known = self._cache
        if time.monotonic() - read_at >= CACHE_EVERY_S:
            known = self._read_cache()
            self._cache = (time.monotonic(), known)
        yield from known

    def _read_cache(self) -> list[Metric]:
        states = GaugeMetricFamily(
            "nirvana_cache_states", "States that are kept.", labels=("namespace",)
        )
        size = GaugeMetricFamily(
            "nirvana_cache_bytes", "Bytes of the states that are kept.", labels=("namespace",)
        )
        with self._database.connect() as connection:
            for row in connection.execute(_CACHE):
                states.add_metric((row.namespace,), row.num_states)
                size.add_metric((row.namespace,), row.num_bytes)
        return [states, size]
