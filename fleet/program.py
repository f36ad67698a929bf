"""A program that the fleet runs, and its running child process."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fleet.errors import NotReadyError, ProgramFailedError

PROBE_INTERVAL_S = 0.05
LOG_TAIL_BYTES = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """The account a child runs as; only root can choose one."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What to start, when it counts as ready, and how it is stopped."""

    name: str
    argv: tuple[str, ...]
    # The child's whole environment: nothing is inherited.
    env: Mapping[str, str]
    cwd: Path = Path("/")
    user: User | None = None
    # Called with the child's pid until it returns; raises NotReadyError for "not yet".
    # None: ready as soon as it runs.
    probe: Callable[[int], None] | None = None
    ready_timeout_s: float = 30.0
    stop_signal: signal.Signals = signal.SIGTERM
    # How long after `stop_signal` the child is killed.
    stop_grace_s: float = 4.0
    # Files elsewhere that it does not remove at its end.
    leaves: tuple[Path, ...] = ()


class Child:
    """One running process of a program, leader of its own session.

    A session of its own keeps a terminal's Ctrl-C away from it: the supervisor decides who stops
    when. Output is appended to `log_path`.
    """

    def __init__(self, program: Program, *, log_path: Path) -> None:
        self.program = program
        self.log_path = log_path
        self._log_start_bytes = log_path.stat().st_size if log_path.exists() else 0
        self._process = self._spawn()
        self.pid = self._process.pid
        self.started_at = time.monotonic()

    def _spawn(self) -> subprocess.Popen[bytes]:
        program, user = self.program, self.program.user
        try:
            with self.log_path.open("ab") as log:
                return subprocess.Popen(
                    program.argv,
                    env=dict(program.env),
                    cwd=program.cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    user=user.uid if user else None,
                    group=user.gid if user else None,
                    extra_groups=[] if user else None,
                )
        except (OSError, subprocess.SubprocessError) as error:
            reason = f"could not be started: {error}"
            raise ProgramFailedError(program.name, reason, self.log_path) from error

    def poll(self) -> int | None:
        """Exit code, negative for a signal, or None while it runs."""
        return self._process.poll()

    def is_ready(self) -> bool:
        """Probe once; raises ProgramFailedError when it ended or `ready_timeout_s` passed.

        The child must still live after a good answer: an orphan of an earlier run could have
        given it.
        """
        self.check_running()
        try:
            if self.program.probe is not None:
                self.program.probe(self.pid)
            self.check_running()
            return True
        except NotReadyError as error:
            reason = str(error)
        if time.monotonic() > self.started_at + self.program.ready_timeout_s:
            raise self._failed(f"was not ready after {self.program.ready_timeout_s:g} s: {reason}")
        return False

    def wait_ready(self, cancelled: threading.Event) -> bool:
        """Probe until ready; False if `cancelled` first. Raises as `is_ready` does."""
        while not cancelled.is_set():
            if self.is_ready():
                return True
            cancelled.wait(PROBE_INTERVAL_S)
        return False

    def check_running(self) -> None:
        """Raise ProgramFailedError, with the last line of its log, if it has ended."""
        if (code := self.poll()) is not None:
            tail = self.log_tail()
            reason = f"ended with {describe_exit(code)}"
            raise self._failed(f"{reason}: {tail}" if tail else reason)

    def request_stop(self) -> None:
        """Send the program's stop signal, if it still runs."""
        if self.poll() is None:
            self._process.send_signal(self.program.stop_signal)

    def wait_stopped(self, timeout_s: float) -> None:
        """Wait for the end, then kill what is left of the child and its process group."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(timeout_s, 0.0))
        self.kill()

    def stop(self) -> None:
        """Stop within the program's grace."""
        self.request_stop()
        self.wait_stopped(self.program.stop_grace_s)

    def kill(self) -> None:
        """Kill the child and whatever it forked into its process group, and reap it."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        for path in self.program.leaves:
            path.unlink(missing_ok=True)

    def log_tail(self) -> str:
        """Last line that this child, not an earlier one, wrote to its log."""
        with self.log_path.open("rb") as log:
            size_bytes = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start_bytes, size_bytes - LOG_TAIL_BYTES))
            lines = log.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def _failed(self, reason: str) -> ProgramFailedError:
        return ProgramFailedError(self.program.name, reason, self.log_path)


def describe_exit(code: int | None) -> str:
    """Name an exit code of `subprocess`: negative codes are signals."""
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"
