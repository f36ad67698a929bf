"""One eviction of a share of all states, beside lookups at a steady pace."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
import psutil
from sqlalchemy import Engine, text

from benchmarks.eviction import rows
from cache.database import transaction
from cache.eviction import EvictionReport, evict
from cache.objects import STATES_PREFIX, ObjectStore, S3Objects
from cache.policies import choose_victims
from cache.removal import batches, delete_doomed_objects
from cache.settings import CacheSettings, Policy

PROJECT: Final = Path(__file__).resolve().parents[2]
WRITERS: Final = 8
FIRST_LOOKUP_TIMEOUT_S: Final = 120.0
KEYS: Final = 5_000  # of one query
S3_SERVER: Final = "weed"  # the name of its process

_LIVE: Final = text("SELECT count(*) AS num, sum(num_bytes) AS num_bytes FROM state_uses")
_KEYS_OF: Final = text("SELECT key FROM cached_states WHERE id = ANY(:ids)")
_KNOWN: Final = text("SELECT key FROM cached_states WHERE key = ANY(:keys)")
_DOOMED: Final = text("SELECT key FROM doomed_objects")
_SAMPLE: Final = text("""
    SELECT s.key
      FROM cached_states s
     WHERE s.id = ANY(ARRAY(
           SELECT CAST(random() * (SELECT max(id) FROM cached_states) AS bigint)
             FROM generate_series(1, :num)))
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """An eviction, the lookups before and during it, and what it left."""

    report: EvictionReport
    seconds: float
    #: Of these, until all rows were gone and the first objects were to be deleted.
    row_seconds: float
    #: Of all cores, that the object server took meanwhile.
    s3_cpu_seconds: float
    idle_ms: list[float]
    during_ms: list[float]
    #: Objects whose rows are there, and which are gone.
    lost_objects: int
    #: Objects without a row, and not doomed.
    leaked_objects: int


class _Watched(S3Objects):
    """Notes when the first objects are deleted."""

    first_delete_at: float | None = None

    def delete_many(self, keys: Iterable[str]) -> dict[str, str]:
        if self.first_delete_at is None:
            self.first_delete_at = time.monotonic()
        return super().delete_many(keys)


def prepare(engine: Engine, objects: ObjectStore, *, num_victims: int, num_kept: int) -> None:
    """Write the objects that are missing: those of the next victims and of some other states.

    What an earlier run left doomed is deleted before.
    """
    delete_doomed_objects(engine, objects, now=datetime.now(UTC))
    with transaction(engine) as connection:
        worst = connection.execute(
            choose_victims(Policy.LCBFU_AGED), {"namespace": rows.NAMESPACE, "limit": num_victims}
        )
        wanted = set(connection.execute(_KEYS_OF, {"ids": [row.id for row in worst]}).scalars())
        wanted.update(connection.execute(_SAMPLE, {"num": num_kept}).scalars())
    data = np.random.default_rng(0).bytes(rows.STATE_BYTES)
    missing = sorted(wanted - _listed(objects))
    with ThreadPoolExecutor(WRITERS) as pool:
        for done in pool.map(lambda key: objects.put(key, data), missing):
            assert done is None


def measure(
    engine: Engine,
    patient: ObjectStore,
    settings: CacheSettings,
    *,
    share: float,
    idle_s: float,
    rate: float,
) -> Measured:
    """Lower the capacity by a share of what is held, and evict; `patient` is for the comparison."""
    with transaction(engine) as connection:
        live = connection.execute(_LIVE).one()
    capacity_bytes = int(live.num_bytes) - round(live.num * share) * rows.STATE_BYTES
    chosen = settings.model_copy(update={"cache_capacity_bytes": capacity_bytes})
    before = _listed(patient)
    objects = _Watched.from_url(settings.s3_url.get_secret_value())
    with closing(objects), _lookups(settings.database_url.get_secret_value(), rate) as lookups:
        lookups.wait_first()
        time.sleep(idle_s)
        cpu_before = _s3_cpu_seconds()
        began = time.monotonic()
        report = evict(engine, objects, chosen, now=datetime.now(UTC))
        ended = time.monotonic()
        s3_cpu_seconds = _s3_cpu_seconds() - cpu_before
    left = _listed(patient)
    return Measured(
        report=report,
        seconds=ended - began,
        row_seconds=(objects.first_delete_at or ended) - began,
        s3_cpu_seconds=s3_cpu_seconds,
        idle_ms=lookups.between(0, began),
        during_ms=lookups.between(began, ended),
        lost_objects=len(_with_rows(engine, before - left)),
        leaked_objects=len(left - _with_rows(engine, left) - _doomed(engine)),
    )


def _s3_cpu_seconds() -> float:
    """So far, of the SeaweedFS that this process has started."""
    total = 0.0
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # one that has just ended
            if child.name() == S3_SERVER:
                total += child.cpu_times().user + child.cpu_times().system
    return total


class _Lookups:
    """Collects what the client prints."""

    def __init__(self, client: subprocess.Popen[str]) -> None:
        self._client = client
        self._timed: list[tuple[float, float]] = []
        self._is_running = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_first(self) -> None:
        """Return when the client looks up."""
        if not self._is_running.wait(FIRST_LOOKUP_TIMEOUT_S) or self._client.poll() is not None:
            raise TimeoutError("the client of the lookups does not run")

    def between(self, began: float, ended: float) -> list[float]:
        """Milliseconds of the lookups that began then."""
        return [ms for at, ms in self._timed if began <= at < ended]

    def end(self) -> None:
        """Let the client end, and read the rest."""
        assert self._client.stdin is not None
        self._client.stdin.close()
        self._reader.join()
        self._client.wait()

    def _read(self) -> None:
        assert self._client.stdout is not None
        for line in self._client.stdout:
            at, ms = line.split()
            self._timed.append((float(at), float(ms)))
            self._is_running.set()
        self._is_running.set()


@contextmanager
def _lookups(database_url: str, rate: float) -> Iterator[_Lookups]:
    argv = [sys.executable, "-m", "benchmarks.eviction.lookups", f"--rate={rate}"]
    with subprocess.Popen(
        argv, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdin is not None
        client.stdin.write(f"{database_url}\n")
        client.stdin.flush()
        lookups = _Lookups(client)
        try:
            yield lookups
        finally:
            lookups.end()


def _listed(objects: ObjectStore) -> set[str]:
    return {listed.key for listed in objects.list(STATES_PREFIX)}


def _with_rows(engine: Engine, keys: set[str]) -> set[str]:
    with transaction(engine) as connection:
        return {
            key
            for some in batches(sorted(keys), KEYS)
            for key in connection.execute(_KNOWN, {"keys": some}).scalars()
        }


def _doomed(engine: Engine) -> set[str]:
    with transaction(engine) as connection:
        return set(connection.execute(_DOOMED).scalars())
