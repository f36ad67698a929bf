"""Look at a running fleet, and stop it, from another process."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fleet.errors import FleetError, NotRunningError
from fleet.home import Home
from fleet.processes import is_alive
from fleet.record import FleetRecord
from fleet.up import end_leftovers

STOP_TIMEOUT_S = 20.0
POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetStatus:
    """What runs in a state folder."""

    is_running: bool
    # None where nothing runs, or all is only about to start; what was left behind where the
    # supervisor was killed.
    record: FleetRecord | None
    # Programs that outlive a killed supervisor: the next `up`, or `down`, ends them.
    leftovers: tuple[str, ...] = ()


def status(folder: Path) -> FleetStatus:
    """What runs in the folder now; never raises for a folder that does not exist."""
    home = Home(folder)
    record = home.record()
    if home.is_supervised():
        return FleetStatus(is_running=True, record=record)
    if record is None:
        return FleetStatus(is_running=False, record=None)
    left = [c.name for c in record.children if c.process is not None and is_alive(c.process)]
    return FleetStatus(is_running=False, record=record, leftovers=tuple(left))


def stop(folder: Path) -> list[str]:
    """Stop the fleet of the folder and wait for its end; returns the names of what ran.

    Cleans up after a killed supervisor too. Raises NotRunningError if there was nothing to stop,
    FleetError if it did not end in time.
    """
    home, found = Home(folder), status(folder)
    if found.is_running:
        _interrupt(home)
        return [child.name for child in found.record.children] if found.record else []
    if not found.leftovers:
        raise NotRunningError(folder)
    with home.locked():
        return end_leftovers(home)


def _interrupt(home: Home) -> None:
    pid, deadline = home.supervisor_pid(), time.monotonic() + STOP_TIMEOUT_S
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    while home.is_supervised():
        if time.monotonic() > deadline:
            limit = f"within {STOP_TIMEOUT_S:g} s"
            raise FleetError(f"the fleet's supervisor (process {pid}) did not stop {limit}")
        time.sleep(POLL_S)
