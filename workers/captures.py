"""Stores new states in the cache behind the jobs' backs, within a bound."""

from __future__ import annotations

import logging
import queue
import threading
import time
from typing import Final

from cache.approximate import ApproximateCache
from workers.reuse import NewStates

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S: Final = 5.0


class CaptureKeeper:
    """A bounded queue and one thread: when it is full, states are dropped, no job is delayed."""

    def __init__(self, cache: ApproximateCache, *, waiting_max: int) -> None:
        self._cache = cache
        self._waiting: queue.Queue[NewStates | None] = queue.Queue(waiting_max)
        self.num_dropped = 0
        self._thread = threading.Thread(target=self._run, name="captures", daemon=True)
        self._thread.start()

    def keep(self, states: NewStates) -> None:
        """Have states stored soon, or drop and count them."""
        try:
            self._waiting.put_nowait(states)
        except queue.Full:
            self.num_dropped += 1
            logger.warning("states dropped: the store is behind by %d", self._waiting.qsize())

    def drain(self) -> None:
        """Wait until all that was kept is stored."""
        self._waiting.join()

    def close(self) -> None:
        """Store what waits, for a few seconds at most, and stop."""
        give_up_at = time.monotonic() + _CLOSE_TIMEOUT_S
        try:
            self._waiting.put(None, timeout=_CLOSE_TIMEOUT_S)
        except queue.Full:
            logger.warning("states dropped: the store hangs with %d behind", self._waiting.qsize())
            return
        self._thread.join(max(0.0, give_up_at - time.monotonic()))

    def _run(self) -> None:
        while (states := self._waiting.get()) is not None:
            self._cache.store(states.scope, states.entry, is_refresh=states.is_refresh)
            self._waiting.task_done()
