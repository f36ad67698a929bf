"""Worker processes as compose starts them, on the test run's servers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis
from sqlalchemy import Engine

from cache.database import connect
from migrations.migrate import upgrade
from producer.broker import open_connection
from producer.models import ModelTable, ServedModel
from tests.services import TestServices

PROJECT = Path(__file__).resolve().parents[1]
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerProcess:
    """A running `nirvana worker`."""

    name: str
    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def check_alive(self) -> None:
        assert self.process.poll() is None, self.log[-4_000:]

    def stop(self) -> int:
        """Stop it as its supervisor would; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        finally:
            self.process.kill()


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One fleet's corner of each server, and a folder for logs."""

    folder: Path
    broker_url: str
    database_url: str
    s3_url: str
    model_path: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            "NIRVANA_BROKER_URL": self.broker_url,
            "NIRVANA_DATABASE_URL": self.database_url,
            "NIRVANA_S3_URL": self.s3_url,
            "NIRVANA_MODEL": "tiny",
            "NIRVANA_MODEL_PATH": str(self.model_path),
            "NIRVANA_NUM_THREADS": "1",
            "NIRVANA_BATCH_SIZE_MAX": "8",
        }

    @contextmanager
    def connection(self) -> Iterator[redis.Redis]:
        with closing(open_connection(self.broker_url)) as connection:
            yield connection

    @contextmanager
    def database(self) -> Iterator[Engine]:
        engine = connect(self.database_url)
        yield engine
        engine.dispose()

    def served(self) -> ServedModel | None:
        with self.connection() as connection:
            return ModelTable(connection).served().get("tiny")

    def num_messages(self) -> int:
        """How many messages lie in queues, or are held by a worker."""
        with self.connection() as connection:
            queues = [*connection.scan_iter("generate.*"), *connection.scan_iter("io*")]
            waiting = [*connection.scan_iter("nirvana:waiting:*")]
            lengths = [connection.llen(queue) for queue in queues]
            places = [connection.zcard(key) for key in waiting]
            return sum(map(int, [*lengths, *places, connection.hlen("unacked")]))


@contextmanager
def site(services: TestServices, folder: Path, model_path: Path) -> Iterator[Site]:
    """A migrated database, an empty broker and bucket."""
    with ExitStack() as stack:
        database_url = stack.enter_context(services.database())
        upgrade(database_url)
        yield Site(
            folder=folder,
            broker_url=stack.enter_context(services.broker()),
            database_url=database_url,
            s3_url=stack.enter_context(services.bucket()),
            model_path=model_path,
        )


@contextmanager
def workers(
    place: Site, *, kinds: Sequence[str] = ("gpu", "io"), **settings: str
) -> Iterator[dict[str, WorkerProcess]]:
    """Start one worker of each kind, wait for the model, and stop all at the end."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), **place.environment, **settings}
    running = {kind: _started(place, kind, environment) for kind in kinds}
    try:
        wait_until(
            lambda: place.served() is not None or _any_ended(running.values()), START_TIMEOUT_S
        )
        for worker in running.values():
            worker.check_alive()
        yield running
    finally:
        for worker in running.values():
            worker.stop()


def wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    """Poll another process's doings, which send this one no event."""
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at, f"not so after {timeout_s:g} s"
        time.sleep(0.02)


def _started(place: Site, kind: str, environment: Mapping[str, str]) -> WorkerProcess:
    log_path = place.folder / f"{kind}.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "fleet.cli", "worker", kind],
            env=dict(environment),
            cwd=PROJECT,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return WorkerProcess(name=kind, process=process, log_path=log_path)


def _any_ended(running: Iterable[WorkerProcess]) -> bool:
    return any(worker.process.poll() is not None for worker in running)
