"""What a GPU worker counts: jobs by outcome, hits by k, steps, and seconds of each part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from producer.result import JobResult

_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class JobMetrics:
    """Counted as each job's end is committed; safe to share between threads."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._jobs = Counter(
            "nirvana_jobs",
            "Jobs that ended here, by status and by what the cache did.",
            ("status", "cache"),
            registry=registry,
        )
        self._hits = Counter("nirvana_hits", "Hits, by steps skipped.", ("k",), registry=registry)
        self._asked = Counter(
            "nirvana_steps_asked", "Denoising steps that jobs asked for.", registry=registry
        )
        self._run = Counter(
            "nirvana_steps_run", "Denoising steps that ran for them.", registry=registry
        )
        self._seconds = Histogram(
            "nirvana_job_seconds",
            "Seconds of a part of a job that succeeded.",
            ("part",),
            buckets=_BUCKETS,
            registry=registry,
        )

    def note(self, result: JobResult) -> None:
        """Count one end."""
        outcome = "none" if result.cache is None else result.cache.outcome.value
        self._jobs.labels(result.status.value, outcome).inc()
        if result.cache is not None and result.cache.k:
            self._hits.labels(str(result.cache.k)).inc()
        if result.steps is not None:
            self._asked.inc(result.steps.asked)
            self._run.inc(result.steps.run)
        if result.timings is not None:
            for name, seconds in result.timings.model_dump().items():
                if seconds is not None:
                    self._seconds.labels(name.removesuffix("_s")).observe(seconds)


class EngineFigures(Protocol):
    """What is read off an engine."""

    @property
    def jobs_per_batch(self) -> float:
        """Mean number of jobs in a forward pass."""

    @property
    def num_in_flight(self) -> int:
        """Jobs that have begun and not ended."""


class EngineCollector(Collector):
    """Read when Prometheus asks."""

    def __init__(
        self,
        engine: EngineFigures,
        cache_counts: Callable[[], Mapping[str, int]],
        seconds_per_step: Callable[[], Mapping[str, float]],
    ) -> None:
        self._engine, self._cache_counts = engine, cache_counts
        self._seconds_per_step = seconds_per_step

    def collect(self) -> Iterator[Metric]:
        """Yield each metric."""
        yield GaugeMetricFamily(
            "nirvana_jobs_in_flight", "Jobs being drawn.", value=self._engine.num_in_flight
        )
        yield GaugeMetricFamily(
            "nirvana_jobs_per_batch",
            "Mean number of jobs in a forward pass of the denoiser, since the start.",
            value=self._engine.jobs_per_batch,
        )
        speeds = GaugeMetricFamily(
            "nirvana_seconds_per_step",
            "Moving average of a denoising step's seconds, of a job in a batch.",
            labels=("model",),
        )
        for model, seconds in self._seconds_per_step().items():
            speeds.add_metric((model,), seconds)
        yield speeds
        events = CounterMetricFamily(
            "nirvana_cache_events", "What the cache of this process did.", labels=("event",)
        )
        for event, count in self._cache_counts().items():
            events.add_metric((event,), count)
        yield events
