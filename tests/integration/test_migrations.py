from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, MetaData, make_url, text

from cache.database import check, connect, refuse_old, transaction
from cache.errors import DatabaseTooOld, DatabaseUnreachable, InvalidUrl
from migrations import migrate

HEAD = ScriptDirectory(str(Path(migrate.__file__).parent)).get_current_head()

# What autogenerate does not look at: checks, generated columns, predicates, collations, storage.
CATALOGUE = {
    "columns": """
        SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
               a.attgenerated, a.attidentity, l.collname, pg_get_expr(d.adbin, d.adrelid),
               col_description(c.oid, a.attnum)
          FROM pg_attribute a
          JOIN pg_class c ON c.oid = a.attrelid
          LEFT JOIN pg_collation l ON l.oid = a.attcollation
          LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
         WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
           AND a.attnum > 0 AND NOT a.attisdropped AND c.relname <> 'alembic_version'""",
    "constraints": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)
          FROM pg_constraint
         WHERE connamespace = 'public'::regnamespace
           AND conrelid::regclass::text <> 'alembic_version'""",
    "indexes": """
        SELECT tablename, indexname, indexdef FROM pg_indexes
         WHERE schemaname = 'public' AND tablename <> 'alembic_version'""",
    "storage": """
        SELECT relname, reloptions FROM pg_class
         WHERE relnamespace = 'public'::regnamespace AND reloptions IS NOT NULL""",
}


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = connect(database_url)
    yield engine
    engine.dispose()


def catalogue(engine: Engine) -> dict[str, list[Any]]:
    with transaction(engine) as connection:
        return {
            name: sorted(map(repr, connection.execute(text(query)).all()))
            for name, query in CATALOGUE.items()
        }


def differences(connection: Connection) -> list[Any]:
    """What autogenerate would still change, over all the tables in code."""
    context = MigrationContext.configure(
        connection, opts={"compare_type": True, "compare_server_default": True}
    )
    together = MetaData()
    for metadata in migrate.compared_metadata():
        for table in metadata.sorted_tables:
            table.to_metadata(together)
    return list(compare_metadata(context, together))


def test_from_zero_to_head_to_zero_to_head(database_url: str, engine: Engine) -> None:
    assert migrate.current(database_url) is None
    migrate.upgrade(database_url)
    head = catalogue(engine)
    assert migrate.current(database_url) == HEAD

    migrate.downgrade(database_url, "base")
    assert migrate.current(database_url) is None
    assert not any(catalogue(engine).values())

    migrate.upgrade(database_url)
    assert catalogue(engine) == head


def test_a_second_upgrade_changes_nothing(database_url: str, engine: Engine) -> None:
    migrate.upgrade(database_url)
    before = catalogue(engine)
    migrate.upgrade(database_url)
    assert catalogue(engine) == before


def test_head_equals_the_tables_in_code(database_url: str, engine: Engine) -> None:
    migrate.upgrade(database_url)
    with transaction(engine) as connection:
        assert differences(connection) == []
    migrated = catalogue(engine)
    migrate.downgrade(database_url, "base")
    for metadata in migrate.compared_metadata():
        metadata.create_all(engine)
    created = catalogue(engine)
    for name in CATALOGUE:
        assert migrated[name] == created[name], name


def test_the_benefit_is_stored_and_not_computed_when_read(
    database_url: str, engine: Engine
) -> None:
    migrate.upgrade(database_url)
    with transaction(engine) as connection:
        generated = connection.execute(
            text("SELECT attgenerated FROM pg_attribute WHERE attname = 'benefit'")
        ).scalar_one()
    assert generated in {"s", b"s"}


def test_processes_that_start_together_migrate_once(database_url: str) -> None:
    with ThreadPoolExecutor(4) as processes:
        assert list(processes.map(migrate.upgrade, [database_url] * 4)) == [None] * 4
    assert migrate.current(database_url) == HEAD


def test_a_failed_migration_leaves_nothing_behind(database_url: str, engine: Engine) -> None:
    with transaction(engine) as connection:
        connection.execute(text("CREATE TABLE webhook_deliveries (mine int)"))
    with pytest.raises(Exception, match="webhook_deliveries"):
        migrate.upgrade(database_url)
    assert migrate.current(database_url) is None
    with transaction(engine) as connection:
        tables = connection.execute(
            text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        ).scalars()
        assert list(tables) == ["webhook_deliveries"]


def test_an_old_pgvector_is_refused_by_name(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache.database.PGVECTOR_MIN", "99.0")
    with pytest.raises(DatabaseTooOld, match=r"has pgvector 0\.\S+; pgvector >= 99\.0 is needed"):
        migrate.upgrade(database_url)
    assert migrate.current(database_url) is None


def test_a_worker_does_not_start_on_an_old_pgvector(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate.upgrade(database_url)
    refuse_old(database_url)
    refuse_old("postgresql://someone:hunter2@127.0.0.1:9/nirvana")  # away: to be waited for
    monkeypatch.setattr("cache.database.PGVECTOR_MIN", "99.0")
    with pytest.raises(DatabaseTooOld, match=r"pgvector >= 99\.0 is needed"):
        refuse_old(database_url)


def test_check_accepts_the_database_we_run_on(database_url: str, engine: Engine) -> None:
    migrate.upgrade(database_url)
    check(engine)


def test_an_unreachable_database_is_named_without_its_password() -> None:
    with pytest.raises(DatabaseUnreachable) as caught:
        migrate.upgrade("postgresql://someone:hunter2@127.0.0.1:9/nirvana")
    assert "127.0.0.1:9/nirvana" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_password_is_said_and_not_shown(database_url: str) -> None:
    url = make_url(database_url).set(password="hunter2")
    with pytest.raises(DatabaseUnreachable, match="password authentication failed") as caught:
        migrate.upgrade(url.render_as_string(hide_password=False))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["", "hunter2", "mysql://a:hunter2@b/c", "postgresql://x:hunter2@h"]
)
def test_a_wrong_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(InvalidUrl, match="postgresql://user:password@host:port/database") as caught:
        migrate.upgrade(url)
    assert "hunter2" not in str(caught.value)
