"""Find, fetch, count, store: on PostgreSQL, with objects that a test can damage."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from sqlalchemy import Engine, text

from cache import codec
from cache.approximate import ApproximateCache
from cache.entry import Miss, MissReason, StateKind
from cache.errors import ObjectStoreError
from cache.lookup import Found
from cache.objects import S3Objects
from cache.store import NewState
from tests.conformance.memory_objects import MemoryObjects
from tests.integration.cache_harness import (
    AT_THRESHOLD,
    K_SET,
    QUERY,
    Clock,
    at_cosine,
    count,
    empty,
    entry,
    latents,
    migrated,
    rows,
    running_cache,
    settings,
    spec,
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
    """One migrated database for the module, emptied for each test."""
    return module_database_url


@pytest.fixture
def engine(module_engine: Engine) -> Engine:
    empty(module_engine)
    return module_engine


@pytest.fixture
def objects() -> MemoryObjects:
    return MemoryObjects()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(
    database_url: str, engine: Engine, objects: MemoryObjects, clock: Clock
) -> Iterator[ApproximateCache]:
    with running_cache(database_url, objects, clock=clock) as cache:
        yield cache


def k_found(outcome: Found | Miss) -> int | MissReason:
    return outcome.hit.k if isinstance(outcome, Found) else outcome.reason


def test_what_is_stored_is_found_bit_for_bit(
    database_url: str, engine: Engine, s3_url: str
) -> None:
    with running_cache(database_url, S3Objects.from_url(s3_url)) as cache:
        kept = torch.randn(4, 4, 4)
        state = NewState(kind=StateKind.INTERMEDIATE, k=20, latents=kept)
        assert cache.store(spec(), entry(states=(state,), owner="ann", source_job_id="job-7"))
        found = cache.find(spec(), QUERY, owner="ann")
        assert isinstance(found, Found)
        assert torch.equal(found.latents, kept)
        assert (found.hit.k, found.hit.source_job_id, found.hit.owner) == (20, "job-7", "ann")
        assert found.hit.similarity == pytest.approx(1.0)
        assert found.lookup_s > 0
        assert found.fetch_s > 0
        assert cache.counts() == {"hit": 1, "stored": 1, "uses_dropped": 0}


def test_an_empty_cache_is_a_miss(cache: ApproximateCache) -> None:
    outcome = cache.find(spec(), QUERY)
    assert outcome == Miss(reason=MissReason.NONE_SIMILAR)
    assert outcome.lookup_s > 0
    assert cache.counts() == {"miss_none_similar": 1, "uses_dropped": 0}


@pytest.mark.parametrize(
    ("cosine", "k"),
    [(0.99, 25), (0.93, 20), (0.88, 15), (0.80, 10), (0.70, 5), (0.60, MissReason.NONE_SIMILAR)],
)
@pytest.mark.parametrize("kind", StateKind)
def test_the_paper_s_table(
    cache: ApproximateCache, kind: StateKind, cosine: float, k: int | MissReason
) -> None:
    ks = K_SET if kind is StateKind.INTERMEDIATE else (50,)
    cache.store(spec(), entry(at_cosine(cosine), kind=kind, ks=ks))
    assert k_found(cache.find(spec(), QUERY)) == k


@pytest.mark.parametrize(
    ("threshold", "k"), [(0.95, 20), (0.90, 15), (0.85, 10), (0.75, 5), (0.65, None)]
)
def test_a_similarity_at_the_threshold_is_not_above_it(
    cache: ApproximateCache, threshold: float, k: int | None
) -> None:
    cache.store(spec(), entry(AT_THRESHOLD[threshold]))
    assert k_found(cache.find(spec(), QUERY)) == (k or MissReason.NONE_SIMILAR)


def test_a_hole_is_passed_over_for_the_largest_k_that_exists(cache: ApproximateCache) -> None:
    cache.store(spec(), entry(at_cosine(0.99), ks=(5, 15)))
    assert k_found(cache.find(spec(), QUERY)) == 15


def test_a_farther_prompt_wins_where_the_nearest_has_a_hole(cache: ApproximateCache) -> None:
    cache.store(spec(), entry(at_cosine(0.99), ks=(5,), source_job_id="near"))
    cache.store(spec(), entry(at_cosine(0.91), source_job_id="far"))
    found = cache.find(spec(), QUERY)
    assert isinstance(found, Found)
    assert (found.hit.k, found.hit.source_job_id) == (20, "far")


def test_among_equals_the_nearest_prompt_wins(cache: ApproximateCache) -> None:
    for cosine in (0.96, 0.99, 0.97):
        cache.store(spec(), entry(at_cosine(cosine), source_job_id=str(cosine)))
    found = cache.find(spec(), QUERY)
    assert isinstance(found, Found)
    assert found.hit.source_job_id == "0.99"


def test_a_final_state_and_an_intermediate_one_compete_by_k(cache: ApproximateCache) -> None:
    cache.store(spec(), entry(at_cosine(0.91), kind=StateKind.FINAL, ks=(50,)))
    cache.store(spec(), entry(at_cosine(0.92), ks=(15,)))
    found = cache.find(spec(), QUERY)
    assert isinstance(found, Found)
    assert (found.hit.kind, found.hit.k) == (StateKind.FINAL, 20)
    cache.store(spec(), entry(at_cosine(0.98), ks=(25,)))
    found = cache.find(spec(), QUERY)
    assert isinstance(found, Found)
    assert (found.hit.kind, found.hit.k) == (StateKind.INTERMEDIATE, 25)


@pytest.mark.parametrize(
    "change",
    [
        {"namespace": "other"},
        {"model": "other"},
        {"revision": "2"},
        {"scheduler": "euler"},
        {"scheduler_config": "c1"},
        {"num_inference_steps": 40},
        {"height": 64},
        {"width": 64},
        {"latent_dtype": "float16"},
        {"embedder": "other"},
    ],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.parametrize("sharing", ["user", "namespace"])
def test_nothing_crosses_a_scope(
    database_url: str,
    engine: Engine,
    objects: MemoryObjects,
    change: dict[str, Any],
    sharing: str,
) -> None:
    with running_cache(database_url, objects, cache_sharing=sharing) as cache:
        cache.store(spec(), entry())
        assert k_found(cache.find(spec(**change), QUERY)) is MissReason.NONE_SIMILAR
        assert k_found(cache.find(spec(), QUERY)) == 25


@pytest.mark.parametrize(("owner", "other"), [("ann", "bob"), ("ann", ""), ("", "ann")])
def test_under_user_sharing_nothing_crosses_users(
    cache: ApproximateCache, owner: str, other: str
) -> None:
    cache.store(spec(), entry(owner=owner))
    assert k_found(cache.find(spec(), QUERY, owner=other)) is MissReason.NONE_SIMILAR
    assert k_found(cache.find(spec(), QUERY, owner=owner)) == 25


def test_under_namespace_sharing_users_share(
    database_url: str, engine: Engine, objects: MemoryObjects
) -> None:
    with running_cache(database_url, objects, cache_sharing="namespace") as cache:
        cache.store(spec(), entry(owner="ann"))
        found = cache.find(spec(), QUERY, owner="bob")
        assert isinstance(found, Found)
        assert found.hit.owner == "ann"


def test_what_a_user_stored_as_their_own_is_never_shared_later(
    database_url: str, engine: Engine, objects: MemoryObjects
) -> None:
    with running_cache(database_url, objects, cache_sharing="user") as cache:
        cache.store(spec(), entry(owner="ann"))
    with running_cache(database_url, objects, cache_sharing="namespace") as cache:
        assert k_found(cache.find(spec(), QUERY, owner="bob")) is MissReason.NONE_SIMILAR


def test_an_expired_prompt_is_not_found(
    database_url: str, engine: Engine, objects: MemoryObjects, clock: Clock
) -> None:
    with running_cache(database_url, objects, clock=clock, cache_ttl_s=60) as cache:
        cache.store(spec(), entry())
        clock.advance(59)
        assert k_found(cache.find(spec(), QUERY)) == 25
        clock.advance(2)
        assert k_found(cache.find(spec(), QUERY)) is MissReason.NONE_SIMILAR


def test_a_refresh_replaces_the_same_prompt_of_the_same_owner(
    cache: ApproximateCache, engine: Engine
) -> None:
    for owner in ("ann", "bob"):
        cache.store(spec(), entry(owner=owner, source_job_id="old"))
    cache.store(spec(), entry(at_cosine(0.99), owner="ann", source_job_id="another prompt"))
    cache.store(spec(), entry(owner="ann", source_job_id="new"), is_refresh=True)
    kept = rows(engine, "SELECT owner, source_job_id FROM cached_prompts ORDER BY id")
    assert kept == [("bob", "old"), ("ann", "another prompt"), ("ann", "new")]
    assert count(engine, "doomed_objects") == len(K_SET)


def test_a_lookup_writes_nothing(cache: ApproximateCache, engine: Engine) -> None:
    cache.store(spec(), entry())
    before = rows(engine, "SELECT xmin::text, * FROM state_uses ORDER BY state_id")
    assert k_found(cache.find(spec(), QUERY)) == 25
    cache.flush()
    assert rows(engine, "SELECT xmin::text, * FROM state_uses ORDER BY state_id") == before


def test_uses_are_counted_when_said_so(
    cache: ApproximateCache, engine: Engine, clock: Clock
) -> None:
    cache.store(spec(), entry(ks=(20, 25)))
    found = cache.find(spec(), QUERY)
    assert isinstance(found, Found)
    for _ in range(3):
        used_at = clock.advance(10)
        cache.count_use(found.hit, 25)
    cache.flush()
    used = rows(
        engine,
        "SELECT uses, steps_saved, benefit, last_used_at FROM state_uses WHERE state_id = :id",
        id=found.hit.state_id,
    )
    assert used == [(3, 75, 75, used_at)]
    assert rows(engine, "SELECT sum(uses) FROM state_uses") == [(3,)]


def test_uses_are_flushed_when_a_batch_is_full_and_at_close(
    database_url: str, engine: Engine, objects: MemoryObjects
) -> None:
    changes: dict[str, Any] = {"cache_uses_batch": 2, "cache_uses_flush_s": 1_000}
    with running_cache(database_url, objects, **changes) as cache:
        cache.store(spec(), entry(ks=(20, 25)))
        hits = {}
        for cosine in (0.91, 1.0):
            found = cache.find(spec(), at_cosine(cosine))
            assert isinstance(found, Found)
            hits[found.hit.k] = found.hit
        cache.count_use(hits[20], 20)
        cache.count_use(hits[25], 25)
        deadline = time.monotonic() + 10
        while rows(engine, "SELECT sum(uses) FROM state_uses") != [(2,)]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        cache.count_use(hits[25], 25)
    assert rows(engine, "SELECT sum(steps_saved) FROM state_uses") == [(70,)]


def test_uses_of_an_evicted_state_are_passed_over(cache: ApproximateCache, engine: Engine) -> None:
    cache.store(spec(), entry(ks=(25,)))
    found = cache.find(spec(), QUERY)
    assert isinstance(found, Found)
    rows(engine, "DELETE FROM cached_states RETURNING id")
    cache.count_use(found.hit, 25)
    cache.flush()
    assert count(engine, "state_uses") == 0


# --- what can go wrong ---------------------------------------------------------------------------


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flipped, MissReason.CHECKSUM_MISMATCH),
        (lambda data: data[:-8], MissReason.OBJECT_TRUNCATED),
        (lambda data: b"", MissReason.OBJECT_TRUNCATED),
        (lambda data: None, MissReason.OBJECT_MISSING),
    ],
    ids=["flipped", "truncated", "empty", "missing"],
)
def test_a_damaged_object_is_a_miss_once_and_then_forgotten(
    cache: ApproximateCache,
    engine: Engine,
    objects: MemoryObjects,
    caplog: pytest.LogCaptureFixture,
    damage: Any,
    reason: MissReason,
) -> None:
    cache.store(spec(), entry(ks=(20, 25)))
    key = next(key for key in objects.stored if "-25." in key)
    data, modified_at = objects.stored.pop(key)
    if (damaged := damage(data)) is not None:
        objects.stored[key] = (damaged, modified_at)
    with caplog.at_level(logging.WARNING):
        assert cache.find(spec(), QUERY) == Miss(reason=reason)
    assert [record.reason for record in caplog.records] == [reason]  # type: ignore[attr-defined]
    assert cache.counts()[f"miss_{reason}"] == 1
    assert k_found(cache.find(spec(), QUERY)) == 20
    assert rows(engine, "SELECT key FROM doomed_objects") == [(key,)]


@pytest.mark.parametrize(
    "wrong", [latents(shape=(4, 4, 5)), latents().to(torch.float16)], ids=["shape", "dtype"]
)
def test_latents_of_another_form_are_a_miss(cache: ApproximateCache, wrong: torch.Tensor) -> None:
    state = NewState(kind=StateKind.INTERMEDIATE, k=25, latents=wrong)
    cache.store(spec(), entry(states=(state,)))
    assert k_found(cache.find(spec(), QUERY)) is MissReason.LATENTS_MISMATCH


def test_a_database_that_is_not_there_is_a_miss() -> None:
    cache = ApproximateCache.open(settings("postgresql://someone:hunter2@127.0.0.1:9/nirvana"))
    assert k_found(cache.find(spec(), QUERY)) is MissReason.DATABASE_UNREACHABLE
    assert cache.store(spec(), entry()) is None
    cache.close()


def test_a_database_without_tables_is_a_miss(
    services: TestServices, objects: MemoryObjects, caplog: pytest.LogCaptureFixture
) -> None:
    with services.database() as url, running_cache(url, objects) as cache:
        assert k_found(cache.find(spec(), QUERY)) is MissReason.INTERNAL
        assert "lookup failed" in caplog.text


def test_an_object_store_that_is_not_there_is_a_miss_and_keeps_the_rows(
    database_url: str, engine: Engine, objects: MemoryObjects
) -> None:
    with running_cache(database_url, objects) as cache:
        cache.store(spec(), entry())
    nowhere = S3Objects.from_url("http://key:secret@127.0.0.1:9/bucket")
    with running_cache(database_url, nowhere) as cache:
        assert k_found(cache.find(spec(), QUERY)) is MissReason.OBJECT_STORE_UNREACHABLE
        assert cache.store(spec(), entry()) is None
        assert cache.counts()["store_failed"] == 1
    assert count(engine, "cached_states") == len(K_SET)


def test_a_locked_database_costs_the_budget_and_no_more(
    database_url: str, engine: Engine, objects: MemoryObjects
) -> None:
    with running_cache(database_url, objects, cache_budget_s=0.3) as cache:
        scope = cache.scope(spec())
        cache.store(scope, entry())
        cache.find(scope, QUERY)  # a connection is open
        with engine.begin() as blocker:
            blocker.execute(text("LOCK TABLE cached_states IN ACCESS EXCLUSIVE MODE"))
            started = time.monotonic()
            assert k_found(cache.find(scope, QUERY)) is MissReason.BUDGET_EXCEEDED
            assert time.monotonic() - started < 0.3 + 0.2
        deadline = time.monotonic() + 10
        while k_found(cache.find(scope, QUERY)) != 25:
            assert time.monotonic() < deadline


class SlowObjects(MemoryObjects):
    """Hangs in `get` until released."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def get(self, key: str) -> bytes:
        self.released.wait(60)
        return super().get(key)


