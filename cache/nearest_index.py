"""The HNSW indexes of large scopes: built, renewed and dropped by beat, never by a job.

A lookup searches the shared rows of a scope, and its owner's newest among them, or those of one
owner. Few of them are searched exactly, by indexes on (scope, owner); many get an HNSW index of
their own, which holds nothing else: no other scope costs it recall or time, and dropping a scope
drops its index. Of single owners only the anonymous one ('') is unbounded and has such an index.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Connection, Row, text
from sqlalchemy.exc import SQLAlchemyError

from cache.database import connect, transaction
from cache.settings import CacheSettings

LOCK_ID: Final = 0x6E697277  # beside the migrations' own
SHRINKAGE: Final = 4  # an index goes where its rows are fewer than this part of those that made it

_PREFIX: Final = "ix_cached_prompts_nearest_"

_SIZES = text("""
    SELECT c.id AS scope_id, c.embedding_dimension AS dimension, counted.shared, counted.anonymous
      FROM (SELECT scope_id,
                   count(*) FILTER (WHERE is_shared) AS shared,
                   count(*) FILTER (WHERE owner = '' AND NOT is_shared) AS anonymous
              FROM cached_prompts
             GROUP BY scope_id) counted
      JOIN scopes c ON c.id = counted.scope_id
     WHERE GREATEST(counted.shared, counted.anonymous) >= :rows_min
     ORDER BY c.id
""")

_INDEXES = text("""
    SELECT i.relname AS name, x.indisvalid AS is_valid, pg_relation_size(i.oid) AS num_bytes,
           obj_description(i.oid, 'pg_class') AS built_as
      FROM pg_index x
      JOIN pg_class i ON i.oid = x.indexrelid
     WHERE x.indrelid = to_regclass('cached_prompts')
       AND starts_with(i.relname, :prefix)
     ORDER BY i.relname
""")

# The expression is the lookup's, word for word, and its conditions imply the predicate: see
# `cache.index`.
_CREATE = """
    CREATE INDEX CONCURRENTLY {name}
        ON cached_prompts
     USING hnsw ((embedding::halfvec({dimension})) halfvec_cosine_ops)
      WITH ({parameters})
     WHERE scope_id = {scope_id} AND {condition}
"""

# Bytes a row and parameters when it was built; beside the index, so that they go with it.
_NOTE_HOW_BUILT = """
    DO $$
    BEGIN
        EXECUTE (SELECT format('COMMENT ON INDEX {name} IS %L',
                               pg_relation_size(i.oid) / GREATEST(i.reltuples, 1)
                               || ' {parameters}')
                   FROM pg_class i
                  WHERE i.oid = to_regclass('{name}'));
    END $$
