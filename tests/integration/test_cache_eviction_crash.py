"""An eviction that is killed, or loses the object store, leaks nothing: the next run goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine

from cache.eviction import evict
from cache.objects import S3Objects
from cache.settings import CacheSettings
from tests.integration.cache_harness import (
    START,
    count,
    insert,
    migrated,
    register,
    rows,
    settings,
)

PROJECT = Path(__file__).resolve().parents[2]
NUM_PROMPTS = 80
NUM_STATES = 5 * NUM_PROMPTS
PATIENCE_S = 60.0


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    with migrated(database_url) as engine:
        yield engine


@pytest.fixture
def objects(s3_url: str, engine: Engine) -> Iterator[S3Objects]:
    with closing(S3Objects.from_url(s3_url)) as store:
        scope = register(engine)
        for _ in range(NUM_PROMPTS):
            insert(engine, scope, [(k, 100) for k in (5, 10, 15, 20, 25)], objects=store)
        yield store


@pytest.fixture
def chosen(database_url: str, s3_url: str) -> CacheSettings:
    """Room for one state, taken in small steps."""
    return settings(database_url, s3_url, cache_capacity_bytes=100, cache_evict_batch=10)


def listed(objects: S3Objects) -> set[str]:
    return {each.key for each in objects.list("states/")}


def keys(engine: Engine, table: str) -> set[str]:
    return {key for (key,) in rows(engine, f"SELECT key FROM {table}")}


def assert_nothing_is_lost_or_leaked(engine: Engine, objects: S3Objects) -> None:
    live, doomed = keys(engine, "cached_states"), keys(engine, "doomed_objects")
    assert live <= listed(objects) <= live | doomed


def assert_the_next_runs_end_it(engine: Engine, objects: S3Objects, chosen: CacheSettings) -> None:
    """One run, where the server is not too busy to answer in time."""
    give_up_at = time.monotonic() + PATIENCE_S
    while evict(engine, objects, chosen, now=START).objects_left:
        assert time.monotonic() < give_up_at
    assert listed(objects) == keys(engine, "cached_states")
    assert count(engine, "cached_states") == 1


class FailingObjects(S3Objects):
    """Deletes as often as it may; then its server answers no more."""

    requests_left = 1

    def delete_many(self, keys: Iterable[str]) -> dict[str, str]:
        self.requests_left -= 1
        if self.requests_left < 0:
            self._client = self._client_for("127.0.0.1:9", is_secure=False)
        return super().delete_many(keys)


def test_objects_stay_doomed_while_the_store_is_away(
    engine: Engine,
    objects: S3Objects,
    chosen: CacheSettings,
    s3_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cache.removal.OBJECTS_PER_REQUEST", 30)
    with closing(FailingObjects.from_url(s3_url)) as failing:
        report = evict(engine, failing, chosen, now=START)
    assert report.evicted_states == NUM_STATES - 1
    assert report.objects_left == NUM_STATES - 1
    assert 1 < len(listed(objects)) < NUM_STATES
    assert_nothing_is_lost_or_leaked(engine, objects)
    assert_the_next_runs_end_it(engine, objects, chosen)


def half_the_rows_are_gone(engine: Engine, objects: S3Objects) -> bool:
    return count(engine, "cached_states") < NUM_STATES / 2


def an_object_is_gone(engine: Engine, objects: S3Objects) -> bool:
    return len(listed(objects)) < NUM_STATES


@pytest.mark.parametrize("moment", [half_the_rows_are_gone, an_object_is_gone])
def test_a_killed_run_leaks_nothing(
    engine: Engine,
    objects: S3Objects,
    chosen: CacheSettings,
    moment: Callable[[Engine, S3Objects], bool],
) -> None:
    with evicting_process(chosen) as process:
        give_up_at = time.monotonic() + PATIENCE_S
        while not moment(engine, objects):
            assert process.poll() is None, "it ended before its moment"
            assert time.monotonic() < give_up_at
        process.kill()
    assert_nothing_is_lost_or_leaked(engine, objects)
    assert_the_next_runs_end_it(engine, objects, chosen)


def evicting_process(chosen: CacheSettings) -> subprocess.Popen[bytes]:
    """`nirvana cache evict`, as a user calls it."""
    changes = {
        "NIRVANA_DATABASE_URL": chosen.database_url.get_secret_value(),
        "NIRVANA_S3_URL": chosen.s3_url.get_secret_value(),
        "NIRVANA_CACHE_CAPACITY_BYTES": str(chosen.cache_capacity_bytes),
        "NIRVANA_CACHE_EVICT_BATCH": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "fleet.cli", "cache", "evict"],
        cwd=PROJECT,
        env={**os.environ, **changes},
        stdout=subprocess.DEVNULL,
    )
