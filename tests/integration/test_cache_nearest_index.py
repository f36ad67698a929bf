"""Which scopes get an HNSW index, what becomes of it, and which lookups use it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, text

from cache import index, nearest_index, scopes
from cache.database import connect, transaction
from cache.entry import Scope, Sharing, StateKind
from cache.nearest_index import LOCK_ID, IndexReport, maintain, search_options
from cache.settings import CacheSettings
from migrations import migrate
from tests.integration.cache_harness import (
    START,
    lookup_values,
    migrated,
    rows,
    settings,
    spec,
)

ROWS_MIN = 400
LARGE, SMALL = 1_000, 20  # rows of a scope
DIMENSION = 384  # as wide as real ones: the planner weighs pages
NOTHING = IndexReport()
QUERY = (1.0,) + (0.0,) * (DIMENSION - 1)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    with migrated(database_url) as engine:
        yield engine


@pytest.fixture
def chosen(database_url: str) -> CacheSettings:
    return settings(database_url, cache_index_rows_min=ROWS_MIN)


@pytest.fixture
def reader(database_url: str, engine: Engine, chosen: CacheSettings) -> Iterator[Engine]:
    reader = connect(database_url, is_reader=True, options=search_options(chosen))
    yield reader
    reader.dispose()


def filled(
    engine: Engine,
    namespace: str,
    num_rows: int,
    *,
    sharing: Sharing = Sharing.NAMESPACE,
    owner: str = "ann",
) -> Scope:
    """A scope with prompts whose vectors lie all around."""
    with transaction(engine) as connection:
        scope = scopes.register(
            connection,
            spec(namespace=namespace, embedding_dimension=DIMENSION),
            sharing=sharing,
            state_kind=StateKind.INTERMEDIATE,
        )
    rows(
        engine,
        """INSERT INTO cached_prompts (scope_id, owner, is_shared, embedding, prompt_hash,
                                       created_at)
           SELECT :scope_id, :owner, :is_shared,
                  (SELECT array_agg(sin(n * 0.7 * d + d * d)) FROM generate_series(1, :dimension) d
                  )::real[]::halfvec,
                  n, CAST(:now AS timestamptz) + n * interval '1 second'
             FROM generate_series(1, :num_rows) n
        RETURNING id""",
        scope_id=scope.id,
        owner=owner,
        is_shared=sharing is Sharing.NAMESPACE,
        dimension=DIMENSION,
        num_rows=num_rows,
        now=START,
    )
    return scope


def analyze(engine: Engine) -> None:
    with transaction(engine) as connection:
        connection.execute(text("ANALYZE"))


def plan_of(reader: Engine, scope: Scope, *, owner: str = "bob") -> str:
    wanted = lookup_values(scope, owner, QUERY)
    with transaction(reader) as connection:
        statement = text("EXPLAIN (COSTS OFF) " + index.find_statement(scope).text)
        return "\n".join(connection.execute(statement, wanted).scalars())


def nearest(
    reader: Engine, scope: Scope, *, owner: str = "bob", own_newest: int = 100
) -> list[Any]:
    wanted = {**lookup_values(scope, owner, QUERY), "own_newest": own_newest}
    with transaction(reader) as connection:
        return list(connection.execute(index.nearest_statement(scope), wanted).all())


def indexes(engine: Engine) -> list[str]:
    found = rows(
        engine,
        "SELECT indexname FROM pg_indexes"
        " WHERE starts_with(indexname, 'ix_cached_prompts_nearest_') ORDER BY indexname",
    )
    return [name for (name,) in found]


def shared_index(scope: Scope) -> str:
    return f"ix_cached_prompts_nearest_shared_{scope.id}"


def delete(engine: Engine, scope: Scope, num_rows: int) -> None:
    rows(
        engine,
        """DELETE FROM cached_prompts
            WHERE id IN (SELECT id FROM cached_prompts WHERE scope_id = :id ORDER BY id LIMIT :num)
        RETURNING id""",
        id=scope.id,
        num=num_rows,
    )


def test_a_large_scope_is_searched_by_its_own_hnsw_index(
    engine: Engine, reader: Engine, chosen: CacheSettings
) -> None:
    one, other = filled(engine, "one", LARGE), filled(engine, "other", LARGE)
    assert maintain(chosen) == IndexReport(built=2)
    assert indexes(engine) == [shared_index(one), shared_index(other)]
    for scope, foreign in ((one, other), (other, one)):
        plan = plan_of(reader, scope)
        assert shared_index(scope) in plan, plan
        assert shared_index(foreign) not in plan, plan


def test_a_small_scope_is_searched_exactly(
    engine: Engine, reader: Engine, chosen: CacheSettings
) -> None:
    filled(engine, "large", LARGE)
    small = filled(engine, "small", SMALL)
    maintain(chosen)
    analyze(engine)
    plan = plan_of(reader, small)
    assert "ix_cached_prompts_scope_owner" in plan, plan
    assert "nearest_shared" not in plan, plan
    assert shared_index(small) not in indexes(engine)


def test_under_user_sharing_the_lookup_goes_by_scope_and_owner(
    engine: Engine, reader: Engine, chosen: CacheSettings
) -> None:
    filled(engine, "shared", LARGE)  # an HNSW index to be tempted by
    for number in range(20):
        scope = filled(engine, "own", 50, sharing=Sharing.USER, owner=f"u{number}")
    maintain(chosen)
    analyze(engine)
    plan = plan_of(reader, scope, owner="u3")
    assert "ix_cached_prompts_scope_owner" in plan, plan
    assert "nearest_shared" not in plan, plan
    assert "Seq Scan on cached_prompts" not in plan, plan


def test_jobs_without_a_user_have_an_index_when_they_are_many(
    engine: Engine, reader: Engine, chosen: CacheSettings
) -> None:
    filled(engine, "own", 300, sharing=Sharing.USER, owner="ann")
    scope = filled(engine, "own", LARGE, sharing=Sharing.USER, owner="")
    assert maintain(chosen) == IndexReport(built=1)
    analyze(engine)
    plan = plan_of(reader, scope, owner="")
    assert f"ix_cached_prompts_nearest_anonymous_{scope.id}" in plan, plan
    named = plan_of(reader, scope, owner="ann")
    assert "nearest_anonymous" not in named, named
    assert {row.owner for row in nearest(reader, scope, owner="")} == {""}


def test_the_index_finds_what_exact_search_finds(
    engine: Engine, reader: Engine, chosen: CacheSettings
) -> None:
    scope = filled(engine, "large", LARGE)
    filled(engine, "other", LARGE)
    exact = nearest(reader, scope)
    maintain(chosen)
    assert shared_index(scope) in plan_of(reader, scope)
    found = nearest(reader, scope)
    assert found[0] == exact[0]
    distances = [row.distance for row in exact]
    assert [row.distance for row in found] == pytest.approx(distances, abs=1e-3)


def test_the_newest_of_ones_own_are_compared_beside_what_the_index_finds(
    engine: Engine, database_url: str, chosen: CacheSettings
) -> None:
    scope = filled(engine, "large", LARGE)
    filled(engine, "large", SMALL, owner="bob")
    filled(engine, "large", SMALL, owner="")
    maintain(chosen)
    blind = {"hnsw.ef_search": "1", "hnsw.iterative_scan": "off"}  # it finds one vector
    reader = connect(database_url, is_reader=True, options=blind)
    try:
        by_index = nearest(reader, scope, own_newest=0)
        assert 1 <= len(by_index) <= 3  # three owners have it
        newest = bobs_newest(engine, 5)
        found = nearest(reader, scope, own_newest=5)
        assert {row.id for row in found} == {*newest, *(row.id for row in by_index)}
        assert len(found) == len({row.id for row in found})
        assert [row.distance for row in found] == sorted(row.distance for row in found)
        assert len(nearest(reader, scope, own_newest=SMALL)) == 10
        nobodys = nearest(reader, scope, owner="", own_newest=SMALL)
        assert [row.id for row in nobodys] == [row.id for row in by_index]
        plan = plan_of(reader, scope)
        assert "Index Scan Backward using ix_cached_prompts_own_newest" in plan, plan
    finally:
        reader.dispose()


def bobs_newest(engine: Engine, num: int) -> list[int]:
    found = rows(
        engine,
        "SELECT id FROM cached_prompts WHERE owner = 'bob' ORDER BY created_at DESC LIMIT :num",
        num=num,
    )
    return [row.id for row in found]


def test_what_was_stored_under_user_sharing_is_not_among_ones_own(
    engine: Engine, reader: Engine
) -> None:
    scope = filled(engine, "small", SMALL, owner="bob")
    rows(engine, "UPDATE cached_prompts SET is_shared = false RETURNING id")
    assert nearest(reader, scope) == []


def test_deleted_rows_do_not_hide_the_living(
    engine: Engine, reader: Engine, chosen: CacheSettings
) -> None:
    scope = filled(engine, "large", LARGE)
    maintain(chosen)
    delete(engine, scope, LARGE - 30)
    assert shared_index(scope) in plan_of(reader, scope)
    assert len(nearest(reader, scope)) == 10


def test_a_second_run_does_nothing(engine: Engine, chosen: CacheSettings) -> None:
    filled(engine, "large", LARGE)
    assert maintain(chosen) == IndexReport(built=1)
    assert maintain(chosen) == NOTHING


def test_an_index_goes_with_its_scopes_rows(engine: Engine, chosen: CacheSettings) -> None:
    scope, stays = filled(engine, "large", LARGE), filled(engine, "stays", LARGE)
    maintain(chosen)
    delete(engine, scope, LARGE - ROWS_MIN // 2)
    delete(engine, stays, ROWS_MIN // 2)
    maintain(chosen)  # half of what made it: it is still there
    assert shared_index(scope) in indexes(engine)
    delete(engine, scope, LARGE)
    assert maintain(chosen) == IndexReport(dropped=1)
    assert indexes(engine) == [shared_index(stays)]


def test_an_index_that_outgrew_its_rows_is_built_anew(
    engine: Engine, chosen: CacheSettings
) -> None:
    scope = filled(engine, "large", LARGE)
    maintain(chosen)
    delete(engine, scope, LARGE // 4)
    assert maintain(chosen) == NOTHING
    delete(engine, scope, LARGE // 2)
    assert maintain(chosen) == IndexReport(renewed=1)
    assert maintain(chosen) == NOTHING
    assert indexes(engine) == [shared_index(scope)]


def test_an_index_of_other_parameters_is_built_anew(
    engine: Engine, reader: Engine, chosen: CacheSettings
) -> None:
    scope = filled(engine, "large", LARGE)
    changed = chosen.model_copy(update={"cache_index_m": 8, "cache_index_ef_construction": 40})
    maintain(chosen)
    assert maintain(changed) == IndexReport(renewed=1)
    assert maintain(changed) == NOTHING
    options = rows(
        engine,
        "SELECT reloptions FROM pg_class WHERE relname = :name",
        name=shared_index(scope),
    )
    assert set(options[0].reloptions) == {"m=8", "ef_construction=40"}
    assert shared_index(scope) in plan_of(reader, scope)


def test_a_crash_while_it_is_built_anew_leaves_that_to_the_next_run(
    engine: Engine, chosen: CacheSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(engine, "large", LARGE)
    maintain(chosen)
    changed = chosen.model_copy(update={"cache_index_m": 8})
    with monkeypatch.context() as patch:
        patch.setattr(nearest_index, "_settle", crash)
        with pytest.raises(ZeroDivisionError):
            maintain(changed)
    assert maintain(changed) == IndexReport(renewed=1)
    assert maintain(changed) == NOTHING


def crash(*_: Any) -> None:
    raise ZeroDivisionError


def test_a_user_who_has_most_rows_is_not_looked_for_among_all(
    engine: Engine, reader: Engine, chosen: CacheSettings
) -> None:
    """By the primary key backwards, a lookup would read all that came after."""
    scope = filled(engine, "one", LARGE, owner="bob")
    filled(engine, "other", LARGE)
    for is_analyzed in (False, True):
        if is_analyzed:
            analyze(engine)
        plan = plan_of(reader, scope)
        assert "Index Scan Backward using ix_cached_prompts_own_newest" in plan, plan


def test_what_a_crash_left_half_built_is_dropped_and_built(
    engine: Engine, reader: Engine, chosen: CacheSettings, database_url: str
) -> None:
    scope = filled(engine, "large", LARGE)
    leave_invalid(engine, database_url, shared_index(scope))
    assert shared_index(scope) not in plan_of(reader, scope)
    assert maintain(chosen) == IndexReport(built=1, dropped=1)
    assert shared_index(scope) in plan_of(reader, scope)


def leave_invalid(engine: Engine, database_url: str, name: str) -> None:
    """Have a concurrent build cancelled while it waits for a writer, as a lost client does."""
    builder = connect(database_url, pool_size=1, statement_timeout_s=0.2)
    with transaction(engine) as writer:
        writer.execute(text("UPDATE cached_prompts SET prompt_hash = prompt_hash"))
        concurrently = builder.execution_options(isolation_level="AUTOCOMMIT")
        statement = f"CREATE INDEX CONCURRENTLY {name} ON cached_prompts (id)"
        with pytest.raises(Exception, match="statement timeout"), transaction(concurrently) as c:
            c.execute(text(statement))
    builder.dispose()
    assert rows(engine, "SELECT 1 FROM pg_index WHERE NOT indisvalid")


def test_a_run_beside_another_does_nothing(engine: Engine, chosen: CacheSettings) -> None:
    filled(engine, "large", LARGE)
    with transaction(engine) as other:
        other.execute(text(f"SELECT pg_advisory_xact_lock({LOCK_ID})"))
        assert maintain(chosen) == NOTHING
    assert maintain(chosen) == IndexReport(built=1)


def test_many_small_scopes_have_no_index(engine: Engine, chosen: CacheSettings) -> None:
    for number in range(30):
        filled(engine, f"small-{number}", SMALL)
    assert maintain(chosen) == NOTHING
    assert indexes(engine) == []


def test_the_index_of_a_dimension_goes_with_the_migration(
    database_url: str, engine: Engine
) -> None:
    migrate.downgrade(database_url, "0006")
    with transaction(engine) as connection:
        connection.execute(
            text(
                "CREATE INDEX ix_cached_prompts_nearest_8 ON cached_prompts"
                " USING hnsw ((embedding::halfvec(8)) halfvec_cosine_ops)"
                " WHERE is_shared AND vector_dims(embedding) = 8"
            )
        )
    migrate.upgrade(database_url)
    assert indexes(engine) == []
