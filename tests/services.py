"""The three real servers for a test run, and fresh databases, broker indexes and buckets."""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import redis
from minio.deleteobjects import DeleteObject
from psycopg import sql

from fleet import ports
from fleet.addresses import parse_s3_url
from fleet.program import Child
from fleet.services import postgres, s3, seaweedfs, valkey
from fleet.services.postgres import ROLE, Passwords
from fleet.services.service import Service

BROKER_INDEXES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TestServices:
    """Addresses of the running servers; `folder` holds their data and logs."""

    __test__ = False

    folder: Path
    # As superuser, with CREATE DATABASE.
    postgres_admin_url: str
    # As the application's role, on its own database.
    postgres_url: str
    valkey_url: str
    s3_url: str
    broker_indexes: Iterator[int] = field(
        # 0 is left to the servers' own probes.
        default_factory=lambda: itertools.cycle(range(1, BROKER_INDEXES))
    )

    @contextmanager
    def database(self) -> Iterator[str]:
        """A fresh empty database with pgvector, in SQLAlchemy's form; dropped after."""
        name = f"test_{secrets.token_hex(6)}"
        database, role = sql.Identifier(name), sql.Identifier(ROLE)
        with psycopg.connect(self.postgres_admin_url, autocommit=True) as admin:
            admin.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(database, role))
            try:
                url = self.postgres_url.rpartition("/")[0] + f"/{name}"
                yield url.replace("postgresql://", "postgresql+psycopg://", 1)
            finally:
                admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(database))

    @contextmanager
    def broker(self) -> Iterator[str]:
        """An empty logical database of the broker, flushed before and after."""
        url = self.valkey_url.rpartition("/")[0] + f"/{next(self.broker_indexes)}"
        with closing(redis.Redis.from_url(url)) as client:
            client.flushdb()
            yield url
            client.flushdb()

    @contextmanager
    def bucket(self) -> Iterator[str]:
        """A fresh bucket; removed with its objects."""
        name = f"test-{secrets.token_hex(6)}"
        url = self.s3_url.rpartition("/")[0] + f"/{name}"
        with s3.connected(parse_s3_url(url)) as client:
            client.make_bucket(name)
            yield url
            keys = (o.object_name for o in client.list_objects(name, recursive=True))
            errors = client.remove_objects(name, (DeleteObject(key) for key in keys if key))
            assert not list(errors)
            client.remove_bucket(name)


@contextmanager
def running_services() -> Iterator[TestServices]:
    """Start PostgreSQL, Valkey and SeaweedFS in a temporary folder; stop them at the end."""
    # Not pytest's own folder: under root PostgreSQL's account must be able to enter it.
    folder = Path(tempfile.mkdtemp(prefix="nirvana-tests-"))
    folder.chmod(0o711)
    passwords = Passwords(superuser=secrets.token_hex(12), role=secrets.token_hex(12))
    port = ports.choose_port()
    database = postgres.embedded(folder / "postgres", port=port, passwords=passwords)
    broker = valkey.embedded(
        folder / "valkey", port=ports.choose_port(), password=secrets.token_hex(12)
    )
    objects = seaweedfs.embedded(
        folder / "s3",
        port=ports.choose_port(offsets=seaweedfs.PORT_OFFSETS),
        access_key=secrets.token_hex(8),
        secret_key=secrets.token_hex(16),
    )
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        children = _started(stack, folder, [database, broker, objects])
        stack.enter_context(_stopped_with_us(folder, children))
        for child in children:
            child.wait_ready(threading.Event())
        yield TestServices(
            folder=folder,
            postgres_admin_url=postgres.superuser_url(port, passwords),
            postgres_url=database.url,
            valkey_url=broker.url,
            s3_url=objects.url,
        )


def _started(stack: ExitStack, folder: Path, services: list[Service]) -> list[Child]:
    children = []
    for service in services:
        log_path = folder / f"{service.program.name}.log"
        children.append(Child(service.program, log_path=log_path))
        stack.callback(children[-1].stop)
    return children


@contextmanager
def _stopped_with_us(folder: Path, children: list[Child]) -> Iterator[None]:
    """Guard against a killed test run: our death closes the guard's input, and it cleans up."""
    pids = " ".join(str(child.pid) for child in children)
    script = f'read _; kill -9 {pids}; sleep 1; rm -rf "$@"'
    leaves = [str(path) for child in children for path in child.program.leaves]
    argv = ["sh", "-c", script, "guard", str(folder), *leaves]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as guard:
        try:
            yield
        finally:
            guard.kill()


def without_nirvana_variables() -> list[str]:
    """Names of the NIRVANA_ variables that are set, which no test may see."""
    return [name for name in os.environ if name.startswith("NIRVANA_")]
