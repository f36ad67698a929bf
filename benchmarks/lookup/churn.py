"""Whether lookups stay as fast and as right while everything cached is replaced, several times.

`python -m benchmarks.lookup --churn --rows 20000`: a cache of one scope is filled and indexed,
measured, and then turned over: prompts come in through `cache.index`, are looked up, and the
oldest go out through `cache.removal`. What autovacuum does by itself on a server that runs for
days is done here whenever as many rows have died as would call it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

import numpy as np
import psycopg
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, text

from benchmarks.lookup.database import (
    NEAREST_INDEXES,
    Database,
    fill,
    index_bytes,
    owner_names,
    register_scopes,
)
from benchmarks.lookup.exact import exact_answers
from benchmarks.lookup.measure import NOW, Query, figures, find, measure, queries_of, reader
from benchmarks.lookup.vectors import K_SET, Prompts, make_kept
from cache import index
from cache.database import connect, transaction
from cache.entry import PromptRow, Scope, Sharing, StateKind, StateRow
from cache.nearest_index import maintain
from cache.removal import lock_states, remove_states
from cache.settings import CacheSettings
from migrations import migrate

TURNOVERS: Final = 5
BATCH: Final = 100  # prompts of one transaction, and then as many out
HIT_EVERY: Final = 10  # prompts between two lookups
VACUUM_SHARE: Final = 0.2  # autovacuum_vacuum_scale_factor

_OLDEST = text("""
    SELECT s.id
      FROM (SELECT id FROM cached_prompts WHERE scope_id = :scope_id ORDER BY id LIMIT :num) p
      JOIN cached_states s ON s.prompt_id = p.id
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Churn:
    """What is turned over: prompts in the order of arrival, the first `size` of them cached.

    What is looked up to measure are the `num_queries` that arrive next.
    """

    database: Database
    settings: CacheSettings
    scope: Scope
    prompts: Prompts
    kept: NDArray[np.bool_]
    size: int
    num_queries: int

    @property
    def end(self) -> int:
        """Prompts that have come in at the end."""
        return self.size * (1 + TURNOVERS)


def make_churn(
    database: Database, settings: CacheSettings, prompts: Prompts, *, size: int, num_queries: int
) -> Churn:
    """Fill an empty database with the first prompts, all in one scope, and index them."""
    migrate.upgrade(database.url)
    scope = register_scopes(database, prompts.vectors.shape[1], Sharing.NAMESPACE)[0]
    stream = replace(prompts, scopes=np.zeros_like(prompts.scopes))
    kept = make_kept(len(stream))
    fill(database, _part(stream, slice(0, size)), kept[:size], [scope.id])
    maintain(settings)
    return Churn(
        database=database,
        settings=settings,
        scope=scope,
        prompts=stream,
        kept=kept,
        size=size,
        num_queries=num_queries,
    )


def measured(churn: Churn) -> list[dict[str, Any]]:
    """Figures when fresh, after the turnovers, and once beat's maintenance has run after them."""
    rows = [_figures(churn, "fresh", end=churn.size)]
    taken = _turn_over(churn)
    rows.append({**_figures(churn, f"after {TURNOVERS} turnovers", end=churn.end), **taken})
    report = maintain(churn.settings)
    told = "index built anew" if report.renewed else "maintained: nothing to do"
    rows.append(_figures(churn, told, end=churn.end))
    return rows


def _figures(churn: Churn, name: str, *, end: int) -> dict[str, Any]:
    """Measure with the last `size` of the first `end` prompts cached."""
    live = slice(end - churn.size, end)
    cached = _part(churn.prompts, live)
    asked = _part(churn.prompts, slice(end, end + churn.num_queries))
    exact = exact_answers(cached, churn.kept[live], asked, Sharing.NAMESPACE)
    found = figures(measure(churn.settings, queries_of(asked, [churn.scope])), exact)
    size = index_bytes(churn.database, NEAREST_INDEXES) / churn.size
    return {"state": name, **found, "index_bytes_per_row": size}


def _part(prompts: Prompts, rows: slice) -> Prompts:
    return replace(
        prompts,
        vectors=prompts.vectors[rows],
        users=prompts.users[rows],
        scopes=prompts.scopes[rows],
    )


def _turn_over(churn: Churn) -> dict[str, float]:
    """Answers the seconds that it took, and those of vacuuming among them."""
    started, vacuum_s = time.monotonic(), 0.0
    writer, looker = connect(churn.database.url, pool_size=1), reader(churn.settings)
    num_dead = 0
    try:
        for start in range(churn.size, churn.end, BATCH):
            rows = slice(start, min(start + BATCH, churn.end))
            queries = queries_of(_part(churn.prompts, rows), [churn.scope])
            for query in queries[::HIT_EVERY]:
                find(looker, query, churn.settings)
            num_dead += _replace(writer, churn, queries, rows)
            if num_dead > VACUUM_SHARE * churn.size:
                vacuum_s += vacuum(churn.database)
                num_dead = 0
    finally:
        writer.dispose()
        looker.dispose()
    return {"turnovers_s": time.monotonic() - started, "vacuum_s": vacuum_s}


def _replace(writer: Engine, churn: Churn, queries: Sequence[Query], rows: slice) -> int:
    """Store a batch and evict as many of the oldest; answers how many prompts went."""
    names = owner_names(churn.prompts.users[rows])
    with transaction(writer) as connection:
        for number, (name, query) in enumerate(zip(names, queries, strict=True)):
            position = rows.start + number
            prompt = _row(position, name.decode(), query.embedding, churn.kept[position])
            index.insert(connection, churn.scope, prompt)
        return _evict(connection, churn.scope, len(queries))


def _evict(connection: Connection, scope: Scope, num: int) -> int:
    wanted = {"scope_id": scope.id, "num": num}
    states = list(connection.execute(_OLDEST, wanted).scalars())
    remove_states(connection, lock_states(connection, states), now=NOW)
    return num


def _row(position: int, owner: str, embedding: str, kept: NDArray[np.bool_]) -> PromptRow:
    states = tuple(
        StateRow(
            kind=StateKind.INTERMEDIATE,
            k=k,
            key=f"churn/{position}/{k}",
            sha256="0" * 64,
            num_bytes=32_896,
        )
        for k, is_kept in zip(K_SET, kept, strict=True)
        if is_kept
    )
    return PromptRow(
        owner=owner,
        embedding=embedding,
        prompt_hash=str(position),
        source_job_id=None,
        created_at=NOW + timedelta(microseconds=position),
        expires_at=None,
        states=states,
    )


def vacuum(database: Database) -> float:
    """What autovacuum would do now; answers the seconds it took."""
    started = time.monotonic()
    with psycopg.connect(database.superuser_url, autocommit=True) as connection:
        connection.execute("VACUUM cached_prompts, cached_states, state_uses")
    return time.monotonic() - started