"""


class Reach(StrEnum):
    """Which rows of a scope an index holds, as the lookups that use it see them."""

    SHARED = "shared"
    ANONYMOUS = "anonymous"


_CONDITIONS: Final[Mapping[Reach, str]] = {
    Reach.SHARED: "is_shared",
    Reach.ANONYMOUS: "owner = ''",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexReport:
    """What one run did."""

    built: int = 0
    renewed: int = 0
    #: Of scopes that are gone or small, and what a crash left half built.
    dropped: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """Rows that a lookup searches, many enough for an index."""

    scope_id: int
    reach: Reach
    dimension: int
    num_rows: int

    @property
    def name(self) -> str:
        return f"{_PREFIX}{self.reach}_{self.scope_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Index:
    name: str
    is_valid: bool
    num_bytes: int
    #: Bytes a row just after it was built; None where a crash came before they were noted.
    fresh_bytes: float | None
    #: What it was built with, as `_parameters`; '' where that is not known.
    parameters: str


def search_options(settings: CacheSettings) -> dict[str, str]:
    """Settings of PostgreSQL for the sessions that look up."""
    return {
        "hnsw.ef_search": str(settings.cache_index_ef_search),
        "hnsw.max_scan_tuples": str(settings.cache_index_scan_tuples_max),
    }


def maintain(settings: CacheSettings) -> IndexReport:
    """Bring the indexes in line with the scopes' sizes, one after the other.

    Takes as long as the builds take: minutes for a million rows. Writers and lookups go on
    meanwhile, and a run beside another does nothing. Raises DatabaseUnreachable.
    """
    with _maintenance_connection(settings) as connection:
        if not connection.execute(text(f"SELECT pg_try_advisory_lock({LOCK_ID})")).scalar_one():
            return IndexReport()
        try:
            return _maintain(connection, settings)
        finally:
            with suppress(SQLAlchemyError):  # a connection that was lost has given it back
                connection.execute(text(f"SELECT pg_advisory_unlock({LOCK_ID})"))


def _maintain(connection: Connection, settings: CacheSettings) -> IndexReport:
    rows_min = settings.cache_index_rows_min
    grown = {each.name: each for each in _wanted(connection, rows_min // SHRINKAGE)}
    found = _indexes(connection)
    # Nobody else builds, so what is invalid was left by a crash.
    useless = [index.name for index in found if not index.is_valid or index.name not in grown]
    known = {index.name: index for index in found if index.name not in useless}
    _drop(connection, useless)
    missing = [w for w in grown.values() if w.num_rows >= rows_min and w.name not in known]
    for wanted in missing:
        _build(connection, wanted, settings)
    renewed = [
        index.name
        for index in known.values()
        if _renew(connection, index, grown[index.name], settings)
    ]
    return IndexReport(built=len(missing), renewed=len(renewed), dropped=len(useless))


def _drop(connection: Connection, names: Sequence[str]) -> None:
    """Drop indexes where they exist, outside any transaction; lookups and writers go on."""
    for name in names:
        connection.execute(text(f"DROP INDEX CONCURRENTLY IF EXISTS {name}"))


@contextmanager
def _maintenance_connection(settings: CacheSettings) -> Iterator[Connection]:
    """One of its own, outside any transaction, without a time limit; lock and limits go with it."""
    options = {
        "maintenance_work_mem": f"{settings.cache_index_memory_bytes // 1024}kB",
        "max_parallel_maintenance_workers": str(settings.cache_index_workers),
        # A build ends with the process that asked for it.
        "client_connection_check_interval": "5s",
    }
    engine = connect(
        settings.database_url.get_secret_value(),
        pool_size=1,
        statement_timeout_s=0,
        application_name="nirvana-index",
        options=options,
    )
    try:
        with transaction(engine.execution_options(isolation_level="AUTOCOMMIT")) as connection:
            yield connection
    finally:
        engine.dispose()


def _wanted(connection: Connection, rows_min: int) -> list[_Wanted]:
    return [
        _Wanted(
            scope_id=row.scope_id,
            reach=reach,
            dimension=row.dimension,
            num_rows=row._mapping[reach.value],
        )
        for row in connection.execute(_SIZES, {"rows_min": max(1, rows_min)})
        for reach in Reach
        if row._mapping[reach.value] >= max(1, rows_min)
    ]


def _indexes(connection: Connection) -> list[_Index]:
    return [_index(row) for row in connection.execute(_INDEXES, {"prefix": _PREFIX})]


def _index(row: Row[Any]) -> _Index:
    fresh_bytes, _, parameters = (row.built_as or "").partition(" ")
    return _Index(
        name=row.name,
        is_valid=row.is_valid,
        num_bytes=row.num_bytes,
        fresh_bytes=float(fresh_bytes) if fresh_bytes else None,
        parameters=parameters,
    )


def _parameters(settings: CacheSettings) -> str:
    """Of HNSW, as SQL has them."""
    return f"m = {settings.cache_index_m}, ef_construction = {settings.cache_index_ef_construction}"


def _is_bloated(index: _Index, num_rows: int, growth_max: float) -> bool:
    return (
        index.fresh_bytes is not None
        and index.num_bytes / num_rows > growth_max * index.fresh_bytes
    )


def _build(connection: Connection, wanted: _Wanted, settings: CacheSettings) -> None:
    _create(connection, wanted, settings, name=wanted.name)
    _settle(connection, wanted.name, settings)


def _create(connection: Connection, wanted: _Wanted, settings: CacheSettings, *, name: str) -> None:
    create = _CREATE.format(
        name=name,
        dimension=int(wanted.dimension),
        parameters=_parameters(settings),
        scope_id=int(wanted.scope_id),
        condition=_CONDITIONS[wanted.reach],
    )
    connection.execute(text(create))


def _renew(connection: Connection, index: _Index, wanted: _Wanted, settings: CacheSettings) -> bool:
    """Build anew what has other parameters or has outgrown its rows; answers whether it did."""
    if index.parameters != _parameters(settings):
        # Beside the old one: to change its parameters would lock lookups out. A crash leaves what
        # the next run drops, since no scope wants it.
        beside = f"{index.name}_new"
        _create(connection, wanted, settings, name=beside)
        _drop(connection, [index.name])
        connection.execute(text(f"ALTER INDEX {beside} RENAME TO {index.name}"))
    elif _is_bloated(index, wanted.num_rows, settings.cache_index_growth_max):
        connection.execute(text(f"REINDEX INDEX CONCURRENTLY {index.name}"))
    else:
        return False
    _settle(connection, index.name, settings)
    return True


def _settle(connection: Connection, name: str, settings: CacheSettings) -> None:
    """Note how the index was built, and let the planner know how many rows it is about."""
    connection.execute(text(_NOTE_HOW_BUILT.format(name=name, parameters=_parameters(settings))))
    connection.execute(text("ANALYZE cached_prompts (scope_id, owner, is_shared)"))
