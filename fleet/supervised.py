"""One supervised program over the lives of its children: states, restarts, backoff."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from fleet.errors import ProgramFailedError
from fleet.home import Home
from fleet.processes import identify
from fleet.program import Child, Program
from fleet.record import ChildRecord, State

logger = logging.getLogger(__name__)

BACKOFF_FIRST_S = 0.2
BACKOFF_MAX_S = 15.0
# A child that lived this long starts anew with the first backoff.
STABLE_S = 20.0


def backoff_s(failures: int) -> float:
    """Seconds before the restart that follows the given number of early deaths in a row."""
    return float(min(BACKOFF_FIRST_S * 2.0 ** min(failures, 16), BACKOFF_MAX_S))


class Supervised:
    """A program over its children's lives."""

    def __init__(self, program: Program, on_change: Callable[[], None]) -> None:
        self.program = program
        self.restart_at: float | None = None
        self._on_change = on_change
        self._child: Child | None = None
        self._state: State = "starting"
        self._restarts = -1
        self._failures = 0
        self._waiter: threading.Thread | None = None

    def spawn(self, home: Home) -> Child:
        self._restarts += 1
        self._state = "starting"
        self._child = Child(self.program, log_path=home.log_path(self.program.name))
        self.restart_at = None
        return self._child

    @property
    def is_ready(self) -> bool:
        return self._state == "ready"

    def became_ready(self) -> bool:
        """Whether this very call found it ready; raises ProgramFailedError, also if it was before.

        For the first start: what ends there will hardly do better a second time.
        """
        assert self._child is not None
        if self.is_ready:
            self._child.check_running()
        elif self._child.is_ready():
            self._set_ready()
            return True
        return False

    def await_ready_aside(
        self, child: Child, stopping: threading.Event, *, on_ready: Callable[[], None]
    ) -> None:
        """Await readiness in a thread; a child that takes too long is killed, hence restarted."""

        def wait() -> None:
            try:
                if child.wait_ready(stopping):
                    self._set_ready()
                    on_ready()
            except ProgramFailedError as error:
                logger.warning("%s", error)
                child.kill()

        self._waiter = threading.Thread(target=wait, name=f"ready-{self.program.name}", daemon=True)
        self._waiter.start()

    def _set_ready(self) -> None:
        self._state = "ready"
        self._on_change()

    def poll(self) -> int | None:
        return self._child.poll() if self._child is not None else None

    def bury(self, now: float) -> float:
        """Clear away a dead child; returns the seconds until its successor starts."""
        lived_s = 0.0
        if self._child is not None:
            self._child.kill()
            lived_s = now - self._child.started_at
        self._join_waiter()
        self._failures = 0 if lived_s > STABLE_S else self._failures
        delay_s = backoff_s(self._failures)
        self._failures += 1
        self.restart_at, self._state = now + delay_s, "restarting"
        self._child = None
        return delay_s

    def request_stop(self) -> None:
        self._state = "stopping"
        if self._child is not None:
            self._child.request_stop()

    def wait_stopped(self, deadline: float) -> None:
        if self._child is not None:
            self._child.wait_stopped(deadline - time.monotonic())
        self._join_waiter()
        self._child = None

    def record(self) -> ChildRecord:
        return ChildRecord(
            name=self.program.name,
            state=self._state,
            process=identify(self._child.pid) if self._child is not None else None,
            restarts=max(self._restarts, 0),
            stop_signal=self.program.stop_signal,
            log_path=self._log_path(),
            leaves=tuple(str(path) for path in self.program.leaves),
        )

    def _log_path(self) -> str:
        return str(self._child.log_path) if self._child is not None else ""

    def _join_waiter(self) -> None:
        if self._waiter is not None:
            self._waiter.join()
            self._waiter = None
