"""Steps asked and run, hits by k, seconds of hits and misses, over time; and what was evicted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, text

from evaluation.costs import Prices

PERIODS_MAX: Final = 400  # rows of the table over time, and points of its plot
PAIRS_MAX: Final = 12
_HOUR: Final = timedelta(hours=1)
_DAY: Final = timedelta(days=1)

_SUCCEEDED: Final = """
      FROM jobs
     WHERE status = 'succeeded'
       AND finished_at >= :since AND finished_at < :until
       AND (CAST(:namespace AS text) IS NULL OR namespace = :namespace)
"""

_FIRST = text(f"SELECT min(finished_at) {_SUCCEEDED}")

_BY_PERIOD = text(f"""
    SELECT date_bin(:width, finished_at, :since) AS starts_at,
           count(*) AS num_jobs,
           count(*) FILTER (WHERE result #>> '{{cache,outcome}}' = 'hit') AS num_hits,
           COALESCE(sum(steps_asked), 0)::bigint AS steps_asked,
           COALESCE(sum(steps_run), 0)::bigint AS steps_run
      {_SUCCEEDED}
     GROUP BY 1
     ORDER BY 1
""")

_BY_OUTCOME = text(f"""
    SELECT COALESCE(result #>> '{{cache,outcome}}', 'unknown') AS outcome,
           result #>> '{{cache,reason}}' AS reason,
           count(*) AS num_jobs
      {_SUCCEEDED}
     GROUP BY 1, 2
     ORDER BY 3 DESC, 1, 2
""")

_BY_K = text(f"""
    SELECT CAST(result #>> '{{cache,k}}' AS int) AS k, count(*) AS num_jobs
      {_SUCCEEDED}
       AND result #>> '{{cache,outcome}}' = 'hit'
     GROUP BY 1
     ORDER BY 1
""")

_SECONDS = text(f"""
    SELECT result #>> '{{cache,outcome}}' AS outcome,
           percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY
               EXTRACT(EPOCH FROM finished_at - claimed_at)) AS seconds
      {_SUCCEEDED}
       AND claimed_at IS NOT NULL AND result #>> '{{cache,outcome}}' IS NOT NULL
     GROUP BY 1
     ORDER BY 1
""")  # noqa: S608

_EVICTED = text("""
    SELECT hour, sum(num_states)::bigint AS num_states, sum(num_bytes)::bigint AS num_bytes
      FROM evictions
     WHERE hour >= :since AND hour < :until
       AND (CAST(:namespace AS text) IS NULL OR namespace = :namespace)
     GROUP BY hour
     ORDER BY hour
""")

# Of the latest hits, those whose source is still known, from the largest k down.
_PAIRS = text(f"""
    WITH hits AS (
        SELECT job ->> 'prompt' AS prompt, result #>> '{{image,key}}' AS image_key,
               CAST(result #>> '{{cache,k}}' AS int) AS k,
               CAST(result #>> '{{cache,similarity}}' AS float) AS similarity,
               CAST(result #>> '{{cache,source_job_id}}' AS uuid) AS source_id
          {_SUCCEEDED}
           AND result #>> '{{cache,outcome}}' = 'hit'
         ORDER BY finished_at DESC
         LIMIT 400
    )
    SELECT hits.prompt, hits.image_key, hits.k, hits.similarity,
           source.job ->> 'prompt' AS source_prompt,
           source.result #>> '{{image,key}}' AS source_image_key
      FROM hits
      JOIN jobs AS source ON source.id = hits.source_id
     WHERE hits.image_key IS NOT NULL AND source.result #>> '{{image,key}}' IS NOT NULL
     ORDER BY hits.k DESC, hits.similarity, hits.image_key
     LIMIT :limit
""")  # noqa: S608


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """An hour, or as many as make up no more than PERIODS_MAX periods."""

    starts_at: datetime
    num_jobs: int
    num_hits: int
    steps_asked: int
    steps_run: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeCount:
    """Jobs by what the cache did, and why not more."""

    outcome: str
    reason: str | None
    num_jobs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """From a job's claim to its end; what another job in the batch took is in it."""

    outcome: str
    p50: float
    p95: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evicted:
    """What had to make room in an hour."""

    hour: datetime
    num_states: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePair:
    """A hit and the job whose state it started from."""

    prompt: str
    image_key: str
    k: int
    similarity: float
    source_prompt: str
    source_image_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Savings:
    """Of the jobs that succeeded in a time; failed and cancelled ones have saved nothing."""

    since: datetime
    until: datetime
    namespace: str | None
    num_jobs: int
    num_hits: int
    steps_asked: int
    steps_run: int
    share_saved: float | None  #: None without a step asked for
    gpu_hours_saved: float | None  #: None without prices
    money_saved: float | None
    by_period: tuple[Period, ...]
    by_outcome: tuple[OutcomeCount, ...]
    hits_by_k: dict[int, int]
    seconds: tuple[Seconds, ...]
    evicted: tuple[Evicted, ...]  #: hours without an eviction are left out
    pairs: tuple[ImagePair, ...]


def read_savings(
    connection: Connection,
    *,
    since: datetime,
    until: datetime,
    namespace: str | None = None,
    prices: Prices | None = None,
) -> Savings:
    """Read the jobs that ended from `since` on and before `until`; all times are aware."""
    which = {"since": since, "until": until, "namespace": namespace}
    first = connection.execute(_FIRST, which).scalar_one() or until
    start = first.replace(minute=0, second=0, microsecond=0)
    width = _width(until - start)
    periods = tuple(
        Period(**row)
        for row in connection.execute(
            _BY_PERIOD, {**which, "since": max(since, start), "width": width}
        ).mappings()
    )
    asked, run = sum(p.steps_asked for p in periods), sum(p.steps_run for p in periods)
    return Savings(
        since=since,
        until=until,
        namespace=namespace,
        num_jobs=sum(period.num_jobs for period in periods),
        num_hits=sum(period.num_hits for period in periods),
        steps_asked=asked,
        steps_run=run,
        share_saved=1 - run / asked if asked else None,
        gpu_hours_saved=None if prices is None else prices.gpu_hours(asked - run),
        money_saved=None if prices is None else prices.money(asked - run),
        by_period=periods,
        by_outcome=_outcomes(connection, which),
        hits_by_k={row.k: row.num_jobs for row in connection.execute(_BY_K, which)},
        seconds=_seconds(connection, which),
        evicted=_evicted(connection, which),
        pairs=_pairs(connection, which),
    )


def _outcomes(connection: Connection, which: Mapping[str, object]) -> tuple[OutcomeCount, ...]:
    return tuple(OutcomeCount(**row) for row in connection.execute(_BY_OUTCOME, which).mappings())


def _seconds(connection: Connection, which: Mapping[str, object]) -> tuple[Seconds, ...]:
    return tuple(
        Seconds(outcome=row.outcome, p50=row.seconds[0], p95=row.seconds[1])
        for row in connection.execute(_SECONDS, which)
    )


def _evicted(connection: Connection, which: Mapping[str, object]) -> tuple[Evicted, ...]:
    return tuple(Evicted(**row) for row in connection.execute(_EVICTED, which).mappings())


def _pairs(connection: Connection, which: Mapping[str, object]) -> tuple[ImagePair, ...]:
    rows = connection.execute(_PAIRS, {**which, "limit": PAIRS_MAX}).mappings()
    return tuple(ImagePair(**row) for row in rows)


def _width(span: timedelta) -> timedelta:
    """Hours where they are few enough, else days, else more."""
    for width in (_HOUR, 6 * _HOUR, _DAY):
        if span <= PERIODS_MAX * width:
            return width
    return _DAY * -(-span // (PERIODS_MAX * _DAY))
