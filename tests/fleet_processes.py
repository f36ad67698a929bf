"""A fleet with stub workers, in this process or in one of its own, and what it left running."""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from fleet.home import Home
from fleet.record import ChildRecord
from fleet.supervisor import FleetEvent
from fleet.up import Fleet, running_fleet
from tests.fleet_stubs import __file__ as stubs_path
from tests.fleet_stubs import forking_worker, no_migration, stub_settings

PROJECT = Path(__file__).resolve().parents[1]
STOP_LIMIT_S = 15.0
WAIT_S = 40.0


@contextmanager
def fleet_home() -> Iterator[Path]:
    """A state folder outside pytest's own, which PostgreSQL's account could not enter.

    Asserts at the end that nothing runs on it any more.
    """
    folder = Path(tempfile.mkdtemp(prefix="nirvana-fleet-"))
    folder.chmod(0o711)
    yield folder / "home"
    assert processes_of(folder) == []
    shutil.rmtree(folder)


def processes_of(folder: Path) -> list[str]:
    """Command lines of whatever still runs on the folder."""
    lines = (" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]))
    return [line for line in lines if str(folder) in line]


class Events:
    """What a fleet told, to be waited for."""

    def __init__(self) -> None:
        self._told: queue.Queue[FleetEvent] = queue.Queue()

    def __call__(self, event: FleetEvent) -> None:
        self._told.put(event)

    def wait_for(self, kind: str, name: str) -> float:
        """Seconds until the event came; queue.Empty after WAIT_S."""
        started_at = time.monotonic()
        while True:
            event = self._told.get(timeout=WAIT_S)
            if (event.kind, event.name) == (kind, name):
                return time.monotonic() - started_at


@contextmanager
def stub_fleet(home: Path, **given: str) -> Iterator[Fleet]:
    """A fleet in this process; `given` are URLs of services that it need not start."""
    with running_fleet(
        stub_settings(home, **given),
        workers=forking_worker,
        migrate=no_migration,
    ) as fleet:
        yield fleet


@contextmanager
def fleet_process(home: Path, *arguments: str, **given: str) -> Iterator[subprocess.Popen[str]]:
    """The same fleet in a process of its own, ready; killed at the end if it still runs."""
    urls = {f"NIRVANA_{name.upper()}": url for name, url in given.items()}
    with stubs_process(home, urls, *arguments) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == "READY\n", line + process.stdout.read()
        yield process


@contextmanager
def stubs_process(
    home: Path, env: dict[str, str], *arguments: str
) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-W", "error", stubs_path, str(home), *arguments],
        env={**os.environ, "PYTHONPATH": str(PROJECT), **env},
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def children_of(home: Path) -> dict[str, ChildRecord]:
    record = Home(home).record()
    assert record is not None
    return {child.name: child for child in record.children}


def pid_of(home: Path, name: str) -> int:
    process = children_of(home)[name].process
    assert process is not None
    return process.pid


def leaders(home: Path) -> list[psutil.Process]:
    return [psutil.Process(pid_of(home, name)) for name in children_of(home)]


def everyone(home: Path) -> list[psutil.Process]:
    return [p for leader in leaders(home) for p in [leader, *leader.children(recursive=True)]]


def is_over(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what tells nobody: a line in a log, a forked process."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
