"""A PostgreSQL of the benchmark's own, with the cache's tables filled by binary COPY.

A folder that was filled and indexed once is used again as it is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql

from benchmarks.lookup.exact import NUM_STEPS
from benchmarks.lookup.vectors import K_SET, SCOPE_SHARES, Prompts
from cache import scopes
from cache.database import connect, transaction
from cache.entry import Scope, ScopeSpec, Sharing, StateKind
from cache.settings import CacheSettings
from fleet import ports
from fleet.program import Child
from fleet.services import postgres
from fleet.services.postgres import Passwords

PASSWORDS: Final = Passwords(superuser="benchmark", role="benchmark")  # on loopback, for this run
POSTGRES_EPOCH_S: Final = 946_684_800
CREATED_AT_S: Final = 1_790_000_000
COPIED: Final = 20_000  # rows encoded at a time
NEAREST_INDEXES: Final = "ix_cached_prompts_nearest_"
OWNER_INDEX: Final = "ix_cached_prompts_scope_owner"
HALFVEC_TYPE: Final = 2  # bytes of a number


_COUNT_USES = """
    INSERT INTO state_uses (state_id, namespace, scope_id, num_bytes, priority, last_used_at)
    SELECT s.id, c.namespace, c.id, s.num_bytes, 0, s.created_at
      FROM cached_prompts p
      JOIN cached_states s ON s.prompt_id = p.id
      JOIN scopes c ON c.id = p.scope_id
     WHERE p.id BETWEEN %(first)s AND %(last)s
"""

_COUNT_BYTES = """
    UPDATE scopes c
       SET live_bytes = held.num_bytes
      FROM (SELECT scope_id, sum(num_bytes) AS num_bytes
              FROM state_uses
             GROUP BY scope_id) held
     WHERE held.scope_id = c.id
"""


_PREWARM = """
    SELECT pg_prewarm(i.oid)
      FROM pg_class i
      LEFT JOIN pg_index x ON x.indexrelid = i.oid
     WHERE COALESCE(x.indrelid, i.oid)::regclass::text IN ('cached_prompts', 'cached_states')
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """A running server."""

    url: str
    superuser_url: str


@contextmanager
def running_database(folder: Path, *, shared_buffers: str) -> Iterator[Database]:
    """PostgreSQL with its data in `folder`; stopped at the end, its data kept."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)
    port = ports.choose_port()
    service = postgres.embedded(folder / "postgres", port=port, passwords=PASSWORDS)
    more = {"shared_buffers": shared_buffers, "max_wal_size": "16GB", "checkpoint_timeout": "1h"}
    options = [word for name, value in more.items() for word in ("-c", f"{name}={value}")]
    program = replace(
        service.program,
        argv=(*service.program.argv, *options),
        stop_grace_s=600.0,
        ready_timeout_s=600.0,
    )
    child = Child(program, log_path=folder / "postgres.log")
    try:
        child.wait_ready(threading.Event())
        superuser_url = postgres.superuser_url(port, PASSWORDS).rpartition("/")[0] + "/nirvana"
        yield Database(url=service.url, superuser_url=superuser_url)
    finally:
        child.stop()


def settings_of(database: Database, **changes: Any) -> CacheSettings:
    """The cache's settings for this database; no object store is asked."""
    return CacheSettings.load(
        database_url=database.url, s3_url="http://a:b@127.0.0.1:9/c", **changes
    )


def register_scopes(
    database: Database, dimension: int, sharing: Sharing, *, num: int = len(SCOPE_SHARES)
) -> list[Scope]:
    """The benchmark's scopes, in namespaces of their own; made where they are missing."""
    engine = connect(database.url)
    try:
        with transaction(engine) as connection:
            return [
                scopes.register(
                    connection,
                    _spec(f"scope-{number}", dimension),
                    sharing=sharing,
                    state_kind=StateKind.INTERMEDIATE,
                )
                for number in range(num)
            ]
    finally:
        engine.dispose()


def _spec(namespace: str, dimension: int) -> ScopeSpec:
    return ScopeSpec(
        namespace=namespace,
        model="benchmark",
        revision="1",
        scheduler="ddim",
        scheduler_config="c0",
        num_inference_steps=NUM_STEPS,
        height=512,
        width=512,
        latent_dtype="float16",
        embedder="benchmark",
        embedding_dimension=dimension,
    )


