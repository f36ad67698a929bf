"""Keep programs running: start in order, restart on death, stop in reverse order.

One thread owns a Supervisor and calls `start`, `supervise` and `stop`; `stopping` may be set by
any other. Each child's readiness after a restart is awaited in a thread of its own, so that a
slow one does not keep the others dead.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from fleet.errors import ProgramFailedError
from fleet.home import Home
from fleet.processes import identify
from fleet.program import Child, Program, describe_exit
from fleet.record import ChildRecord, State

logger = logging.getLogger(__name__)

POLL_S = 0.1
BACKOFF_FIRST_S = 0.2
BACKOFF_MAX_S = 15.0
# A child that lived this long starts anew with the first backoff.
STABLE_S = 20.0
STOP_LIMIT_S = 15.0

EventKind = Literal["starting", "ready", "died", "restarting", "stopping", "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetEvent:
    """Something to show; `detail` is a phrase, often empty."""

    kind: EventKind
    name: str
    detail: str = ""


def backoff_s(failures: int) -> float:
    """Seconds before the restart that follows the given number of early deaths in a row."""
    return float(min(BACKOFF_FIRST_S * 2.0 ** min(failures, 16), BACKOFF_MAX_S))


class Supervisor:
    """Runs programs in stages; a stage is started together and stopped together.

    `on_event` and `on_change` are called from the owner's thread and from those that await a
    restarted child; `on_change` never twice at once.
    """

    def __init__(
        self,
        home: Home,
        *,
        on_event: Callable[[FleetEvent], None],
        on_change: Callable[[Sequence[ChildRecord]], None],
    ) -> None:
        self.stopping = threading.Event()
        self._home = home
        self._on_event = on_event
        self._on_change = on_change
        self._stages: list[list[_Supervised]] = []
        self._change_lock = threading.Lock()

    def start(self, programs: Sequence[Program]) -> None:
        """Start a stage and wait until all of it is ready, or `stopping` is set.

        Raises ProgramFailedError when a child ends first or takes too long.
        """
        stage: list[_Supervised] = []
        self._stages.append(stage)
        children = []
        for program in programs:
            if self.stopping.is_set():
                return
            supervised = _Supervised(program, self._changed)
            stage.append(supervised)
            self._tell("starting", program.name)
            children.append(supervised.spawn(self._home))
            self._changed()
        for supervised, child in zip(stage, children, strict=True):
            if supervised.await_ready(child, self.stopping):
                self._tell("ready", supervised.program.name)

    def supervise(self) -> None:
        """Restart what dies, until `stopping` is set."""
        while not self.stopping.wait(POLL_S):
            for stage in self._stages:
                for supervised in stage:
                    self._attend(supervised, time.monotonic())

    def stop(self) -> None:
        """Stop all stages, the last started first; kills what exceeds its grace."""
        self.stopping.set()
        deadline = time.monotonic() + STOP_LIMIT_S - 1.0
        while self._stages:
            stage = self._stages[-1]
            for supervised in reversed(stage):
                supervised.request_stop()
                self._tell("stopping", supervised.program.name)
            self._changed()
            started_at = time.monotonic()
            for supervised in reversed(stage):
                grace_end = started_at + supervised.program.stop_grace_s
                supervised.wait_stopped(min(grace_end, deadline))
                self._tell("stopped", supervised.program.name)
            self._stages.pop()
            self._changed()

    def _attend(self, supervised: _Supervised, now: float) -> None:
        if supervised.restart_at is not None:
            if now >= supervised.restart_at:
                self._restart(supervised)
        elif (code := supervised.poll()) is not None:
            delay_s = supervised.bury(now)
            detail = f"{describe_exit(code)}, restart in {delay_s:g} s"
            self._tell("died", supervised.program.name, detail)
            self._changed()

    def _restart(self, supervised: _Supervised) -> None:
        self._tell("restarting", supervised.program.name)
        try:
            child = supervised.spawn(self._home)
        except ProgramFailedError as error:
            logger.warning("restart failed: %s", error)
            supervised.bury(time.monotonic())
            return
        self._changed()
        supervised.await_ready_aside(
            child, self.stopping, on_ready=lambda: self._tell("ready", supervised.program.name)
        )

    def _tell(self, kind: EventKind, name: str, detail: str = "") -> None:
        logger.info("%s %s %s", name, kind, detail)
        self._on_event(FleetEvent(kind=kind, name=name, detail=detail))

    def _changed(self) -> None:
        with self._change_lock:
            self._on_change([s.record() for stage in self._stages for s in stage])


class _Supervised:
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

    def await_ready(self, child: Child, stopping: threading.Event) -> bool:
        is_ready = child.wait_ready(stopping)
        if is_ready:
            self._state = "ready"
            self._on_change()
        return is_ready

    def await_ready_aside(
        self, child: Child, stopping: threading.Event, *, on_ready: Callable[[], None]
    ) -> None:
        """Await readiness in a thread; a child that takes too long is killed, hence restarted."""

        def wait() -> None:
            try:
                if self.await_ready(child, stopping):
                    on_ready()
            except ProgramFailedError as error:
                logger.warning("%s", error)
                child.kill()

        self._waiter = threading.Thread(target=wait, name=f"ready-{self.program.name}", daemon=True)
        self._waiter.start()

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
        )

    def _log_path(self) -> str:
        return str(self._child.log_path) if self._child is not None else ""

    def _join_waiter(self) -> None:
        if self._waiter is not None:
            self._waiter.join()
            self._waiter = None