def test_a_hanging_object_store_costs_the_budget_then_nothing(
    database_url: str, engine: Engine
) -> None:
    objects = SlowObjects()
    changes: dict[str, Any] = {"cache_budget_s": 0.3, "cache_lookups_max": 2}
    with running_cache(database_url, objects, **changes) as cache:
        cache.store(spec(), entry())
        for _ in range(2):
            started = time.monotonic()
            assert k_found(cache.find(spec(), QUERY)) is MissReason.BUDGET_EXCEEDED
            assert time.monotonic() - started < 0.3 + 0.2
        started = time.monotonic()
        assert k_found(cache.find(spec(), QUERY)) is MissReason.TOO_BUSY
        assert time.monotonic() - started < 0.1
        objects.released.set()
        deadline = time.monotonic() + 10
        while k_found(cache.find(spec(), QUERY)) != 25:
            assert time.monotonic() < deadline


@pytest.mark.parametrize(
    "embedding",
    [
        (1.0,) * 7,
        (0.0,) * 8,
        (float("nan"),) * 8,
        (float("inf"),) * 8,
        (1e5,) * 8,
        "a prompt",
        None,
    ],
    ids=["dimension", "zero", "nan", "infinite", "too large", "text", "none"],
)
def test_a_bad_embedding_is_a_miss(cache: ApproximateCache, embedding: Any) -> None:
    assert k_found(cache.find(spec(), embedding)) is MissReason.INVALID_EMBEDDING
    assert cache.store(spec(), entry(embedding=embedding)) is None


