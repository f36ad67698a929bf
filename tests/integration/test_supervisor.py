from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from fleet.errors import (
    NotReadyError,
    ProgramFailedError,
)
from fleet.home import Home
from fleet.program import Program
from fleet.record import ChildRecord
from fleet.supervisor import Supervisor
from tests.fleet_processes import (
    Events,
    fleet_home,
    is_over,
    wait_until,
)
from tests.fleet_stubs import DEAF, forking, python


@pytest.fixture
def home() -> Iterator[Path]:
    with fleet_home() as folder:
        yield folder


class SupervisedStubs:
    """A supervisor of stub programs, run in a thread."""

    def __init__(self, home: Path) -> None:
        self.events = Events()
        self.records: list[ChildRecord] = []
        Home(home).create()
        self.supervisor = Supervisor(Home(home), on_event=self.events, on_change=self._keep)

    def _keep(self, records: Sequence[ChildRecord]) -> None:
        self.records = list(records)

    @contextmanager
    def running(self, *programs: Program) -> Iterator[None]:
        try:
            self.supervisor.start(programs)
            thread = threading.Thread(target=self.supervisor.supervise)
            thread.start()
            try:
                yield
            finally:
                self.supervisor.stopping.set()
                thread.join()
        finally:
            self.supervisor.stop()


def test_a_child_that_ignores_its_stop_signal_is_killed_within_its_grace(home: Path) -> None:
    supervised = SupervisedStubs(home)
    log = home / "logs" / "deaf.log"
    with supervised.running(python("deaf", DEAF, stop_grace_s=0.5)):
        deaf = supervised.records[0].process
        assert deaf is not None
        wait_until(lambda: "deaf" in log.read_text())
        started_at = time.monotonic()
    assert 0.4 < time.monotonic() - started_at < 2.0
    assert not psutil.pid_exists(deaf.pid)


def test_a_killed_worker_takes_its_own_children_with_it_and_comes_back(home: Path) -> None:
    supervised = SupervisedStubs(home)
    with supervised.running(forking("gpu")):
        leader = supervised.records[0].process
        assert leader is not None
        wait_until(lambda: psutil.Process(leader.pid).children() != [])
        [forked] = psutil.Process(leader.pid).children()
        os.kill(leader.pid, signal.SIGKILL)
        supervised.events.wait_for("ready", "gpu")
        supervised.events.wait_for("ready", "gpu")
        assert is_over(forked)
        assert supervised.records[0].restarts == 1


def test_a_program_that_ends_at_once_fails_the_start_with_its_last_line(home: Path) -> None:
    supervised = SupervisedStubs(home)
    program = python("gpu", "import sys; sys.exit('no such model')")
    waiting = replace(program, probe=lambda pid: never_ready())
    expected = r"^gpu ended with exit code 1: no such model \(log: .*gpu\.log\)$"
    with pytest.raises(ProgramFailedError, match=expected), supervised.running(waiting):
        pass


def never_ready() -> None:
    raise NotReadyError("still loading")


def test_a_program_that_ends_while_another_is_loading_fails_the_start_at_once(home: Path) -> None:
    supervised = SupervisedStubs(home)
    slow = replace(forking("gpu"), probe=lambda pid: never_ready())
    with pytest.raises(ProgramFailedError, match="io ended with exit code 1: no broker"):
        supervised.supervisor.start([slow, python("io", "import sys; sys.exit('no broker')")])
    supervised.supervisor.stop()


def test_a_program_that_is_never_ready_fails_the_start_with_the_reason(home: Path) -> None:
    supervised = SupervisedStubs(home)
    slow = replace(forking("gpu"), probe=lambda pid: never_ready(), ready_timeout_s=0.1)
    expected = r"gpu was not ready after 0\.1 s: still loading"
    with pytest.raises(ProgramFailedError, match=expected), supervised.running(slow):
        pass


def test_a_program_that_cannot_be_started_is_named(home: Path) -> None:
    program = Program(name="gpu", argv=("/nonexistent/program",), env={})
    supervised = SupervisedStubs(home)
    expected = "gpu could not be started"
    with pytest.raises(ProgramFailedError, match=expected), supervised.running(program):
        pass
