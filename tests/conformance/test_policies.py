"""The replay's policies against the product's SQL: same log, same hits, same victims."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from cache import index
from cache.database import transaction
from cache.entry import Hit, Scope, embedding_text
from cache.eviction import evict
from cache.ranking import RankedState
from cache.scopes import record_seconds_per_step
from cache.selector import Selector
from cache.settings import Policy
from evaluation.live_states import LiveStates
from evaluation.neighbours import search_exact
from evaluation.replay import CacheOptions, replay
from tests.conformance.memory_objects import MemoryObjects
from tests.integration.cache_harness import (
    DIMENSION,
    K_SET,
    START,
    Clock,
    empty,
    insert,
    migrated,
    register,
    rows,
    settings,
    use,
)
from tests.services import TestServices

GRACE_S = 5.0
SPEEDS = (0.05, 0.4)  # seconds per step of the two scopes
STATE_BYTES = 100

K_AND_BYTES = st.tuples(st.sampled_from([5, 10, 15, 20, 25, 50]), st.integers(100, 300))
STORE = st.tuples(
    st.just("store"),
    st.integers(0, 1),
    st.lists(K_AND_BYTES, min_size=1, max_size=4, unique_by=lambda state: state[0]),
)
USE = st.tuples(st.just("use"), st.integers(0, 1_000), st.sampled_from([5, 15, 25]))
EVICT = st.tuples(st.just("evict"), st.integers(0, 3_000), st.just(0))
ACTIONS = st.lists(st.one_of(STORE, STORE, USE, USE, EVICT), min_size=5, max_size=25)


@pytest.fixture(scope="module")
def database_url(services: TestServices) -> Iterator[str]:
    with services.database() as url:
        yield url


@pytest.fixture(scope="module")
def engine(database_url: str) -> Iterator[Engine]:
    with migrated(database_url) as engine:
        yield engine


@pytest.mark.parametrize("policy", Policy)
@hypothesis_settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(actions=ACTIONS)
def test_the_victims_are_the_same(
    engine: Engine, database_url: str, policy: Policy, actions: list[tuple[str, int, Any]]
) -> None:
    """With two scopes of other speeds, states of any size, and eviction at any time."""
    scopes = two_scopes(engine)
    states, clock = LiveStates(policy, capacity_bytes=0, grace_s=GRACE_S), Clock()
    alive: list[int] = []
    for action, number, detail in actions:
        now = clock.advance(1)
        seconds = (now - START).total_seconds()
        if action == "store":
            insert(engine, scopes[number], detail, at=now)
            for state in stored_since(engine, max(alive, default=0), number, seconds):
                states.store(state)
                alive.append(state.id)
        elif action == "use" and alive:
            state_id = alive[number % len(alive)]
            use(engine, state_id, detail, at=now)
            states.use(state_id, detail, at=seconds)
        elif action == "evict":
            states.capacity_bytes = max(1, number)
            evict_in_sql(engine, database_url, policy, states.capacity_bytes, clock)
            victims = states.evict(now=seconds)
            alive = [state_id for state_id in alive if state_id not in victims]
            assert state_ids(engine) == alive


@pytest.mark.parametrize("policy", Policy)
def test_a_log_has_the_same_hits_and_leaves_the_same_states(
    engine: Engine, database_url: str, policy: Policy
) -> None:
    """Lookup, use, store and eviction together, shared by user."""
    vectors, users = log_of_iterating_users(num_rows=60, seed=3)
    options = CacheOptions(
        policy=policy,
        capacity_share=0.15,
        state_bytes=STATE_BYTES,
        neighbours=3,
        grace_s=GRACE_S,
    )
    neighbours = search_exact(vectors, users, floor=0.65)
    replayed = replay(neighbours, options)
    skipped = run_in_sql(engine, database_url, options, vectors, users)
    assert len(set(skipped)) > 3, "the log is too easy"
    assert replayed.num_evicted > 50, "the cache is too large"
    assert skipped == replayed.skipped.tolist()
    assert len(state_ids(engine)) == replayed.num_stored - replayed.num_evicted


def two_scopes(engine: Engine) -> list[Scope]:
    empty(engine)
    scopes = [register(engine, scheduler=f"s{number}") for number in range(2)]
    with transaction(engine) as connection:
        for scope, speed in zip(scopes, SPEEDS, strict=True):
            record_seconds_per_step(connection, scope.id, speed)
    return scopes


def stored_since(engine: Engine, newest: int, scope: int, now: float) -> list[RankedState]:
    query = "SELECT id, num_bytes FROM cached_states WHERE id > :newest ORDER BY id"
    return [
        RankedState(
            id=row.id,
            num_bytes=row.num_bytes,
            seconds_per_step=SPEEDS[scope],
            num_inference_steps=50,
            created_at=now,
            last_used_at=now,
            inflation=0.0,
        )
        for row in rows(engine, query, newest=newest)
    ]


def state_ids(engine: Engine) -> list[int]:
    return [state_id for (state_id,) in rows(engine, "SELECT id FROM cached_states ORDER BY id")]


def evict_in_sql(
    engine: Engine, database_url: str, policy: Policy, capacity_bytes: int, clock: Clock
) -> None:
    chosen = settings(
        database_url,
        cache_capacity_bytes=capacity_bytes,
        cache_policy=policy,
        cache_evict_grace_s=GRACE_S,
        cache_evict_batch=3,
    )
    evict(engine, MemoryObjects(), chosen, now=clock())


def log_of_iterating_users(
    *, num_rows: int, seed: int
) -> tuple[np.ndarray[Any, np.dtype[np.float16]], np.ndarray[Any, np.dtype[np.int32]]]:
    """Users who change their prompt a little, or start anew."""
    rng = np.random.default_rng(seed)
    users = rng.integers(0, 3, num_rows).astype(np.int32)
    latest = rng.normal(size=(3, DIMENSION))
    vectors = np.empty((num_rows, DIMENSION))
    for row, user in enumerate(users):
        change = rng.normal(size=DIMENSION) * rng.choice([0.0, 0.15, 0.3, 3.0])
        latest[user] += change
        vectors[row] = latest[user] = latest[user] / np.linalg.norm(latest[user])
    return vectors.astype(np.float16), users


def run_in_sql(
    engine: Engine,
    database_url: str,
    options: CacheOptions,
    vectors: np.ndarray[Any, np.dtype[np.float16]],
    users: np.ndarray[Any, np.dtype[np.int32]],
) -> list[int]:
    """Steps that each job skips with the product's statements."""
    empty(engine)
    scope, clock, skipped = register(engine), Clock(), []
    for vector, user in zip(vectors.tolist(), users.tolist(), strict=True):
        hit = find_in_sql(engine, scope, vector, str(user), options, clock)
        k = 0 if hit is None else hit.k
        if hit is not None:
            use(engine, hit.state_id, k, at=clock())
        above = [(each, STATE_BYTES) for each in K_SET if each > k]
        if above:
            insert(engine, scope, above, at=clock(), owner=str(user), embedding=vector)
        capacity_bytes = options.capacity_bytes(len(vectors))
        evict_in_sql(engine, database_url, options.policy, capacity_bytes, clock)
        skipped.append(k)
        clock.advance(1)
    return skipped


def find_in_sql(
    engine: Engine,
    scope: Scope,
    vector: list[float],
    owner: str,
    options: CacheOptions,
    clock: Clock,
) -> Hit | None:
    with transaction(engine) as connection:
        return index.find(
            connection,
            scope,
            embedding_text(vector, DIMENSION),
            owner=owner,
            allowances=Selector().allowances(50),
            neighbours=options.neighbours,
            own_newest=100,
            now=clock(),
        )
