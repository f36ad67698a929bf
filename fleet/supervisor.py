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
from fleet.program import PROBE_INTERVAL_S, Program, describe_exit
from fleet.record import ChildRecord
from fleet.supervised import Supervised

logger = logging.getLogger(__name__)

POLL_S = 0.1
STOP_LIMIT_S = 15.0

EventKind = Literal["starting", "ready", "died", "restarting", "stopping", "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetEvent:
    """Something to show; `detail` is a phrase, often empty."""

    kind: EventKind
    name: str
    detail: str = ""


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
        self._stages: list[list[Supervised]] = []
        self._change_lock = threading.Lock()

    def start(self, programs: Sequence[Program]) -> None:
        """Start a stage and wait until all of it is ready, or `stopping` is set.

        Raises ProgramFailedError when a child ends first or takes too long.
        """
        earlier, stage = list(self._stages), list[Supervised]()
        self._stages.append(stage)
        for program in programs:
            if self.stopping.is_set():
                return
            stage.append(Supervised(program, self._changed))
            self._tell("starting", program.name)
            stage[-1].spawn(self._home)
            self._changed()
        while not self.stopping.wait(PROBE_INTERVAL_S):
            for supervised in stage:
                if supervised.became_ready():
                    self._tell("ready", supervised.program.name)
            if all(supervised.is_ready for supervised in stage):
                return
            self._attend_all(earlier)

    def supervise(self) -> None:
        """Restart what dies, until `stopping` is set."""
        while not self.stopping.wait(POLL_S):
            self._attend_all(self._stages)

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

    def _attend_all(self, stages: Sequence[Sequence[Supervised]]) -> None:
        for stage in stages:
            for supervised in stage:
                self._attend(supervised, time.monotonic())

    def _attend(self, supervised: Supervised, now: float) -> None:
        if supervised.restart_at is not None:
            if now >= supervised.restart_at:
                self._restart(supervised)
        elif (code := supervised.poll()) is not None:
            delay_s = supervised.bury(now)
            detail = f"{describe_exit(code)}, restart in {delay_s:g} s"
            self._tell("died", supervised.program.name, detail)
            self._changed()

    def _restart(self, supervised: Supervised) -> None:
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
