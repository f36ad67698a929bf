"""Stores new states in the cache behind the jobs' backs, within a bound."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Final

from cache.approximate import ApproximateCache
from workers.reuse import NewStates

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S: Final = 5.0

Then = Callable[[], None]


class CaptureKeeper:
    """A bounded queue and one thread: when it is full, states are dropped, no job is delayed."""

    def __init__(
        self, cache: ApproximateCache, *, waiting_max: int, waiting_bytes_max: int
    ) -> None:
        """Keep at most so many entries, and so many bytes of latents, waiting."""
        self._cache = cache
        self._waiting: queue.Queue[tuple[NewStates, Then] | None] = queue.Queue(waiting_max)
        self._waiting_bytes_max = waiting_bytes_max
        self._waiting_bytes = 0  # of the entry that is being stored, too
        self._lock = threading.Lock()  # of the two counts
        self.num_dropped = 0  # entries
        self._thread = threading.Thread(target=self._run, name="captures", daemon=True)
        self._thread.start()

    def keep(self, states: NewStates, *, then: Then = lambda: None) -> None:
        """Have states stored soon, or drop and count them; never waits.

        `then` is called once lookups find them, or will not.
        """
        size = states.num_bytes
        with self._lock:
            fits = self._waiting_bytes + size <= self._waiting_bytes_max
            if fits and not self._waiting.full():
                self._waiting.put_nowait((states, then))
                self._waiting_bytes += size
                return
            self.num_dropped += 1
        logger.warning("states dropped: the store is behind by %d", self._waiting.qsize())
        then()

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
        while (waiting := self._waiting.get()) is not None:
            states, then = waiting
            try:
                self._cache.store(states.scope, states.entry, is_refresh=states.is_refresh)
            finally:
                then()
                with self._lock:
                    self._waiting_bytes -= states.num_bytes
                self._waiting.task_done()
