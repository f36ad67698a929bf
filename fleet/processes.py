"""Processes known by pid and start time: are they alive, and end what a killed run left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from fleet.errors import FleetError
from fleet.record import ChildRecord, ProcessIdentity

# The kernel keeps start times in ticks since boot; the wall clock that turns them into seconds
# can be corrected meanwhile.
CREATED_TOLERANCE_S = 2.0
POLL_S = 0.02
KILL_LIMIT_S = 10.0


def identify(pid: int) -> ProcessIdentity | None:
    """The identity of a running process; None if there is none."""
    try:
        return ProcessIdentity(pid=pid, created_at=psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


def own_identity() -> ProcessIdentity:
    """The identity of this process."""
    process = psutil.Process()
    return ProcessIdentity(pid=process.pid, created_at=process.create_time())


def is_alive(identity: ProcessIdentity) -> bool:
    """Whether that very process runs; a zombie does not."""
    return _find(identity) is not None


def end_children(children: Sequence[ChildRecord], *, grace_s: float = 4.0) -> list[str]:
    """Stop what is left of a killed supervisor's children, with everything they started.

    Stop signals first, SIGKILL after `grace_s`. Returns the names of what had to be stopped;
    raises FleetError if something cannot be killed.
    """
    left = {child.name: _family(child.process) for child in children if child.process}
    for child in children:
        if child.process is not None:
            # Not to descendants with a session of their own: PostgreSQL's processes are stopped
            # by their parent, in its order.
            _signal(_session(child.process), child.stop_signal)
    _wait_gone([process for family in left.values() for process in family], grace_s)
    limit = time.monotonic() + KILL_LIMIT_S
    # Again and again: who is killed last may have started another meanwhile.
    while alive := [p for child in children if child.process for p in _family(child.process)]:
        _signal(alive, signal.SIGKILL)
        if time.monotonic() > limit:
            pids = ", ".join(str(process.pid) for process in alive)
            raise FleetError(f"processes {pids}, left by an earlier run, cannot be killed")
        time.sleep(POLL_S)
    for path in (path for child in children for path in child.leaves):
        Path(path).unlink(missing_ok=True)
    return [name for name, family in left.items() if family]


def _find(identity: ProcessIdentity) -> psutil.Process | None:
    holder = identify(identity.pid)
    if holder is None or not _is_same(holder, identity):
        return None
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(identity.pid)
        return process if _is_running(process) else None
    return None


def _is_same(holder: ProcessIdentity, identity: ProcessIdentity) -> bool:
    return abs(holder.created_at - identity.created_at) < CREATED_TOLERANCE_S


def _family(leader: ProcessIdentity) -> list[psutil.Process]:
    """The process, its descendants, and whoever else is in its session."""
    family = set(_session(leader))
    if (found := _find(leader)) is not None:
        with suppress(psutil.NoSuchProcess):
            family |= {found, *found.children(recursive=True)}
    return sorted(family, key=lambda process: process.pid)


def _session(leader: ProcessIdentity) -> list[psutil.Process]:
    """Who runs in the session of the leader, which may be dead.

    A session's number cannot be given to a new process while the session has members.
    """
    holder = identify(leader.pid)
    if holder is not None and not _is_same(holder, leader):
        return []
    return [process for process in psutil.process_iter() if _is_member(process, leader)]


def _is_member(process: psutil.Process, leader: ProcessIdentity) -> bool:
    with suppress(psutil.NoSuchProcess, ProcessLookupError, PermissionError):
        is_later = process.create_time() > leader.created_at - CREATED_TOLERANCE_S
        return os.getsid(process.pid) == leader.pid and is_later and _is_running(process)
    return False


def _signal(processes: Sequence[psutil.Process], signum: int) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signum)


def _wait_gone(processes: Sequence[psutil.Process], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while any(_is_running(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _is_running(process: psutil.Process) -> bool:
    # An orphan's zombie stays where init does not reap (as in many containers). Its last threads
    # may outlive it for a moment, and with them its ports.
    with suppress(psutil.NoSuchProcess):
        is_zombie = process.status() == psutil.STATUS_ZOMBIE
        return bool(process.is_running() and not (is_zombie and process.num_threads() <= 1))
    return False
