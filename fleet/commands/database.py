"""Finds the database that a command looks into."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection

from cache.database import connect, transaction
from fleet.commands.console import CommandFailed
from fleet.errors import NotRunningError
from fleet.home import connection_environment
from fleet.settings import load_settings


@contextmanager
def database_transaction() -> Iterator[Connection]:
    """One transaction on NIRVANA_DATABASE_URL, or else on the fleet of this machine.

    Raises CommandFailed where there is neither, SettingError, InvalidUrl or DatabaseUnreachable.
    """
    engine = connect(os.environ.get("NIRVANA_DATABASE_URL") or _fleet_url(), pool_size=1)
    try:
        with transaction(engine) as connection:
            yield connection
    finally:
        engine.dispose()


def _fleet_url() -> str:
    home = load_settings().home
    try:
        return connection_environment(home)["NIRVANA_DATABASE_URL"]
    except NotRunningError:
        raise CommandFailed(
            f"no fleet is running in {home}; start one with `nirvana up`, or set "
            "NIRVANA_DATABASE_URL"
        ) from None
