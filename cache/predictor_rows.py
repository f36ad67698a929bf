"""The match predictors' rows, where neither NumPy nor scikit-learn is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, Engine, text

from cache.database import transaction

FIT_LOCK_ID: Final = 0x6E697278  # beside the migrations' and the indexes'

_LOCK = text("SELECT pg_advisory_xact_lock(:id)")

_DROP = text("DELETE FROM match_predictors WHERE scope_id = ANY(:scope_ids)")


def lock_fitting(connection: Connection) -> None:
    """Wait for whoever fits or drops; until the end of the transaction nobody else does."""
    connection.execute(_LOCK, {"id": FIT_LOCK_ID})


def drop_predictors(engine: Engine, scope_ids: Sequence[int]) -> int:
    """Delete scopes' predictors, one that is being fitted included; answers how many.

    Their next fit knows nothing of prompts that are gone by then.
    """
    with transaction(engine) as connection:
        lock_fitting(connection)
        return connection.execute(_DROP, {"scope_ids": list(scope_ids)}).rowcount
