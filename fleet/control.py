"""Look at a running fleet, and stop it, from another process."""

from __future__ import annotations

import os
import signal
import time
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
    # None where nothing runs; what was left behind where the supervisor was killed.
    record: FleetRecord | None
    # Programs that outlive a killed supervisor: the next `up`, or `down`, ends them.
    leftovers: tuple[str, ...] = ()


def status(folder: Path) -> FleetStatus:
    """What runs in the folder now; never raises for a folder that does not exist."""
    home = Home(folder)
    record = home.record()
    if record is None or home.is_supervised():
        return FleetStatus(is_running=record is not None, record=record)
    left = [c.name for c in record.children if c.process is not None and is_alive(c.process)]
    return FleetStatus(is_running=False, record=record, leftovers=tuple(left))


def stop(folder: Path) -> list[str]:
    """Stop the fleet of the folder and wait for its end; returns the names of what ran.

    Cleans up after a killed supervisor too. Raises NotRunningError if there was nothing to stop,
    FleetError if it did not end in time.
    """
    home = Home(folder)
    found = status(folder)
    if found.record is None or not (found.is_running or found.leftovers):
        raise NotRunningError(folder)
    if not found.is_running:
        with home.locked():
            return end_leftovers(home)
    supervisor = found.record.supervisor
    if is_alive(supervisor):
        os.kill(supervisor.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while home.is_supervised():
        if time.monotonic() > deadline:
            raise FleetError(
                f"the fleet's supervisor (process {supervisor.pid}) did not stop "
                f"within {STOP_TIMEOUT_S:g} s"
            )
        time.sleep(POLL_S)
    return [child.name for child in found.record.children]
