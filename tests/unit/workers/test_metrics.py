"""What a GPU worker counts, and how it is read."""

from __future__ import annotations

import socket
from collections.abc import Mapping

import httpx
import pytest
from prometheus_client import CollectorRegistry

from producer.contract import CacheOutcome, Status
from producer.result import CacheReport, JobResult, Steps, Timings
from workers.errors import MetricsPortTaken
from workers.metrics.jobs import EngineCollector, JobMetrics
from workers.metrics.serving import metrics_served


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def ended(k: int = 0, status: Status = Status.SUCCEEDED) -> JobResult:
    return JobResult(
        job_id="00000000-0000-0000-0000-000000000001",
        status=status,
        attempt=1,
        cache=CacheReport(outcome=CacheOutcome.HIT if k else CacheOutcome.MISS, k=k),
        steps=Steps(asked=50, run=50 - k),
        timings=Timings(denoise_s=0.3, lookup_s=0.002),
    )


def test_jobs_hits_steps_and_seconds_are_counted() -> None:
    registry = CollectorRegistry()
    metrics = JobMetrics(registry)
    for result in (ended(), ended(k=20), ended(k=20)):
        metrics.note(result)
    metrics.note(JobResult(job_id="x", status=Status.FAILED, attempt=1))

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    assert value("nirvana_jobs_total", status="succeeded", cache="hit") == 2
    assert value("nirvana_jobs_total", status="failed", cache="none") == 1
    assert value("nirvana_hits_total", k="20") == 2
    assert value("nirvana_steps_asked_total") == 150
    assert value("nirvana_steps_run_total") == 110
    assert value("nirvana_job_seconds_count", part="denoise") == 3
    assert value("nirvana_job_seconds_bucket", part="lookup", le="0.0025") == 3
    assert value("nirvana_job_seconds_count", part="fetch") is None


class Engine:
    jobs_per_batch = 2.5
    num_in_flight = 3


def counts() -> Mapping[str, int]:
    return {"hit": 7}


def speeds() -> Mapping[str, float]:
    return {"small": 0.01}


def test_a_port_answers_prometheus_and_tells_who_else_has_it() -> None:
    registry, port = CollectorRegistry(), free_port()
    registry.register(EngineCollector(Engine(), counts, speeds))
    with metrics_served(registry, address="127.0.0.1", port=port):
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        with (
            pytest.raises(MetricsPortTaken, match=f"127.0.0.1:{port} .* its own NIRVANA_GPU"),
            metrics_served(CollectorRegistry(), address="127.0.0.1", port=port),
        ):
            pass
    assert "nirvana_jobs_per_batch 2.5" in text
    assert 'nirvana_seconds_per_step{model="small"} 0.01' in text
    assert 'nirvana_cache_events_total{event="hit"} 7.0' in text
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/metrics")
