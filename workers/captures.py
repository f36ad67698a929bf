"""Stores new states in the cache behind the jobs' backs, within a bound."""

from __future__ import annotations

import logging
import queue
import threading
from dataclasses import dataclass
from typing import Final, Protocol

from cache.entry import NewEntry, Scope

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S: Final = 5.0


class StateStore(Protocol):
    """What keeps states: `cache.approximate.ApproximateCache`."""

    def store(self, scope: Scope, entry: NewEntry) -> bool:
        """Store an entry; False when it could not be stored. Never raises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Captured:
    scope: Scope
    entry: NewEntry


class CaptureKeeper:
    """A bounded queue and one thread: when it is full, states are dropped, no job is delayed."""

    def __init__(self, store: StateStore, *, waiting_max: int) -> None:
        self._store = store
        self._waiting: queue.Queue[_Captured | None] = queue.Queue(waiting_max)
        self.num_dropped = 0
        self._thread = threading.Thread(target=self._run, name="captures", daemon=True)
        self._thread.start()

    def keep(self, scope: Scope, entry: NewEntry) -> None:
        """Have an entry stored soon, or drop and count it."""
        try:
            self._waiting.put_nowait(_Captured(scope=scope, entry=entry))
        except queue.Full:
            self.num_dropped += 1
            logger.warning("states dropped: the store is behind by %d", self._waiting.qsize())

    def drain(self) -> None:
        """Wait until all that was kept is stored."""
        self._waiting.join()

    def close(self) -> None:
        """Store what waits, for a few seconds at most, and stop."""
        self._waiting.put(None)
        self._thread.join(_CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        while (captured := self._waiting.get()) is not None:
            self._store.store(captured.scope, captured.entry)
            self._waiting.task_done()
