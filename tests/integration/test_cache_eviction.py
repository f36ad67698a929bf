"""Eviction: the right victims, never too many, rows first, nothing leaked."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text

from cache import removal
from cache.database import transaction
from cache.errors import ObjectStoreError
from cache.eviction import EvictionReport, clear, evict
from cache.lookup import Found
from cache.objects import ObjectStore, S3Objects
from cache.policies import choose_victims
from cache.scopes import record_seconds_per_step
from cache.settings import CacheSettings, Policy
from cache.stats import cache_stats
from cache.sweep import sweep
from tests.conformance.memory_objects import MemoryObjects
from tests.integration.cache_harness import (
    DIMENSION,
    QUERY,
    START,
    Clock,
    count,
    empty,
    entry,
    insert,
    migrated,
    register,
    rows,
    running_cache,
    settings,
    spec,
    use,
)
from tests.services import TestServices


@pytest.fixture(scope="module")
def module_database_url(services: TestServices) -> Iterator[str]:
    with services.database() as url:
        yield url


@pytest.fixture(scope="module")
def module_engine(module_database_url: str) -> Iterator[Engine]:
    with migrated(module_database_url) as engine:
        yield engine


@pytest.fixture
def database_url(module_database_url: str) -> str:
    return module_database_url


@pytest.fixture
def engine(module_engine: Engine) -> Engine:
    empty(module_engine)
    return module_engine


@pytest.fixture
def objects() -> MemoryObjects:
    return MemoryObjects()


def with_capacity(database_url: str, capacity_bytes: int, **changes: Any) -> CacheSettings:
    return settings(database_url, cache_capacity_bytes=capacity_bytes, **changes)


def kept_ks(engine: Engine) -> list[int]:
    return [k for (k,) in rows(engine, "SELECT k FROM cached_states ORDER BY k")]


# --- what the policies are for -------------------------------------------------------------------


def test_lcbfu_keeps_what_saved_the_most_steps(engine: Engine, database_url: str) -> None:
    scope = register(engine)
    insert(engine, scope, [(5, 100), (10, 100), (25, 100)])
    for (state_id, k), times in zip(
        rows(engine, "SELECT id, k FROM cached_states ORDER BY k"), (4, 1, 1), strict=True
    ):
        use(engine, state_id, k, times=times)  # saved 20, 10 and 25 steps
    chosen = with_capacity(database_url, 200, cache_policy="lcbfu", cache_evict_grace_s=0)
    evict(engine, MemoryObjects(), chosen, now=START)
    assert kept_ks(engine) == [5, 25]


def test_lcbfu_spares_what_had_no_chance_yet(engine: Engine, database_url: str) -> None:
    scope = register(engine)
    insert(engine, scope, [(5, 100)], at=START)
    use(engine, rows(engine, "SELECT id FROM cached_states")[0][0], 5)
    insert(engine, scope, [(25, 100)], at=START + timedelta(seconds=100))
    chosen = with_capacity(database_url, 100, cache_policy="lcbfu", cache_evict_grace_s=60)
    evict(engine, MemoryObjects(), chosen, now=START + timedelta(seconds=110))
    assert kept_ks(engine) == [25]


def test_capacity_holds_even_where_everything_is_young(engine: Engine, database_url: str) -> None:
    insert(engine, register(engine), [(5, 100), (10, 100), (15, 100)])
    chosen = with_capacity(database_url, 100, cache_policy="lcbfu", cache_evict_grace_s=3_600)
    report = evict(engine, MemoryObjects(), chosen, now=START)
    assert report.live_bytes == 100


def test_what_made_room_is_counted_by_the_hour(engine: Engine, database_url: str) -> None:
    chosen = with_capacity(database_url, 100)
    for minutes in (0, 1, 61):
        insert(engine, register(engine), [(5, 100), (10, 100), (15, 100)])
        evict(engine, MemoryObjects(), chosen, now=START + timedelta(minutes=minutes))
    hour = START.replace(minute=0, second=0, microsecond=0)
    counted = rows(engine, "SELECT hour, num_states, num_bytes FROM evictions ORDER BY hour")
    assert counted == [(hour, 5, 500), (hour + timedelta(hours=1), 3, 300)]


def test_the_aged_policy_lets_go_of_what_was_popular_once(
    engine: Engine, database_url: str
) -> None:
    """As published, LCBFU keeps the past and evicts the session in progress."""
    kept = {}
    for policy in (Policy.LCBFU, Policy.LCBFU_AGED):
        empty(engine)
        scope, clock = register(engine), Clock()
        chosen = with_capacity(database_url, 300, cache_policy=policy, cache_evict_grace_s=0)
        insert(engine, scope, [(25, 100)], at=clock())
        use(engine, rows(engine, "SELECT id FROM cached_states")[0][0], 25, times=3)
        for _ in range(60):
            insert(engine, scope, [(10, 100)], at=clock.advance(60))
            evict(engine, MemoryObjects(), chosen, now=clock())
        kept[policy] = kept_ks(engine)
    assert kept == {Policy.LCBFU: [10, 10, 25], Policy.LCBFU_AGED: [10, 10, 10]}


def test_scopes_compare_by_the_gpu_time_that_a_byte_saves(
    engine: Engine, database_url: str
) -> None:
    slow, fast = register(engine, model="slow"), register(engine, model="fast")
    with transaction(engine) as connection:
        record_seconds_per_step(connection, slow.id, 2.0)
        record_seconds_per_step(connection, fast.id, 0.1)
    insert(engine, slow, [(5, 100)])
    insert(engine, fast, [(25, 100)])
    evict(engine, MemoryObjects(), with_capacity(database_url, 100), now=START)
    assert kept_ks(engine) == [5]


# --- bounds, order, failures ---------------------------------------------------------------------


def test_nothing_happens_under_the_capacity(engine: Engine, database_url: str) -> None:
    insert(engine, register(engine), [(5, 100)])
    report = evict(engine, MemoryObjects(), with_capacity(database_url, 100), now=START)
    assert report == EvictionReport(
        expired_states=0,
        evicted_states=0,
        evicted_bytes=0,
        objects_removed=0,
        objects_left=0,
        live_bytes=100,
    )


def test_an_empty_cache(engine: Engine, database_url: str) -> None:
    register(engine)
    report = evict(engine, MemoryObjects(), with_capacity(database_url, 1), now=START)
    assert (report.evicted_states, report.live_bytes) == (0, 0)


def test_rows_and_objects_go_together_and_empty_prompts_with_them(
    engine: Engine, database_url: str, objects: MemoryObjects
) -> None:
    scope = register(engine)
    for _ in range(10):
        insert(engine, scope, [(5, 100), (25, 100)], objects=objects)
    report = evict(
        engine, objects, with_capacity(database_url, 500, cache_evict_batch=4), now=START
    )
    assert (report.evicted_states, report.evicted_bytes, report.live_bytes) == (15, 1_500, 500)
    assert (report.objects_removed, report.objects_left) == (15, 0)
    assert kept_ks(engine) == [5, 5, 25, 25, 25]  # the newest: one of the 8th, two of the last two
    assert count(engine, "cached_prompts") == 3
    assert set(objects.stored) == {key for (key,) in rows(engine, "SELECT key FROM cached_states")}


def test_a_run_is_bounded(engine: Engine, database_url: str, objects: MemoryObjects) -> None:
    scope = register(engine)
    for _ in range(10):
        insert(engine, scope, [(5, 100)], objects=objects)
    chosen = with_capacity(database_url, 1, cache_evict_max=3, cache_evict_batch=2)
    assert [evict(engine, objects, chosen, now=START).evicted_states for _ in range(4)] == [
        3,
        3,
        3,
        1,
    ]


def test_each_namespace_has_its_capacity(engine: Engine, database_url: str) -> None:
    for namespace in ("one", "two", "own"):
        insert(engine, register(engine, namespace), [(5, 100), (10, 100), (15, 100)])
    with transaction(engine) as connection:
        connection.execute(
            text("UPDATE namespaces SET capacity_bytes = 100 WHERE namespace = 'own'")
        )
    evict(engine, MemoryObjects(), with_capacity(database_url, 200), now=START)
    stats = cache_stats(engine, capacity_bytes=200)
    kept = {each.namespace: (each.num_bytes, each.capacity_bytes) for each in stats.by_namespace}
    assert kept == {"one": (200, 200), "two": (200, 200), "own": (100, 100)}


def test_expired_prompts_go_whatever_the_capacity(
    engine: Engine, database_url: str, objects: MemoryObjects
) -> None:
    scope = register(engine)
    insert(engine, scope, [(5, 100), (10, 100)], objects=objects, expires_at=START)
    insert(engine, scope, [(15, 100)], objects=objects, expires_at=START + timedelta(seconds=1))
    report = evict(engine, objects, with_capacity(database_url, 10**9), now=START)
    assert (report.expired_states, report.evicted_states, report.evicted_bytes) == (2, 0, 200)
    assert kept_ks(engine) == [15]
    assert len(objects.stored) == 1


def test_states_that_are_being_counted_are_left_for_the_next_run(
    engine: Engine, database_url: str
) -> None:
    insert(engine, register(engine), [(5, 100), (10, 100)])
    chosen = with_capacity(database_url, 1)
    with engine.begin() as counting:
        counting.execute(
            text(
                "UPDATE state_uses SET uses = 1"
                " WHERE state_id = (SELECT id FROM cached_states WHERE k = 5)"
            )
        )
        # The prompt is locked with the first state that goes, so the run ends without waiting.
        evict(engine, MemoryObjects(), chosen, now=START)
        assert 5 in kept_ks(engine)
    evict(engine, MemoryObjects(), chosen, now=START)
    assert kept_ks(engine) == []
    assert count(engine, "cached_prompts") == 0


class AbsentObjects(MemoryObjects):
    """Refuses to delete: all, or what contains a word."""

    refused: str | None = None

    def delete_many(self, keys: Iterable[str]) -> dict[str, str]:
        if self.refused is None:
            raise ObjectStoreError("away")
        wanted = list(keys)
        super().delete_many([key for key in wanted if self.refused not in key])
        return {key: "denied" for key in wanted if self.refused in key}


def test_objects_that_could_not_be_deleted_are_deleted_later(
    engine: Engine, database_url: str
) -> None:
    objects = AbsentObjects()
    insert(engine, register(engine), [(5, 100), (10, 100)], objects=objects)
    report = evict(engine, objects, with_capacity(database_url, 1), now=START)
    assert (report.evicted_states, report.objects_removed, report.objects_left) == (2, 0, 2)
    objects.refused = "/5"
    report = evict(engine, objects, with_capacity(database_url, 1), now=START)
    assert (report.objects_removed, report.objects_left) == (1, 1)
    objects.refused = "nothing"
    report = evict(engine, objects, with_capacity(database_url, 1), now=START)
    assert (report.objects_removed, report.objects_left) == (1, 0)
    assert objects.stored == {}


class FailingObjects(MemoryObjects):
    """Goes away after some requests to delete."""

    requests_left = 2

    def delete_many(self, keys: Iterable[str]) -> dict[str, str]:
        if not self.requests_left:
            raise ObjectStoreError("away")
        self.requests_left -= 1
        return super().delete_many(keys)


def test_what_was_deleted_before_the_store_went_away_is_counted(
    engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "OBJECTS_PER_REQUEST", 1)
    monkeypatch.setattr(removal, "PARALLEL_REQUESTS", 1)
    objects = FailingObjects()
    insert(engine, register(engine), [(k, 100) for k in (5, 10, 15, 20)], objects=objects)
    report = evict(engine, objects, with_capacity(database_url, 1), now=START)
    assert (report.evicted_states, report.objects_removed, report.objects_left) == (4, 2, 2)
    assert len(objects.stored) == 2


def test_two_runs_at_once_do_not_evict_twice_as_much(
    engine: Engine, database_url: str, objects: MemoryObjects
) -> None:
    scope = register(engine)
    for _ in range(100):
        insert(engine, scope, [(5, 100), (10, 100)], objects=objects)
    chosen = with_capacity(database_url, 10_000, cache_evict_batch=5)
    threads = [
        threading.Thread(target=evict, args=(engine, objects, chosen), kwargs={"now": START})
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    evict(engine, objects, chosen, now=START)
    assert cache_stats(engine, capacity_bytes=0).num_bytes == 10_000
    assert len(objects.stored) == 100


def test_clearing_takes_one_namespace_or_all(
    engine: Engine, database_url: str, objects: MemoryObjects
) -> None:
    for namespace in ("one", "two", "three"):
        insert(engine, register(engine, namespace), [(5, 100), (10, 100)], objects=objects)
    chosen = settings(database_url, cache_evict_max=1)
    removed = clear(engine, objects, chosen, now=START, namespace="two")
    assert (removed.num_states, removed.num_bytes) == (2, 200)
    stats = cache_stats(engine, capacity_bytes=1)
    assert {each.namespace: each.num_bytes for each in stats.by_namespace} == {
        "one": 200,
        "two": 0,
        "three": 200,
    }
    assert clear(engine, objects, chosen, now=START).num_states == 4
    assert count(engine, "cached_prompts") == 0
    assert clear(engine, objects, chosen, now=START).num_states == 0


ONE_PROMPT_WITH_MANY_STATES = """
    WITH new AS (
         INSERT INTO cached_states (prompt_id, kind, k, num_bytes, key, sha256, created_at)
         SELECT p.id, 'intermediate', k, 100, 'states/' || k, '', now()
           FROM cached_prompts p, generate_series(1_001, 21_000) k
      RETURNING id, k
    )
    INSERT INTO state_uses (state_id, namespace, scope_id, num_bytes, priority, last_used_at)
    SELECT new.id, c.namespace, c.id, 100, random(), now() - random() * interval '1 day'
      FROM new, scopes c
