"""How long jobs take under an arrival trace, waiting included: first come, first served.

Each GPU runs one job at a time. The product batches steps of several jobs, which serves more jobs a
second and makes each slower: compare cached with uncached here, not either with a real fleet.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import OptionInvalid, TraceInvalid

Seconds = NDArray[np.float64]

UTILISATION: Final = 0.9  # without a cache, of the fleet that `gpus_needed` answers


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTimes:
    """Seconds of a job besides its denoising steps."""

    seconds_per_step: float
    fixed_s: float = 0.2  # text encoder, VAE, storing the image
    lookup_s: float = 0.005  # every job that is looked up
    fetch_s: float = 0.02  # every hit

    def with_cache(
        self, skipped: NDArray[np.int16], num_steps: int, *, is_asked: NDArray[np.bool_]
    ) -> Seconds:
        """[n]: each job's time on its GPU."""
        steps = (num_steps - skipped.astype(np.float64)) * self.seconds_per_step
        overhead = self.lookup_s * is_asked + self.fetch_s * (skipped > 0)
        times: Seconds = self.fixed_s + steps + overhead
        return times

    def without_cache(self, num_jobs: int, num_steps: int) -> Seconds:
        """[n]: the same jobs from noise."""
        return np.full(num_jobs, self.fixed_s + num_steps * self.seconds_per_step)


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Seconds from arrival to image."""

    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    #: Share of the GPUs' time that is busy, from the first arrival to the last end.
    utilisation: float


def latency(arrivals_s: Seconds, service_s: Seconds, *, num_gpus: int) -> Latency:
    """Serve jobs in the order of arrival on GPUs that take one at a time."""
    free_at = [float(arrivals_s[0])] * num_gpus
    ends = np.empty_like(service_s)
    arrivals, services = arrivals_s.tolist(), service_s.tolist()
    for job, (arrival, service) in enumerate(zip(arrivals, services, strict=True)):
        ends[job] = max(arrival, free_at[0]) + service
        heapq.heapreplace(free_at, ends[job])
    waited = ends - arrivals_s
    p50, p95, p99 = np.percentile(waited, (50, 95, 99)).tolist()
    elapsed = float(ends.max() - arrivals_s[0])
    return Latency(
        mean_s=float(waited.mean()),
        p50_s=p50,
        p95_s=p95,
        p99_s=p99,
        utilisation=float(service_s.sum()) / (num_gpus * elapsed),
    )


def poisson_arrivals(num_jobs: int, *, per_second: float, rng: np.random.Generator) -> Seconds:
    """[n]: arrivals of independent users."""
    return np.cumsum(rng.exponential(1 / per_second, num_jobs))


def read_arrivals(path: Path, num_jobs: int) -> Seconds:
    """[n]: the first column of a text file, in milliseconds, repeated end to start to fill n.

    Raises TraceInvalid.
    """
    try:
        lines = path.read_text(encoding="utf-8").split()
        arrivals = np.sort([float(line.split(",")[0]) / 1_000 for line in lines])
    except (OSError, ValueError) as error:
        raise TraceInvalid(path, "not lines that begin with milliseconds") from error
    if len(arrivals) < 2:
        raise TraceInvalid(path, "holds fewer than two arrivals")
    arrivals -= arrivals[0]
    period = arrivals[-1] + arrivals[-1] / (len(arrivals) - 1)
    rounds = np.arange(-(-num_jobs // len(arrivals)))
    repeated: Seconds = (rounds[:, None] * period + arrivals[None, :]).ravel()[:num_jobs]
    return repeated


def gpus_needed(arrivals_s: Seconds, service_s: Seconds) -> int:
    """The fewest GPUs that an uncached log keeps busy for less than UTILISATION of the time."""
    elapsed = float(arrivals_s[-1] - arrivals_s[0])
    if elapsed <= 0:
        raise OptionInvalid("all jobs arrive at once: give the number of GPUs")
    return max(1, int(np.ceil(float(service_s.sum()) / elapsed / UTILISATION)))
