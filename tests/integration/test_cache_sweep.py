"""The sweep finds what has no counterpart, in both directions, on the real servers."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text

from cache.approximate import ApproximateCache
from cache.database import transaction
from cache.objects import S3Objects
from cache.stats import cache_stats
from cache.sweep import SweepReport, sweep
from tests.integration.cache_harness import (
    K_SET,
    Clock,
    at_cosine,
    count,
    entry,
    migrated,
    rows,
    running_cache,
    spec,
)

HOUR_S = 3_600.0
LATER = datetime.now(UTC) + timedelta(hours=2)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    with migrated(database_url) as engine:
        yield engine


@pytest.fixture
def objects(s3_url: str) -> Iterator[S3Objects]:
    store = S3Objects.from_url(s3_url)
    yield store
    store.close()


@pytest.fixture
def cache(database_url: str, engine: Engine, objects: S3Objects) -> Iterator[ApproximateCache]:
    with running_cache(database_url, objects, clock=Clock(now=datetime.now(UTC))) as cache:
        for scope in (spec(), spec(namespace="other")):
            for cosine in (0.9, 0.8):
                cache.store(scope, entry(at_cosine(cosine)))
        yield cache


def found(report: SweepReport) -> tuple[int, int, int]:
    return (
        report.objects_without_rows,
        report.rows_without_objects,
        report.prompts_without_states,
    )


def keys(objects: S3Objects) -> list[str]:
    return [each.key for each in objects.list("states/")]


def test_a_whole_cache_has_no_findings(
    cache: ApproximateCache, engine: Engine, objects: S3Objects
) -> None:
    objects.put("images/1.png", b"not the cache's")
    report = sweep(engine, objects, now=LATER, repair=True)
    assert found(report) == (0, 0, 0)
    assert report.is_complete
    assert len(keys(objects)) == count(engine, "cached_states") == 4 * len(K_SET)
    assert objects.exists("images/1.png")


def test_both_directions_are_found_and_only_repaired_when_asked(
    cache: ApproximateCache, engine: Engine, objects: S3Objects
) -> None:
    stored = keys(objects)
    lost, orphan = [stored[0], stored[7]], "states/1/0000/intermediate-5.safetensors"
    objects.delete_many(lost)
    objects.put(orphan, b"12345")
    rows(engine, "DELETE FROM cached_states WHERE key = :key RETURNING key", key=stored[-1])

    report = sweep(engine, objects, now=LATER)
    assert found(report) == (2, 2, 0)
    assert report.bytes_without_rows > 5
    assert {*lost, orphan, stored[-1]} == set(report.examples)
    assert (report.is_repaired, report.objects_removed) == (False, 0)
    assert found(sweep(engine, objects, now=LATER)) == (2, 2, 0)

    repaired = sweep(engine, objects, now=LATER, repair=True)
    assert found(repaired) == (2, 2, 0)
    assert found(sweep(engine, objects, now=LATER)) == (0, 0, 0)
    assert set(keys(objects)) == {key for (key,) in rows(engine, "SELECT key FROM cached_states")}
    assert len(keys(objects)) == len(stored) - 3
    assert count(engine, "doomed_objects") == 0


def test_what_is_young_is_left_alone(
    cache: ApproximateCache, engine: Engine, objects: S3Objects
) -> None:
    objects.delete_many(keys(objects)[:3])
    objects.put("states/1/new/intermediate-5.safetensors", b"its row is still to come")
    now = datetime.now(UTC)
    assert found(sweep(engine, objects, now=now, repair=True)) == (0, 0, 0)
    assert found(sweep(engine, objects, now=now + timedelta(seconds=90), grace_s=60)) == (1, 3, 0)


def test_a_doomed_object_is_no_orphan_and_goes_with_a_repair(
    cache: ApproximateCache, engine: Engine, objects: S3Objects
) -> None:
    key = "states/1/dead/intermediate-5.safetensors"
    objects.put(key, b"x")
    with transaction(engine) as connection:
        connection.execute(
            text("INSERT INTO doomed_objects (key, doomed_at) VALUES (:key, now())"), {"key": key}
        )
    report = sweep(engine, objects, now=LATER)
    assert (found(report), report.doomed_objects) == ((0, 0, 0), 1)
    assert sweep(engine, objects, now=LATER, repair=True).objects_removed == 1
    assert not objects.exists(key)
    assert sweep(engine, objects, now=LATER).doomed_objects == 0


@pytest.mark.parametrize("kept", [0, 7], ids=["empty", "cut"])
def test_an_object_that_was_half_written_goes_with_its_row(
    cache: ApproximateCache, engine: Engine, objects: S3Objects, kept: int
) -> None:
    damaged = keys(objects)[3]
    objects.put(damaged, objects.get(damaged)[:kept])
    report = sweep(engine, objects, now=LATER)
    assert (found(report), report.truncated_objects) == ((0, 0, 0), 1)
    assert report.examples == (damaged,)
    assert sweep(engine, objects, now=LATER, repair=True).objects_removed == 1
    assert not objects.exists(damaged)
    assert count(engine, "cached_states") == 4 * len(K_SET) - 1
    assert sweep(engine, objects, now=LATER).truncated_objects == 0


def test_a_wrong_count_of_bytes_is_found_and_set_right(
    cache: ApproximateCache, engine: Engine, objects: S3Objects
) -> None:
    right = rows(engine, "SELECT id, live_bytes FROM scopes ORDER BY id")
    rows(engine, "UPDATE scopes SET live_bytes = 7 WHERE namespace = 'other' RETURNING id")
    assert sweep(engine, objects, now=LATER).scopes_miscounted == 1
    assert sweep(engine, objects, now=LATER, repair=True).scopes_miscounted == 1
    assert sweep(engine, objects, now=LATER).scopes_miscounted == 0
    assert rows(engine, "SELECT id, live_bytes FROM scopes ORDER BY id") == right


def test_prompts_without_states_are_removed(
    cache: ApproximateCache, engine: Engine, objects: S3Objects
) -> None:
    key_of_prompt = "SELECT key FROM cached_states WHERE prompt_id = 1"
    objects.delete_many(key for (key,) in rows(engine, key_of_prompt))
    rows(engine, "DELETE FROM cached_states WHERE prompt_id = 1 RETURNING id")
    assert found(sweep(engine, objects, now=LATER, repair=True)) == (0, 0, 1)
    assert count(engine, "cached_prompts") == 3


def test_a_sweep_stops_at_its_limit_and_says_so(
    cache: ApproximateCache,
    engine: Engine,
    objects: S3Objects,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cache.sweep.PAGE", 2)
    objects.delete_many(keys(objects))
    report = sweep(engine, objects, now=LATER, limit=4, repair=True)
    assert (report.rows_without_objects, report.is_complete) == (4, False)
    assert count(engine, "cached_states") == 16
    rest = sweep(engine, objects, now=LATER, repair=True)
    assert (rest.rows_without_objects, rest.is_complete) == (16, True)


@pytest.mark.parametrize("page", [1, 3, 1_000])
def test_pages_of_rows_join_without_gaps(
    cache: ApproximateCache,
    engine: Engine,
    objects: S3Objects,
    monkeypatch: pytest.MonkeyPatch,
    page: int,
) -> None:
    monkeypatch.setattr("cache.sweep.PAGE", page)
    stored = keys(objects)
    objects.delete_many(stored[::4])
    assert found(sweep(engine, objects, now=LATER)) == (0, 5, 0)


def test_stats_count_what_is_there(cache: ApproximateCache, engine: Engine) -> None:
    outcome: Any = cache.find(spec(), at_cosine(0.9))
    cache.count_use(outcome.hit, outcome.hit.k)
    cache.flush()
    stats = cache_stats(engine, capacity_bytes=12_345)
    assert (stats.num_prompts, stats.num_states, stats.uses) == (4, 20, 1)
    assert stats.steps_saved == outcome.hit.k
    assert stats.num_bytes == sum(each.num_bytes for each in stats.by_scope)
    assert stats.num_bytes == sum(each.num_bytes for each in stats.by_namespace)
    assert stats.num_bytes == sum(each.num_bytes for each in stats.by_k)
    assert [(each.k, each.num_states) for each in stats.by_k] == [(k, 4) for k in K_SET]
    assert {each.namespace for each in stats.by_namespace} == {"default", "other"}
    assert {each.capacity_bytes for each in stats.by_namespace} == {12_345}
    assert [each.model for each in stats.by_scope] == ["tiny", "tiny"]
    assert all(type(each.num_bytes) is int for each in stats.by_scope)


def test_stats_of_an_empty_cache(engine: Engine) -> None:
    stats = cache_stats(engine, capacity_bytes=1)
    assert (stats.num_prompts, stats.num_states, stats.num_bytes) == (0, 0, 0)
    assert (stats.by_namespace, stats.by_scope, stats.by_k) == ((), (), ())
