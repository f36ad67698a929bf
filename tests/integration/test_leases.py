"""Leases of a process that has two attempts of one job: a frozen one, and the one it took over."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime

import pytest
from sqlalchemy import Engine, text

from cache.database import connect
from migrations.migrate import upgrade
from producer.contract import GenerationJob
from workers.leases import LeaseKeeper
from workers.ledger import Claim, Ledger


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    upgrade(database_url)
    connected = connect(database_url)
    yield connected
    connected.dispose()


def let_leases_lapse(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET lease_expires_at = now() - interval '1 second'"))


def test_an_attempt_that_was_lost_stops_alone_and_its_successor_keeps_its_lease(
    engine: Engine,
) -> None:
    ledger = Ledger(engine, worker="one", lease_s=60, attempts_max=3)
    job = GenerationJob(prompt="a fox", model="small")
    job_id = uuid.uuid4()

    def claim() -> Claim:
        return ledger.claim(job_id, job, queue="q", received_at=datetime.now(UTC))

    stopped: list[Claim] = []
    told = threading.Event()

    def stop(lost: Claim) -> None:
        stopped.append(lost)
        told.set()

    first = claim()
    let_leases_lapse(engine)
    second = claim()
    keeper = closing(LeaseKeeper(ledger, heartbeat_s=0.02, on_stop=stop))
    with keeper as leases, leases.hold(second):
        with leases.hold(first):
            assert told.wait(10)
        let_leases_lapse(engine)  # and the next heartbeat renews it
        give_up_at = time.monotonic() + 10
        while ledger.lapsed(limit=1):
            assert time.monotonic() < give_up_at
            time.sleep(0.01)
    assert {each.attempt for each in stopped} == {first.attempt}
