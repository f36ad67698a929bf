"""Reach PostgreSQL: engines with short time-outs, and errors without passwords."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from psycopg.errors import QueryCanceled
from sqlalchemy import URL, Connection, Engine, create_engine, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from cache.errors import BudgetExceeded, DatabaseTooOld, DatabaseUnreachable, InvalidUrl

DRIVER = "postgresql+psycopg"
PGVECTOR_MIN = "0.8.4"  # HNSW graphs are repaired correctly under churn from here on

# An address that answers no more is given up in seconds, not in hours.
_GIVE_UP_SOON = {
    "connect_timeout": 2,  # libpq's smallest
    "tcp_user_timeout": 5_000,  # milliseconds
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
}
_SCHEMES = {"postgresql", "postgres", DRIVER}


def parse_database_url(url: str) -> URL:
    """SQLAlchemy's URL for the psycopg driver; raises InvalidUrl, which does not repeat it."""
    expected = InvalidUrl("postgresql://user:password@host:port/database")
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise expected from None
    if parsed.drivername not in _SCHEMES or not parsed.database:
        raise expected
    return parsed.set(drivername=DRIVER)


def connect(
    url: str,
    *,
    pool_size: int = 4,
    statement_timeout_s: float = 30.0,
    pool_timeout_s: float = 5.0,
    is_reader: bool = False,
    application_name: str = "nirvana-cache",
    options: Mapping[str, str] | None = None,
) -> Engine:
    """An engine; opens no connection yet.

    A reader's connections commit each statement, can write nothing, and are used without asking
    first whether they still live: one that was cut costs a miss, and all are made anew. `options`
    are settings of PostgreSQL for its sessions; a `statement_timeout_s` of 0 is none.
    """
    session = _session(statement_timeout_s, is_reader=is_reader) | dict(options or {})
    return create_engine(
        parse_database_url(url),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=pool_timeout_s,
        # Asking is a round trip, a tenth of what a lookup takes.
        pool_pre_ping=not is_reader,
        pool_use_lifo=True,
        isolation_level="AUTOCOMMIT" if is_reader else "READ COMMITTED",
        hide_parameters=True,
        connect_args={
            **_GIVE_UP_SOON,
            "application_name": application_name,
            "options": " ".join(f"-c {name}={value}" for name, value in session.items()),
        },
    )


def _session(statement_timeout_s: float, *, is_reader: bool) -> dict[str, str]:
    """Settings of PostgreSQL for an engine's sessions."""
    return {
        "statement_timeout": f"{statement_timeout_s * 1000:.0f}",
        # A dead neighbour must not hide a live one: go on until there are enough.
        "hnsw.iterative_scan": "strict_order",
        "default_transaction_read_only": "on" if is_reader else "off",
        # Owners and scopes differ too much in size for one plan to serve all.
        "plan_cache_mode": "force_custom_plan" if is_reader else "auto",
        # An order that an index gives is taken from it, by a lookup: the planner prices a distance
        # like an addition, and would compare a scope's every row. No statistics need be fresh.
        "enable_sort": "off" if is_reader else "on",
        "enable_seqscan": "off" if is_reader else "on",
        # Many look up at once: none may take several processes.
        "max_parallel_workers_per_gather": "0" if is_reader else "2",
        "jit": "off",
    }


def address(engine: Engine) -> str:
    """Where an engine connects to, without user and password."""
    url = engine.url
    return f"{url.host or 'localhost'}:{url.port or 5432}/{url.database}"


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """One transaction; raises DatabaseUnreachable, or BudgetExceeded for a statement timeout."""
    try:
        with engine.begin() as connection:
            yield connection
    except (OperationalError, InterfaceError, PoolTimeout) as error:
        if isinstance(getattr(error, "orig", None), QueryCanceled):
            raise BudgetExceeded(f"database {address(engine)}: statement timeout") from error
        raise DatabaseUnreachable(address(engine), _reason(error)) from error


def check(engine: Engine) -> None:
    """Connect once; raises DatabaseUnreachable or DatabaseTooOld."""
    with transaction(engine) as connection:
        require_pgvector(connection, "SELECT extversion FROM pg_extension WHERE extname = 'vector'")


def refuse_old(url: str) -> None:
    """Raise DatabaseTooOld; a database that is away is waited for later, by those who use it."""
    engine = connect(url, pool_size=1)
    try:
        check(engine)
    except DatabaseUnreachable:
        return
    finally:
        engine.dispose()


def require_pgvector(connection: Connection, version_sql: str) -> None:
    """Raise DatabaseTooOld unless the statement's answer is a version that is safe under churn."""
    found = connection.execute(text(version_sql)).scalar()
    if found is None or _version(found) < _version(PGVECTOR_MIN):
        raise DatabaseTooOld(found, PGVECTOR_MIN)


def _version(number: str) -> tuple[int, ...]:
    return tuple(int(part) for part in number.split(".") if part.isdigit())


def _reason(error: OperationalError | InterfaceError | PoolTimeout) -> str:
    """The driver's first line: libpq names host, port, user and database, never the password."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
