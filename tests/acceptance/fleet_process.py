"""A fleet as a user starts it: `nirvana up` in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fleet.control import status
from fleet.home import connection_environment
from fleet.record import ChildRecord

PROJECT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 90.0
PROGRAMS = {"postgres", "valkey", "seaweedfs", "gpu", "io", "beat", "flower"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetProcess:
    """A running `nirvana up`."""

    home: Path
    process: subprocess.Popen[bytes]
    env: Mapping[str, str]

    def children(self) -> dict[str, ChildRecord]:
        record = status(self.home).record
        return {child.name: child for child in record.children} if record else {}

    def pid(self, name: str) -> int:
        child = self.children()[name]
        assert child.process is not None
        return child.process.pid

    def kill(self, name: str) -> None:
        os.kill(self.pid(name), signal.SIGKILL)

    def is_ready(self) -> bool:
        children = self.children()
        return len(children) == len(PROGRAMS) and all(
            child.state == "ready" for child in children.values()
        )

    def connection(self) -> dict[str, str]:
        return connection_environment(self.home)

    def nirvana(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return nirvana(*arguments, env=self.env)

    def interrupt(self) -> float:
        """Press Ctrl-C; returns the seconds until the end."""
        started_at = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(30) == 0
        return time.monotonic() - started_at


def nirvana(*arguments: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fleet.cli", *arguments],
        env=dict(env),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@contextmanager
def state_folder() -> Iterator[Path]:
    """Yield a folder that PostgreSQL's user can pass also where the tests run as root."""
    with tempfile.TemporaryDirectory(prefix="nirvana-test-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder) / "home"


@contextmanager
def running(home: Path, **settings: str) -> Iterator[FleetProcess]:
    """Start a fleet in `home` and stop it at the end, however the block ends."""
    env = {
        **os.environ,
        # Else threads of several workers spin for cores that others hold: minutes for seconds.
        "OMP_WAIT_POLICY": "PASSIVE",
        "NIRVANA_HOME": str(home),
        "NIRVANA_FLOWER_PORT": "0",
        **settings,
    }
    with (home.parent / "up.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "fleet.cli", "up"],
            env=env,
            cwd=PROJECT,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    fleet = FleetProcess(home=home, process=process, env=env)
    try:
        wait_until(lambda: fleet.is_ready() or process.poll() is not None, START_TIMEOUT_S)
        assert process.poll() is None, (home.parent / "up.log").read_text()
        yield fleet
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(30)


def wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    """Poll another process's doings, which send this one no event."""
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at, f"not so after {timeout_s:g} s"
        time.sleep(0.05)


@dataclass
class Receiver:
    """An HTTP server that keeps what it is sent."""

    url: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    webhook_ids: list[str] = field(default_factory=list)
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)  # headers, body

    def of(self, job_id: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["data"]["job_id"] == job_id]


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Receive webhooks on a loopback port."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.requests.append(({k.lower(): v for k, v in self.headers.items()}, body))
            receiver.events.append(json.loads(body))
            receiver.webhook_ids.append(self.headers["webhook-id"])
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    receiver.url = f"http://127.0.0.1:{server.server_port}/hook"
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
