"""Lookups through the cache's own code: how long, and how often as exact search decides."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np
import psutil
from numpy.typing import NDArray
from sqlalchemy import Engine, text

from benchmarks.lookup.database import owner_names
from benchmarks.lookup.exact import NUM_STEPS, SAME, Answer
from benchmarks.lookup.vectors import Prompts
from cache import index
from cache.database import connect, transaction
from cache.entry import Hit, Scope, embedding_text
from cache.nearest_index import search_options
from cache.settings import CacheSettings

CLIENTS: Final = 8
WARM_UP: Final = 200  # lookups before the clock starts
NOW: Final = datetime(2026, 11, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One lookup, as a worker would ask it."""

    scope: Scope
    owner: str
    embedding: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What lookups took, and what they found; one of each a query."""

    seconds: NDArray[np.float64]
    ks: NDArray[np.int64]  #: 0 for a miss
    similarities: NDArray[np.float64]  #: of the nearest found; -1 where nothing was
    server_cpu_s: float  #: of the server's process for one lookup, at the mean


def queries_of(prompts: Prompts, scopes: Sequence[Scope]) -> list[Query]:
    """The prompts as a worker would look them up."""
    names = [name.decode() for name in owner_names(prompts.users)]
    return [
        Query(
            scope=scopes[scope],
            owner=name,
            embedding=embedding_text(vector.tolist(), len(vector)),
        )
        for scope, name, vector in zip(prompts.scopes, names, prompts.vectors, strict=True)
    ]


def reader(settings: CacheSettings) -> Engine:
    """The engine of lookups, as `ApproximateCache.open` makes it."""
    return connect(
        settings.database_url.get_secret_value(),
        pool_size=1,
        is_reader=True,
        options=search_options(settings),
    )


def measure(settings: CacheSettings, queries: Sequence[Query]) -> Measured:
    """Look each up once, one after the other."""
    engine = reader(settings)
    try:
        for query in queries[:WARM_UP]:
            find(engine, query, settings)
        before_s = _server_cpu_s(engine)
        seconds, ks = _timed(engine, queries, settings)
        server_cpu_s = (_server_cpu_s(engine) - before_s) / len(queries)
        similarities = [_nearest_similarity(engine, query, settings) for query in queries]
    finally:
        engine.dispose()
    return Measured(
        seconds=seconds,
        ks=ks,
        similarities=np.array(similarities),
        server_cpu_s=server_cpu_s,
    )


def _server_cpu_s(engine: Engine) -> float:
    """So far, of the process that serves the engine's one connection."""
    with transaction(engine) as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def measure_clients(settings: CacheSettings, queries: Sequence[Query]) -> NDArray[np.float64]:
    """Seconds of lookups by `CLIENTS` processes at once, each with a share of the queries."""
    context = multiprocessing.get_context("spawn")
    shares = [(settings, queries[number::CLIENTS]) for number in range(CLIENTS)]
    with context.Pool(CLIENTS) as pool:
        return np.concatenate(pool.starmap(_client, shares, chunksize=1))


def _client(settings: CacheSettings, queries: Sequence[Query]) -> NDArray[np.float64]:
    engine = reader(settings)
    try:
        for query in queries[: WARM_UP // CLIENTS]:
            find(engine, query, settings)
        return _timed(engine, queries, settings)[0]
    finally:
        engine.dispose()


def _timed(
    engine: Engine, queries: Sequence[Query], settings: CacheSettings
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    seconds, ks = np.empty(len(queries)), np.zeros(len(queries), np.int64)
    for number, query in enumerate(queries):
        started = time.perf_counter()
        hit = find(engine, query, settings)
        seconds[number] = time.perf_counter() - started
        ks[number] = 0 if hit is None else hit.k
    return seconds, ks


def find(engine: Engine, query: Query, settings: CacheSettings) -> Hit | None:
    """One lookup, as `cache.lookup` does it."""
    with transaction(engine) as connection:
        return index.find(
            connection,
            query.scope,
            query.embedding,
            owner=query.owner,
            allowances=query.scope.selector.allowances(NUM_STEPS),
            neighbours=settings.cache_neighbours,
            own_newest=settings.cache_own_newest,
            now=NOW,
        )


def _nearest_similarity(engine: Engine, query: Query, settings: CacheSettings) -> float:
    wanted = {
        "scope_id": query.scope.id,
        "owner": query.owner,
        "embedding": query.embedding,
        "neighbours": settings.cache_neighbours,
        "own_newest": settings.cache_own_newest,
        "now": NOW,
    }
    with transaction(engine) as connection:
        found = connection.execute(index.nearest_statement(query.scope), wanted).all()
    return 1 - min((row.distance for row in found), default=2.0)


def figures(measured: Measured, exact: Sequence[Answer]) -> dict[str, float]:
    """Percentiles and agreements, as the last line names them."""
    right = np.array([a.k_min <= k <= a.k_max for a, k in zip(exact, measured.ks, strict=True)])
    is_hit = np.array([a.k_max > 0 for a in exact])
    regret = np.maximum(0, [a.similarity for a in exact] - measured.similarities)
    return {
        "p50_ms": 1e3 * float(np.percentile(measured.seconds, 50)),
        "p99_ms": 1e3 * float(np.percentile(measured.seconds, 99)),
        "server_cpu_ms": 1e3 * measured.server_cpu_s,
        "recall_at_1": float(np.mean(regret <= SAME)),
        "k_agreement": float(np.mean(right)),
        "k_agreement_on_hits": float(np.mean(right[is_hit])),
        "similarity_regret_p99": float(np.percentile(regret, 99)),
    }
