"""Runs an arm: a fleet of its own, from cold, and the log's jobs one at a time.

A run that was killed goes on: an arm's rows stand in its file, its cache in its fleet's folder, and
a job that is sent again under the same id is the same job.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from sqlalchemy import Engine, text

from benchmarks.savings.arms import Arm
from benchmarks.savings.rows import Row, Rows
from benchmarks.savings.workload import Request
from cache.database import connect, transaction
from fleet.addresses import Addresses
from fleet.home import Secrets
from fleet.program import Program
from fleet.record import FlowerAddress
from fleet.settings import load_settings
from fleet.up import running_fleet
from fleet.workers import worker_programs
from producer.client import Client
from producer.contract import CacheMode
from producer.errors import UnknownJob
from producer.result import JobResult
from producer.settings import ProducerSettings

JOB_TIMEOUT_S: Final = 600.0
WARM_UP: Final = "a picture that nobody asked for"
_IDS: Final = uuid.UUID("6f0a4d2e-3c55-4f7d-9d5b-0c8f3a1e7b42")  # any: ids are made under it

_SECONDS = text("""
    SELECT extract(epoch FROM finished_at - submitted_at)
      FROM jobs
     WHERE id = :id
""")

Jobs = Sequence[tuple[int, Request]]  # with their rows
OnRow = Callable[[Row], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """Where an arm's jobs are sent, and read."""

    arm: Arm
    rows: Rows
    client: Client
    database: Engine
    row_of: Mapping[str, int]  #: by job id


def run_arm(
    arm: Arm, jobs: Jobs, *, folder: Path, settings: Mapping[str, str], on_row: OnRow
) -> None:
    """Serve the jobs that have no row yet; raises FleetError, or ProducerError for a failed job."""
    rows, row_of = Rows(folder, arm.name), {str(id_of(arm, number)): number for number, _ in jobs}
    done = {row.row for row in rows.read()}
    left = [(number, request) for number, request in jobs if number not in done]
    if not left:
        return
    home = folder / "homes" / arm.name
    with _fleet(home, settings) as (client, database):
        desk = Desk(arm=arm, rows=rows, client=client, database=database, row_of=row_of)
        client.submit(WARM_UP, seed=0, cache=CacheMode.BYPASS.value).wait(JOB_TIMEOUT_S)
        for number, request in left:
            row = _serve(desk, number, request)
            rows.append(row)
            on_row(row)
    shutil.rmtree(home)


@contextmanager
def _fleet(home: Path, settings: Mapping[str, str]) -> Iterator[tuple[Client, Engine]]:
    """Start the arm's fleet; nothing of it runs afterwards."""

    def programs(
        addresses: Addresses, flower: FlowerAddress, secrets: Secrets
    ) -> Sequence[Program]:
        # Flower would take its part of a small machine, and nobody looks.
        return [
            replace(program, env=_with_settings(program.env, settings))
            for program in worker_programs(addresses, flower, secrets)
            if program.name != "flower"
        ]

    # The run's own services, whatever this shell is set up for.
    own = load_settings(home=home, flower_port=0, database_url=None, broker_url=None, s3_url=None)
    with running_fleet(own, workers=programs) as fleet:
        database = connect(fleet.addresses.database_url, pool_size=1)
        try:
            with Client(ProducerSettings(broker_url=fleet.addresses.broker_url)) as client:
                yield client, database
        finally:
            database.dispose()


def _with_settings(environment: Mapping[str, str], settings: Mapping[str, str]) -> dict[str, str]:
    """Leave out what the shell says of the cache: the arm says it all."""
    kept = {
        name: value for name, value in environment.items() if not name.startswith("NIRVANA_CACHE_")
    }
    return {**kept, **settings}


def _serve(desk: Desk, number: int, request: Request) -> Row:
    job_id = id_of(desk.arm, number)
    was_sent = _is_known(desk.client, job_id)
    handle = desk.client.submit(
        request.prompt,
        user=request.user,
        seed=request.seed,
        cache=desk.arm.cache.value,
        metadata={"row": str(number)},
        job_id=job_id,
    )
    result = handle.wait(JOB_TIMEOUT_S)
    picture = desk.rows.write_picture(number, desk.client.image(result))
    # A run that was killed meanwhile is no part of how long the job took.
    seconds = None if was_sent else _seconds(desk.database, job_id)
    return _row(number, result, picture=picture, seconds=seconds, row_of=desk.row_of)


def id_of(arm: Arm, number: int) -> uuid.UUID:
    """The id of an arm's job."""
    return uuid.uuid5(_IDS, f"{arm.name}/{number}")


def _is_known(client: Client, job_id: uuid.UUID) -> bool:
    try:
        client.status(job_id)
    except UnknownJob:
        return False
    return True


def _seconds(database: Engine, job_id: uuid.UUID) -> float:
    with transaction(database) as connection:
        return float(connection.execute(_SECONDS, {"id": job_id}).scalar_one())


def _row(
    number: int,
    result: JobResult,
    *,
    picture: str,
    seconds: float | None,
    row_of: Mapping[str, int],
) -> Row:
    assert result.cache is not None, "a job that succeeded says what the cache did"
    assert result.steps is not None
    assert result.timings is not None
    timings = result.timings.model_dump(exclude_none=True)
    return Row(
        row=number,
        outcome=result.cache.outcome.value,
        steps_asked=result.steps.asked,
        steps_run=result.steps.run,
        picture=picture,
        seconds=seconds,
        timings={name: round(value, 5) for name, value in timings.items()},
        similarity=result.cache.similarity,
        source_row=row_of.get(result.cache.source_job_id or ""),
        reason=result.cache.reason,
    )
