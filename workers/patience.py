"""Waiting for a database or an object store that is away: a job that holds a lease outlasts it."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from cache.errors import ObjectStoreError
from workers.errors import StorageUnavailable

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")
_AWAY: Final = (OperationalError, InterfaceError, PoolTimeout, ObjectStoreError)
_PAUSE_S_MAX: Final = 2.0


class Patience:
    """Retries an operation while its storage is away, for at most `limit_s`."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._closing = threading.Event()

    def outlast(self, operation: Callable[[], ResultT]) -> ResultT:
        """Run `operation` until it gets through; raises StorageUnavailable at the limit.

        Only errors that say "not reachable now" are waited out; all others are raised as they are.
        """
        give_up_at = time.monotonic() + self._limit_s
        pause_s = 0.05
        while True:
            try:
                return operation()
            except _AWAY as error:
                if time.monotonic() >= give_up_at or self._closing.is_set():
                    raise StorageUnavailable(_describe(error)) from error
                logger.warning("storage is away, trying again: %s", _describe(error))
            self._closing.wait(pause_s * random.uniform(0.5, 1))  # noqa: S311 - spread, no secret
            pause_s = min(2 * pause_s, _PAUSE_S_MAX)

    def close(self) -> None:
        """Let every waiting operation fail at once."""
        self._closing.set()


def _describe(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