def fill(
    database: Database, prompts: Prompts, kept: NDArray[np.bool_], scope_ids: list[int]
) -> float:
    """Put prompts, states and counters in, with foreign keys unchecked; answers the seconds.

    Goes on where it was interrupted.
    """
    started = time.monotonic()
    with psycopg.connect(database.superuser_url) as connection:
        connection.execute("SET session_replication_role = replica")
        there = connection.execute("SELECT COALESCE(max(id), 0) FROM cached_prompts").fetchone()
        for start in range(there[0] if there else 0, len(prompts), COPIED):
            rows = slice(start, min(start + COPIED, len(prompts)))
            _fill(connection, prompts, kept, scope_ids, rows)
            connection.commit()
        connection.execute(_COUNT_BYTES)
        for table in ("cached_prompts", "cached_states"):
            connection.execute(
                f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), max(id)) FROM {table}"
            )
    with psycopg.connect(database.superuser_url, autocommit=True) as connection:
        connection.execute("VACUUM (FREEZE, ANALYZE)")
        connection.execute("CHECKPOINT")
    return time.monotonic() - started


def _fill(
    connection: psycopg.Connection[Any],
    prompts: Prompts,
    kept: NDArray[np.bool_],
    scope_ids: list[int],
    rows: slice,
) -> None:
    ids = np.arange(rows.start, rows.stop) + 1
    scope = np.array(scope_ids)[prompts.scopes[rows]]
    _copy(
        connection,
        "cached_prompts (id, scope_id, owner, is_shared, embedding, prompt_hash,"
        " source_job_id, created_at)",
        [
            ids.astype(">i8"),
            scope.astype(">i8"),
            owner_names(prompts.users[rows]),
            np.ones(len(ids), np.uint8),
            _halfvecs(prompts.vectors[rows]),
            _digits(ids, 64),
            _digits(ids, 36),
            _created_at(ids),
        ],
    )
    at, column = np.nonzero(kept[rows])
    state_ids = ids[at] * len(K_SET) + column
    ks = np.array(K_SET)[column]
    _copy(
        connection,
        "cached_states (id, prompt_id, kind, k, num_bytes, key, sha256, created_at)",
        [
            state_ids.astype(">i8"),
            ids[at].astype(">i8"),
            np.full(len(at), b"intermediate"),
            ks.astype(">i4"),
            np.full(len(at), 32_896, ">i8"),
            np.char.mod("states/%056d.safetensors", state_ids).astype("S75"),
            _digits(state_ids, 64),
            _created_at(ids[at]),
        ],
    )
    connection.execute(_COUNT_USES, {"first": int(ids[0]), "last": int(ids[-1])})


def owner_names(users: NDArray[np.int32]) -> NDArray[np.bytes_]:
    """Names of users, all as long."""
    return np.char.mod("u%07d", users).astype("S8")


def _digits(numbers: NDArray[np.int64], width: int) -> NDArray[np.bytes_]:
    return np.char.mod(f"%0{width}d", numbers).astype(f"S{width}")


def _created_at(prompt_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """A microsecond after one another."""
    return ((CREATED_AT_S - POSTGRES_EPOCH_S) * 1_000_000 + prompt_ids).astype(">i8")


def _halfvecs(vectors: NDArray[np.float16]) -> NDArray[np.void]:
    """pgvector's binary form: dimension, an unused number, the values."""
    num, dimension = vectors.shape
    packed = np.zeros((num, dimension + 2), ">u2")
    packed[:, 0] = dimension
    packed[:, 2:] = vectors.astype(">f2").view(">u2")
    return packed.view(f"V{(dimension + 2) * HALFVEC_TYPE}")[:, 0]


def _copy(connection: psycopg.Connection[Any], target: str, columns: list[NDArray[Any]]) -> None:
    """COPY in binary form: each column has one width, so that numpy lays the rows out."""
    fields = [("count", ">i2")]
    for number, column in enumerate(columns):
        fields += [(f"length{number}", ">i4"), (f"value{number}", column.dtype.str)]
    rows = np.zeros(len(columns[0]), np.dtype(fields))
    rows["count"] = len(columns)
    for number, column in enumerate(columns):
        rows[f"length{number}"] = column.dtype.itemsize
        rows[f"value{number}"] = column
    with connection.cursor() as cursor, cursor.copy(f"COPY {target} FROM STDIN BINARY") as copy:
        copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8))
        copy.write(rows.tobytes())
        copy.write(b"\xff\xff")


def prewarm(database: Database) -> None:
    """Read what lookups read into the server's memory."""
    with psycopg.connect(database.superuser_url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS pg_prewarm")
        connection.execute(_PREWARM)


def index_bytes(database: Database, prefix: str) -> int:
    """Of the indexes whose names begin so."""
    with psycopg.connect(database.superuser_url) as connection:
        return sum(size for _, size in _indexes(connection, prefix))


def drop_indexes(database: Database) -> None:
    """Take away what `maintain` has built."""
    with psycopg.connect(database.superuser_url, autocommit=True) as connection:
        for name, _ in _indexes(connection, NEAREST_INDEXES):
            connection.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(name)))


def _indexes(connection: psycopg.Connection[Any], prefix: str) -> list[tuple[str, int]]:
    return connection.execute(
        "SELECT relname, pg_relation_size(oid) FROM pg_class"
        " WHERE relkind = 'i' AND starts_with(relname, %s)",
        [prefix],
    ).fetchall()
