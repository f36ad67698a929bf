"""Bring the database's schema to a revision; needs no alembic.ini, and works from a wheel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, MetaData, text

import cache.tables
import workers.tables
from cache.database import connect, require_pgvector, transaction

CONNECTION: Final = "connection"
# Any number that nobody else locks: "nirv" in ASCII.
LOCK_ID: Final = 0x6E697276
LOCK_TIMEOUT_S: Final = 60
STATEMENT_TIMEOUT_S: Final = 600.0


def upgrade(database_url: str, revision: str = "head") -> None:
    """Apply the migrations up to a revision, all or none of them.

    Two processes may call it at once: the second waits for the first and finds nothing to do.
    Raises cache.errors.InvalidUrl, DatabaseUnreachable or DatabaseTooOld.
    """
    _run(database_url, lambda config: command.upgrade(config, revision))


def downgrade(database_url: str, revision: str) -> None:
    """Take migrations back down to a revision ("base": all of them), with their rows."""
    _run(database_url, lambda config: command.downgrade(config, revision))


def current(database_url: str) -> str | None:
    """The database's revision, None before the first migration."""
    engine = connect(database_url, pool_size=1)
    try:
        with transaction(engine) as connection:
            return MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()


def compared_metadata() -> tuple[MetaData, ...]:
    """The tables in code that the migrations add up to."""
    return cache.tables.metadata, workers.tables.metadata


def _run(database_url: str, migrate: Callable[[Config], None]) -> None:
    engine = connect(database_url, pool_size=1, statement_timeout_s=STATEMENT_TIMEOUT_S)
    try:
        with transaction(engine) as connection:
            _lock(connection)
            require_pgvector(
                connection,
                "SELECT COALESCE(installed_version, default_version)"
                "  FROM pg_available_extensions WHERE name = 'vector'",
            )
            migrate(_config(connection))
    finally:
        engine.dispose()


def _lock(connection: Connection) -> None:
    """Wait for any other migration; PostgreSQL lets go at the end of the transaction."""
    connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'"))
    connection.execute(text("SELECT pg_advisory_xact_lock(:id)"), {"id": LOCK_ID})


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    # The connection and not its URL, which would show the password to the configuration.
    config.attributes[CONNECTION] = connection
    return config