"""

INDEXED = {Policy.LCBFU_AGED: "ix_state_uses_priority", Policy.FIFO: "pk_state_uses"}


@pytest.mark.parametrize("policy", Policy)
def test_the_choice_has_its_index_or_reads_the_counters_once(
    engine: Engine, policy: Policy
) -> None:
    insert(engine, register(engine), [(5, 100)])
    with transaction(engine) as connection:
        connection.execute(text(ONE_PROMPT_WITH_MANY_STATES))
        connection.execute(text("ANALYZE"))
        wanted = {"namespace": "default", "limit": 200, "young_since": START}
        explained = text("EXPLAIN " + choose_victims(policy).text)
        plan = "\n".join(connection.execute(explained, wanted).scalars())
    if policy in INDEXED:
        assert f"Index Scan using {INDEXED[policy]} on state_uses" in plan, plan
        assert "Sort" not in plan, plan
    else:
        assert plan.count("Seq Scan on state_uses") == plan.count("Sort Key") == 1, plan
    assert ("scopes" in plan) is (policy is Policy.LCBFU), plan
    assert "cached_states" not in plan, plan


# --- churn ---------------------------------------------------------------------------------------


def churn(
    work: list[Callable[[random.Random], None]], *, rounds: int, errors: list[BaseException]
) -> list[threading.Thread]:
    def run(action: Callable[[random.Random], None], seed: int) -> None:
        chance = random.Random(seed)
        try:
            for _ in range(rounds):
                action(chance)
        except BaseException as error:  # noqa: BLE001  shown by the test
            errors.append(error)

    return [threading.Thread(target=run, args=(action, seed)) for seed, action in enumerate(work)]


@pytest.mark.parametrize(("server", "rounds"), [("memory", 40), ("s3", 12)])
def test_nothing_is_lost_or_leaked_by_lookups_stores_uses_and_evictions_together(
    request: pytest.FixtureRequest, engine: Engine, database_url: str, server: str, rounds: int
) -> None:
    objects: ObjectStore = MemoryObjects()
    if server == "s3":
        objects = S3Objects.from_url(request.getfixturevalue("s3_url"))
    clock, errors = Clock(), list[BaseException]()
    changes: dict[str, Any] = {"cache_uses_batch": 4, "cache_uses_flush_s": 0.05}
    with running_cache(database_url, objects, clock=clock, **changes) as cache:
        scope = cache.scope(spec())
        cache.store(scope, entry(owner="u0"))
        num_bytes = next(objects.list("states/")).num_bytes
        chosen = with_capacity(database_url, 40 * num_bytes, cache_evict_batch=7)
        owners = [f"u{number}" for number in range(6)]
        numbers = itertools.count()

        def store(chance: random.Random) -> None:
            vector = (1.0, *(chance.uniform(0, 0.3) for _ in range(DIMENSION - 1)))
            new = replace(
                entry(vector), owner=chance.choice(owners), prompt_hash=str(next(numbers) % 20)
            )
            assert cache.store(scope, new, is_refresh=chance.random() < 0.3) is not None

        def find(chance: random.Random) -> None:
            outcome = cache.find(scope, QUERY, owner=chance.choice(owners))
            if isinstance(outcome, Found):
                assert outcome.latents[0, 0, 0] == outcome.hit.k
                cache.count_use(outcome.hit, outcome.hit.k)

        def clean(_: random.Random) -> None:
            evict(engine, objects, chosen, now=clock())

        def repair(_: random.Random) -> None:
            # Objects are young, rows are not: a row whose object is just being evicted is met.
            sweep(engine, objects, now=datetime.now(UTC), repair=True)

        work = [store, store, find, find, clean, clean, repair]
        threads = churn(work, rounds=rounds, errors=errors)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        cache.flush()
        counts = cache.counts()
    assert not any(counts.get(f"miss_{bad}") for bad in ("internal", "checksum_mismatch")), counts
    report = evict(engine, objects, chosen, now=clock())
    assert report.live_bytes <= 40 * num_bytes
    swept = sweep(engine, objects, now=clock(), grace_s=-(10**9))
    assert (swept.objects_without_rows, swept.rows_without_objects) == (0, 0), swept
    assert swept.prompts_without_states == 0
    assert report.objects_left == 0
    assert counts["hit"] > 0
