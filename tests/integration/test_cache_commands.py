"""`nirvana cache`: what it removes, and when it asks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine

from cache.objects import S3Objects
from fleet.cli import main
from tests.integration.cache_harness import count, insert, migrated, register

Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    with migrated(database_url) as engine:
        yield engine


@pytest.fixture
def objects(s3_url: str, engine: Engine) -> Iterator[S3Objects]:
    """With two states in each of two namespaces."""
    store = S3Objects.from_url(s3_url)
    for namespace in ("one", "two"):
        insert(engine, register(engine, namespace), [(5, 100), (10, 100)], objects=store)
    yield store
    store.close()


@pytest.fixture
def run(
    database_url: str,
    s3_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Run `nirvana cache ... --json`: exit code and answer."""
    monkeypatch.setenv("NIRVANA_DATABASE_URL", database_url)
    monkeypatch.setenv("NIRVANA_S3_URL", s3_url)

    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        code = main(("cache", *arguments, "--json"))
        return code, json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


def keys(objects: S3Objects) -> list[str]:
    return [each.key for each in objects.list("states/")]


def test_clear_takes_one_namespace_or_all(run: Run, engine: Engine, objects: S3Objects) -> None:
    assert run("clear", "--namespace=two", "--yes") == (0, {"num_states": 2, "num_bytes": 200})
    assert len(keys(objects)) == count(engine, "cached_states") == 2
    assert run("clear", "--yes") == (0, {"num_states": 2, "num_bytes": 200})
    assert keys(objects) == []
    assert run("clear", "--yes") == (0, {"num_states": 0, "num_bytes": 0})


def test_clear_removes_nothing_where_nobody_can_be_asked(run: Run, objects: S3Objects) -> None:
    code, answer = run("clear")
    assert (code, answer["error"]["code"]) == (2, "usage_problem")
    assert "--yes" in answer["error"]["message"]
    assert len(keys(objects)) == 4


def test_clear_names_the_namespaces_that_there_are(run: Run, objects: S3Objects) -> None:
    code, answer = run("clear", "--namespace=tow", "--yes")
    message = "--namespace: none is named 'tow'; known: one, two"
    assert (code, answer["error"]["message"]) == (2, message)
    assert len(keys(objects)) == 4


def test_sweep_tells_what_it_found(run: Run, objects: S3Objects) -> None:
    objects.delete_many(keys(objects)[:1])
    code, answer = run("sweep")
    assert (code, answer["rows_without_objects"], answer["is_repaired"]) == (0, 1, False)
