"""A calibration decides which k a similarity allows, in the scopes that it was measured for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from cache.calibration import Calibration, install, list_installed, thresholds_of
from cache.database import transaction
from cache.entry import Miss, StateKind, ThresholdSource
from cache.lookup import Found
from cache.selector import PAPER
from fleet.cli import main
from tests.conformance.memory_objects import MemoryObjects
from tests.integration.cache_harness import (
    QUERY,
    at_cosine,
    empty,
    entry,
    migrated,
    rows,
    running_cache,
    spec,
)
from tests.services import TestServices

KIND = StateKind.FINAL
ROWS = ((0.2, 0.5), (0.8, 0.9))


def calibration(**changes: Any) -> Calibration:
    fields: dict[str, Any] = {
        "revision": spec().revision,
        "embedder": spec().embedder,
        "tables": {KIND: ROWS},
    }
    return Calibration(**{**fields, **changes})


@pytest.fixture(scope="module")
def database_url(services: TestServices) -> Iterator[str]:
    with services.database() as url:
        yield url


@pytest.fixture(scope="module")
def module_engine(database_url: str) -> Iterator[Engine]:
    with migrated(database_url) as engine:
        yield engine


@pytest.fixture
def engine(module_engine: Engine) -> Engine:
    empty(module_engine)
    return module_engine


def k_at(database_url: str, cosine: float, *shipped: Calibration, **settings: Any) -> int | None:
    """The k at which a prompt starts whose only neighbour has that cosine."""
    with running_cache(
        database_url, MemoryObjects(), shipped=shipped, cache_state_kind=KIND, **settings
    ) as cache:
        cache.store(spec(), entry(at_cosine(cosine), kind=KIND, ks=(50,)))
        outcome = cache.find(spec(), QUERY)
        assert isinstance(outcome, Found | Miss)
        return outcome.hit.k if isinstance(outcome, Found) else None


@pytest.mark.parametrize(("cosine", "k"), [(0.97, 40), (0.85, 10), (0.6, 10), (0.4, None)])
def test_a_shipped_calibration_is_used(
    database_url: str, engine: Engine, cosine: float, k: int | None
) -> None:
    assert k_at(database_url, cosine, calibration()) == k
    scope = rows(engine, "SELECT thresholds_version, k_set FROM scopes")
    assert scope == [(calibration().version, [10, 40])]


@pytest.mark.parametrize("other", [{"revision": "another"}, {"embedder": "another"}])
def test_one_of_another_model_or_embedder_is_not(
    database_url: str, engine: Engine, other: dict[str, str]
) -> None:
    assert k_at(database_url, 0.6, calibration(**other)) is None
    assert rows(engine, "SELECT thresholds_version FROM scopes") == [("paper",)]


def test_a_calibration_can_be_left_aside_for_the_papers_thresholds(
    database_url: str, engine: Engine
) -> None:
    paper = {"cache_thresholds": ThresholdSource.PAPER}
    assert k_at(database_url, 0.97, calibration(), **paper) == 25
    assert k_at(database_url, 0.6, calibration(), **paper) is None
    assert rows(engine, "SELECT thresholds_version FROM scopes") == [("paper",)]


def test_the_newest_counts_and_the_same_one_again_is_not_new(engine: Engine) -> None:
    older, newer = calibration(), calibration(tables={KIND: ((0.4, 0.7),)})
    with transaction(engine) as connection:
        assert thresholds_of(connection, spec(), KIND) is PAPER
        assert install(connection, older)
    with transaction(engine) as connection:
        assert install(connection, newer)
        assert not install(connection, older)
    with transaction(engine) as connection:
        found = thresholds_of(connection, spec(), KIND)
        assert (found.version, found.is_calibrated) == (newer.version, True)
        assert found.rows == ((0.4, 0.7),)
        # Measured for finished latents only.
        assert thresholds_of(connection, spec(), StateKind.INTERMEDIATE) is PAPER
        assert [one.version for one in list_installed(connection)] == [
            newer.version,
            older.version,
        ]


def test_the_command_installs_and_lists(
    database_url: str,
    engine: Engine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("NIRVANA_DATABASE_URL", database_url)
    monkeypatch.setenv("NIRVANA_S3_URL", "http://a:b@127.0.0.1:9/c")
    path = tmp_path / "thresholds.json"
    calibration().write(path)
    assert main(["cache", "thresholds", str(path)]) == 0
    printed = capsys.readouterr().out
    assert f"{calibration().version} installed; workers take it up when they start" in printed
    assert "0.2: 0.5, 0.8: 0.9" in printed
    path.write_text("{}")
    assert main(["cache", "thresholds", str(path)]) == 1
    assert "thresholds.json: 'revision' is missing" in capsys.readouterr().err
