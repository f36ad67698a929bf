"""Progress of running jobs, told at most twice a second and never from the device's thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

import redis

from producer.trace import Progress
from workers.errors import BrokerAway

logger = logging.getLogger(__name__)

_PERIOD_S: Final = 0.5


class ProgressReporter:
    """Keeps the latest progress of each job, and tells it from a thread of its own."""

    def __init__(self, tell: Callable[[str, Progress], None]) -> None:
        self._tell = tell
        self._latest: dict[str, Progress] = {}
        self._lock = threading.Lock()  # of _latest
        self._telling = threading.Lock()  # held while one job's progress is told
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()

    def note(self, job_id: str, *, steps_done: int, steps_asked: int) -> None:
        """Remember how far a job is; cheap, called at every step."""
        with self._lock:
            self._latest[job_id] = Progress(steps_done=steps_done, steps_asked=steps_asked)

    def forget(self, job_id: str) -> None:
        """Say nothing more about a job, nor be in the middle of it: its end is shown next."""
        with self._telling:
            self._take(job_id)

    def close(self) -> None:
        """Stop telling."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(_PERIOD_S):
            with self._lock:
                job_ids = list(self._latest)
            for job_id in job_ids:
                self._tell_one(job_id)

    def _tell_one(self, job_id: str) -> None:
        try:
            with self._telling:
                if (progress := self._take(job_id)) is not None:
                    self._tell(job_id, progress)
        except (redis.RedisError, BrokerAway) as error:
            logger.debug("progress not told: %s", error, extra={"job_id": job_id})

    def _take(self, job_id: str) -> Progress | None:
        with self._lock:
            return self._latest.pop(job_id, None)
