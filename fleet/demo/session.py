"""Runs the prompt list: each job with the cache, and once more without, for comparison."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fleet.demo.contact_sheet import Card
from fleet.demo.prompts import SESSIONS
from producer.client import Client
from producer.contract import CacheMode, CacheOutcome
from producer.result import CacheReport, JobResult

_JOB_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedJob:
    """A finished job, and what its user waited."""

    result: JobResult
    seconds: float  #: from submit to the result, as the client sees it
    png: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One prompt of the list, with the cache and without."""

    user: str
    prompt: str
    cached: TimedJob
    uncached: TimedJob

    @property
    def is_hit(self) -> bool:
        return _cache(self.cached).outcome is CacheOutcome.HIT

    @property
    def k(self) -> int:
        return _cache(self.cached).k

    @property
    def similarity(self) -> float | None:
        return _cache(self.cached).similarity


def num_prompts() -> int:
    """Prompts in the list."""
    return sum(len(prompts) for prompts in SESSIONS.values())


def run_sessions(client: Client, *, on_done: Callable[[Comparison], None]) -> list[Comparison]:
    """Have each user send the next prompt when the last is done; both variants interleaved.

    A user's sessions begin with the cached and with the uncached variant in turn, so that a
    machine that gets slower or faster meanwhile favours neither. Raises JobFailed, WaitTimeout.
    """
    comparisons = []
    for number, (user, prompts) in enumerate(SESSIONS.items()):
        for comparison in _session(client, user, prompts, cached_first=number % 2 == 0):
            comparisons.append(comparison)
            on_done(comparison)
    return comparisons


def _session(
    client: Client, user: str, prompts: tuple[str, ...], *, cached_first: bool
) -> Iterator[Comparison]:
    modes = [CacheMode.USE, CacheMode.BYPASS]
    for seed, prompt in enumerate(prompts):
        done = {
            mode: _run(client, user, prompt, seed, mode)
            for mode in (modes if cached_first else reversed(modes))
        }
        yield Comparison(
            user=user,
            prompt=prompt,
            cached=done[CacheMode.USE],
            uncached=done[CacheMode.BYPASS],
        )


def _run(client: Client, user: str, prompt: str, seed: int, mode: CacheMode) -> TimedJob:
    started_at = time.monotonic()
    handle = client.submit(prompt, user=user, seed=seed, cache=mode.value)
    result = handle.wait(_JOB_TIMEOUT_S)
    seconds = time.monotonic() - started_at
    return TimedJob(result=result, seconds=seconds, png=client.image(result))


def cards(comparisons: list[Comparison]) -> list[Card]:
    """Set each hit beside its source and its uncached twin."""
    by_job_id = {each.cached.result.job_id: each for each in comparisons}
    return [
        _card(each, by_job_id[source])
        for each in comparisons
        if each.is_hit and (source := _cache(each.cached).source_job_id) in by_job_id
    ]


def _card(hit: Comparison, source: Comparison) -> Card:
    assert hit.cached.result.steps is not None
    assert hit.similarity is not None
    return Card(
        prompt=hit.prompt,
        source_prompt=source.prompt,
        k=hit.k,
        steps_asked=hit.cached.result.steps.asked,
        similarity=hit.similarity,
        source_png=source.cached.png,
        reused_png=hit.cached.png,
        uncached_png=hit.uncached.png,
    )


def _cache(job: TimedJob) -> CacheReport:
    assert job.result.cache is not None
    return job.result.cache
