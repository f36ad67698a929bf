"""A cache on a migrated database, and entries to put into it."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import torch
from sqlalchemy import Engine, text

from cache import index, scopes
from cache.approximate import ApproximateCache
from cache.calibration import Calibration
from cache.database import connect, transaction
from cache.entry import (
    Embedding,
    PromptRow,
    Scope,
    ScopeSpec,
    Sharing,
    StateKind,
    StateRow,
    embedding_text,
)
from cache.objects import ObjectStore
from cache.settings import CacheSettings
from cache.store import NewEntry, NewState
from cache.uses import Uses, add_uses
from migrations import migrate

START = datetime(2026, 11, 1, tzinfo=UTC)
DIMENSION = 8
SHAPE = (4, 4, 4)
K_SET = (5, 10, 15, 20, 25)


def spec(**changes: Any) -> ScopeSpec:
    fields: dict[str, Any] = {
        "namespace": "default",
        "model": "tiny",
        "revision": "1",
        "scheduler": "ddim",
        "scheduler_config": "c0",
        "num_inference_steps": 50,
        "height": 32,
        "width": 32,
        "latent_dtype": "float32",
        "embedder": "tiny-clip",
        "embedding_dimension": DIMENSION,
        "latent_shape": SHAPE,
    }
    return ScopeSpec(**{**fields, **changes})


#: The prompt that lookups ask for.
QUERY = (1.0,) + (0.0,) * (DIMENSION - 1)

# Integer vectors whose cosine with QUERY is exactly the paper's threshold, also in half precision.
AT_THRESHOLD = {
    0.65: (13.0, 15.0, 2.0, 1.0, 1.0, 0.0, 0.0, 0.0),
    0.75: (3.0, 2.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0),
    0.85: (17.0, 10.0, 3.0, 1.0, 1.0, 0.0, 0.0, 0.0),
    0.90: (9.0, 3.0, 3.0, 1.0, 0.0, 0.0, 0.0, 0.0),
    0.95: (19.0, 6.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0),
}


def at_cosine(cosine: float) -> tuple[float, ...]:
    """A unit vector at a cosine from QUERY (to half precision)."""
    return (cosine, math.sqrt(1 - cosine * cosine)) + (0.0,) * (DIMENSION - 2)


def latents(value: float = 0.0, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.full(shape, value)


def entry(
    embedding: Embedding = QUERY,
    *,
    owner: str = "",
    ks: tuple[int, ...] = K_SET,
    kind: StateKind = StateKind.INTERMEDIATE,
    **changes: Any,
) -> NewEntry:
    """Latents filled with their own k."""
    fields: dict[str, Any] = {
        "owner": owner,
        "embedding": embedding,
        "prompt_hash": f"hash of {embedding}",
        "source_job_id": "job-1",
        "states": tuple(NewState(kind=kind, k=k, latents=latents(float(k))) for k in ks),
    }
    return NewEntry(**{**fields, **changes})


@dataclass
class Clock:
    """A clock that stands still until it is moved."""

    now: datetime = field(default=START)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> datetime:
        self.now += timedelta(seconds=seconds)
        return self.now


def settings(
    database_url: str, s3_url: str = "http://a:b@127.0.0.1:9/c", **changes: Any
) -> CacheSettings:
    fields: dict[str, Any] = {"database_url": database_url, "s3_url": s3_url}
    return CacheSettings.load(**{**fields, **changes})


@contextmanager
def running_cache(
    database_url: str,
    objects: ObjectStore,
    *,
    clock: Clock | None = None,
    shipped: Sequence[Calibration] = (),
    **changes: Any,
) -> Iterator[ApproximateCache]:
    """A cache on a migrated database; `changes` are settings. Generous with time: CI is slow."""
    chosen = settings(database_url, **{"cache_budget_s": 10.0, **changes})
    reader = connect(
        database_url,
        is_reader=True,
        pool_size=8,
        statement_timeout_s=chosen.cache_budget_s,
        pool_timeout_s=chosen.cache_budget_s,
    )
    cache = ApproximateCache(
        chosen,
        objects,
        reader=reader,
        writer=connect(database_url),
        shipped=shipped,
        clock=clock or Clock(),
    )
    try:
        yield cache
    finally:
        cache.close()


@contextmanager
def migrated(database_url: str) -> Iterator[Engine]:
    """The database at head, and an engine to look into it."""
    migrate.upgrade(database_url)
    engine = connect(database_url, pool_size=8)
    try:
        yield engine
    finally:
        engine.dispose()


def empty(engine: Engine) -> None:
    """Delete all rows of the cache."""
    with transaction(engine) as connection:
        connection.execute(text("TRUNCATE namespaces, doomed_objects, calibrations CASCADE"))


def rows(engine: Engine, query: str, **values: Any) -> list[Any]:
    with transaction(engine) as connection:
        return list(connection.execute(text(query), values).all())


def count(engine: Engine, table: str) -> int:
    return int(rows(engine, f"SELECT count(*) FROM {table}")[0][0])


def register(
    engine: Engine, namespace: str = "default", sharing: Sharing = Sharing.USER, **changes: Any
) -> Scope:
    """A scope of the namespace; `changes` are of its spec."""
    with transaction(engine) as connection:
        return scopes.register(
            connection,
            spec(namespace=namespace, **changes),
            sharing=sharing,
            state_kind=StateKind.INTERMEDIATE,
        )


def insert(
    engine: Engine,
    scope: Scope,
    states: Iterable[tuple[int, int]],
    *,
    at: datetime = START,
    owner: str = "",
    embedding: Embedding = QUERY,
    objects: ObjectStore | None = None,
    expires_at: datetime | None = None,
    prompt_hash: str | None = None,
) -> int:
    """Insert a prompt with states (k, bytes), k = 50 a final one; answers the prompt's id."""
    folder = uuid.uuid4().hex
    kept = tuple(
        StateRow(
            kind=StateKind.FINAL if k == 50 else StateKind.INTERMEDIATE,
            k=k,
            key=f"states/{scope.id}/{folder}/{k}",
            sha256="",
            num_bytes=num_bytes,
        )
        for k, num_bytes in states
    )
    if objects is not None:
        for state in kept:
            objects.put(state.key, bytes(state.num_bytes))
    prompt = PromptRow(
        owner=owner,
        embedding=embedding_text(embedding, DIMENSION),
        prompt_hash=folder if prompt_hash is None else prompt_hash,
        source_job_id=None,
        created_at=at,
        expires_at=expires_at,
        states=kept,
    )
    with transaction(engine) as connection:
        return index.insert(connection, scope, prompt)


def use(engine: Engine, state_id: int, steps: int, *, at: datetime = START, times: int = 1) -> None:
    add_uses(engine, {state_id: Uses(uses=times, steps_saved=steps * times, last_used_at=at)})


def lookup_values(scope: Scope, owner: str, embedding: Sequence[float] = QUERY) -> dict[str, Any]:
    """Values for `index.find_statement`, of which `index.nearest_statement` takes some."""
    return {
        "scope_id": scope.id,
        "owner": owner,
        "embedding": embedding_text(embedding, len(embedding)),
        "prompt_hash": None,
        "ks": [5, 25],
        "floors": [0.6, 0.9],
        "neighbours": 10,
        "own_newest": 100,
        "now": START,
        "k_again": 50,
        "margin": 0.0,
        "choice": 0,
    }
