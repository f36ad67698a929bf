"""The worker processes of a fleet: the same commands that compose starts."""

from __future__ import annotations

import json
import os
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import psutil
import redis
import urllib3

from fleet.addresses import Addresses
from fleet.errors import NotReadyError
from fleet.home import Secrets
from fleet.program import Program
from fleet.record import FlowerAddress
from fleet.services.valkey import CONNECTION_OPTIONS
from producer.models import MODELS_KEY

PROJECT = Path(__file__).resolve().parent.parent
# Importing torch and loading a model on a busy machine.
READY_TIMEOUT_S = 180.0
# A warm shutdown lets running jobs end; the whole fleet has 15 s.
STOP_GRACE_S = 8.0
FLOWER_TIMEOUT_S = 2.0


def worker_programs(
    addresses: Addresses, flower: FlowerAddress, secrets: Secrets
) -> tuple[Program, ...]:
    """GPU worker, io worker, beat and Flower, in the order in which they start."""
    program = partial(
        Program,
        env=_environment(addresses, flower, secrets),
        # The user's folder: settings may hold relative paths.
        cwd=Path.cwd(),
        ready_timeout_s=READY_TIMEOUT_S,
        stop_grace_s=STOP_GRACE_S,
    )
    command = (sys.executable, "-m", "fleet.cli")
    return (
        program(
            name="gpu",
            argv=(*command, "worker", "gpu"),
            probe=partial(probe_models, addresses.broker_url),
        ),
        program(name="io", argv=(*command, "worker", "io")),
        program(name="beat", argv=(*command, "beat")),
        program(name="flower", argv=(*command, "flower"), probe=lambda _: probe_flower(flower.url)),
    )


def probe_models(broker_url: str, pid: int) -> None:
    """Raise NotReadyError until a GPU worker has announced its model since the process began."""
    try:
        started_at = psutil.Process(pid).create_time()
        with closing(redis.Redis.from_url(broker_url, **CONNECTION_OPTIONS)) as client:
            entries = [json.loads(entry) for entry in client.hvals(MODELS_KEY)]
    except (redis.RedisError, OSError, psutil.NoSuchProcess) as error:
        raise NotReadyError(str(error)) from error
    if not any(entry["seen_at"] >= started_at for entry in entries):
        raise NotReadyError("its model is still loading")


def probe_flower(url: str) -> None:
    """Ask Flower for its health, which needs no password; raises NotReadyError."""
    http = urllib3.PoolManager(timeout=FLOWER_TIMEOUT_S, retries=False)
    try:
        response = http.request("GET", f"{url}/healthcheck")
        if response.status != 200:
            raise NotReadyError(f"HTTP {response.status}")
    except urllib3.exceptions.HTTPError as error:
        raise NotReadyError(str(error)) from error
    finally:
        http.clear()


def _environment(addresses: Addresses, flower: FlowerAddress, secrets: Secrets) -> dict[str, str]:
    """The caller's environment, with the fleet's addresses and passwords in it."""
    search_path = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "NIRVANA_MODEL_PATH": str(PROJECT / "models" / "small"),
        "NIRVANA_WEBHOOK_SECRET": secrets.webhook_secret,
        **os.environ,
        **addresses.environment(),
        "NIRVANA_FLOWER_PORT": flower.url.rpartition(":")[2],
        "NIRVANA_FLOWER_USER": flower.user,
        "NIRVANA_FLOWER_PASSWORD": flower.password,
        "NIRVANA_FLOWER_STATE_PATH": flower.state_path,
        # Also where the project is not installed.
        "PYTHONPATH": os.pathsep.join(search_path),
        "PYTHONUNBUFFERED": "1",
    }