def test_a_tensor_is_an_embedding(cache: ApproximateCache) -> None:
    cache.store(spec(), entry(embedding=torch.tensor(QUERY, dtype=torch.bfloat16)))
    assert k_found(cache.find(spec(), torch.tensor(QUERY))) == 25


def test_too_few_steps_and_a_cache_that_is_off(
    database_url: str, engine: Engine, objects: MemoryObjects
) -> None:
    with running_cache(database_url, objects) as cache:
        few = cache.find(spec(num_inference_steps=3), QUERY)
        assert k_found(few) is MissReason.TOO_FEW_STEPS
    with running_cache(database_url, objects, cache_enabled=False) as cache:
        assert k_found(cache.find(spec(), QUERY)) is MissReason.DISABLED
        assert cache.store(spec(), entry()) is None
    assert objects.stored == {}


class FailingObjects(MemoryObjects):
    """Refuses the third object of an entry."""

    def put(self, key: str, data: bytes, *, content_type: str = "") -> None:
        if len(self.stored) == 2:
            raise ObjectStoreError("disk full")
        super().put(key, data)


def test_a_store_that_fails_halfway_leaves_nothing(database_url: str, engine: Engine) -> None:
    objects = FailingObjects()
    with running_cache(database_url, objects) as cache:
        assert cache.store(spec(), entry()) is None
    assert objects.stored == {}
    assert count(engine, "cached_prompts") == count(engine, "cached_states") == 0


