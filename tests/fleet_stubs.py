"""A fleet whose workers are stubs, also in a process of its own: python tests/fleet_stubs.py HOME.

Prints READY when everything is, and STOPPED after an ordered stop.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fleet.addresses import Addresses
from fleet.home import Secrets
from fleet.program import Program
from fleet.record import FlowerAddress
from fleet.settings import FleetSettings, load_settings
from fleet.up import running_fleet

DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(600)
"""


def python(name: str, code: str, *, stop_grace_s: float = 1.0) -> Program:
    """A program that runs the given Python code."""
    env = {"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1"}
    argv = (sys.executable, "-c", code)
    return Program(name=name, argv=argv, env=env, stop_grace_s=stop_grace_s)


def stub_settings(home: Path, **given: str) -> FleetSettings:
    """Settings of a fleet in `home` with any free Flower port, and the given services' URLs."""
    return load_settings(home=home, flower_port=0, **given)


def forking(name: str) -> Program:
    """A program with a child of its own, as a worker with a pool has; ends on SIGTERM."""
    argv = ("/bin/sh", "-c", "sleep 600; exit 1")
    return Program(name=name, argv=argv, env={"PATH": os.environ["PATH"]})


def forking_worker(*_: Addresses | FlowerAddress | Secrets) -> Sequence[Program]:
    """One such worker."""
    return [forking("gpu")]


def no_migration(database_url: str) -> None:
    """Leave the database as it is."""


def main() -> None:
    """Run the fleet until it is interrupted; as another account if a second argument names one."""
    settings = stub_settings(Path(sys.argv[1]))
    for uid in map(int, sys.argv[2:]):
        # Now, after the imports: the account may not be able to read this Python. The codec of
        # host names is imported by its first use.
        "localhost".encode("idna")
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    fleet = running_fleet(settings, workers=forking_worker, migrate=no_migration)
    with suppress(KeyboardInterrupt), fleet as running:
        sys.stdout.write("READY\n")
        sys.stdout.flush()
        running.wait()
    assert threading.active_count() == 1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    sys.stdout.write("STOPPED\n")


if __name__ == "__main__":
    main()