def test_a_store_that_fails_at_the_database_leaves_no_row(
    cache: ApproximateCache, engine: Engine, objects: MemoryObjects
) -> None:
    state = NewState(kind=StateKind.INTERMEDIATE, k=5, latents=latents())
    assert cache.store(spec(), entry(states=(state, state))) is None
    assert count(engine, "cached_prompts") == count(engine, "cached_states") == 0


def test_objects_are_written_before_their_row(
    database_url: str, engine: Engine, clock: Clock
) -> None:
    class WatchingObjects(MemoryObjects):
        def put(self, key: str, data: bytes, *, content_type: str = "") -> None:
            assert rows(engine, "SELECT key FROM cached_states WHERE key = :key", key=key) == []
            super().put(key, data)

    objects = WatchingObjects()
    with running_cache(database_url, objects) as cache:
        assert cache.store(spec(), entry())
    stored = {(key,) for key in objects.stored}
    assert set(rows(engine, "SELECT key FROM cached_states")) == stored
    for key, sha256, num_bytes in rows(engine, "SELECT key, sha256, num_bytes FROM cached_states"):
        data = objects.get(key)
        codec.decode(data, sha256=sha256, num_bytes=num_bytes, dtype="float32")


def test_the_scope_s_row_says_what_it_is(cache: ApproximateCache, engine: Engine) -> None:
    cache.store(spec(), entry(seconds_per_step=0.5))
    assert cache.scope(spec()) is cache.scope(spec())
    row = rows(engine, "SELECT * FROM scopes")[0]
    assert row.fingerprint == spec().fingerprint
    assert row.spec["latent_shape"] == [4, 4, 4]
    assert (row.k_set, row.thresholds_version) == (list(K_SET), "paper")
    assert (row.state_kind, row.seconds_per_step) == ("final", 0.5)
    assert row.bytes_per_state == max(rows(engine, "SELECT max(num_bytes) FROM cached_states")[0])
    cache.store(spec(), entry(seconds_per_step=1.5))
    assert rows(engine, "SELECT seconds_per_step FROM scopes")[0][0] == pytest.approx(0.6)


def test_processes_that_register_a_scope_together_share_it(
    database_url: str, engine: Engine, objects: MemoryObjects
) -> None:
    found: list[int] = []

    def register() -> None:
        with running_cache(database_url, objects, cache_sharing="namespace") as cache:
            found.append(cache.scope(spec()).id)

    threads = [threading.Thread(target=register) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
