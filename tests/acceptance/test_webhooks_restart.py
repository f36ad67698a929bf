"""Webhooks outlive every process of the fleet, killed while their receiver keeps them waiting."""

from __future__ import annotations

import base64
import json
import os
import signal
from typing import Any

import pytest

from producer.client import Client
from producer.settings import ProducerSettings
from producer.verification import verify
from tests.acceptance.fleet_process import FleetProcess, running, state_folder, wait_until
from tests.unit.delivery.receiver import receiver, status

pytestmark = pytest.mark.timeout(300)

NUM_JOBS = 4
SECRET = "whsec_" + base64.b64encode(b"r" * 32).decode()
SETTINGS = {
    "NIRVANA_WEBHOOK_ALLOW_PRIVATE_ADDRESSES": "true",
    "NIRVANA_WEBHOOK_SECRET": SECRET,
    # Short, for the leases of killed senders are made from it.
    "NIRVANA_WEBHOOK_TIMEOUT_S": "5",
}


def test_no_webhook_is_lost_and_none_gets_a_second_id_over_kill_9_of_every_process() -> None:
    silent = ["silence"] * NUM_JOBS
    with state_folder() as home, receiver(*silent, status(200)) as server:
        with running(home, **SETTINGS) as fleet:
            job_ids = run_jobs(fleet, server.url())
            for _ in job_ids:
                server.arrived.get(timeout=30)
            killed = kill_everything(fleet)
        first_ids = {request.headers["webhook-id"] for request in server.requests}
        assert len(first_ids) == NUM_JOBS
        with running(home, **SETTINGS) as fleet:
            # The record of the killed fleet still calls its own processes ready.
            wait_until(lambda: fleet.is_ready() and killed.isdisjoint(pids_of(fleet)), 90)
            wait_until(lambda: all_delivered(fleet), 60)
            deliveries = listed(fleet)
    assert {delivery["job_id"] for delivery in deliveries} == set(job_ids)
    assert {delivery["webhook_id"] for delivery in deliveries} == first_ids
    assert {request.headers["webhook-id"] for request in server.requests} == first_ids
    events = [verify(r.body, r.headers, secret=SECRET) for r in server.requests[NUM_JOBS:]]
    assert sorted(event.result.job_id for event in events) == sorted(job_ids)


def run_jobs(fleet: FleetProcess, url: str) -> list[str]:
    with Client(ProducerSettings(broker_url=fleet.connection()["NIRVANA_BROKER_URL"])) as client:
        handles = [
            client.submit("a red apple", num_inference_steps=5, seed=seed, webhook={"url": url})
            for seed in range(NUM_JOBS)
        ]
        for handle in handles:
            handle.wait(60)
    return [handle.job_id for handle in handles]


def kill_everything(fleet: FleetProcess) -> set[int]:
    """SIGKILL the supervisor first, that it starts nobody again, and then all the others."""
    pids = pids_of(fleet)
    fleet.process.kill()
    fleet.process.wait()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return pids


def pids_of(fleet: FleetProcess) -> set[int]:
    return {child.process.pid for child in fleet.children().values() if child.process is not None}


def listed(fleet: FleetProcess) -> list[dict[str, Any]]:
    shown = fleet.nirvana("webhooks", "list", "--json")
    assert shown.returncode == 0, shown.stderr
    deliveries: list[dict[str, Any]] = json.loads(shown.stdout.splitlines()[-1])["deliveries"]
    return deliveries


def all_delivered(fleet: FleetProcess) -> bool:
    return {delivery["status"] for delivery in listed(fleet)} == {"delivered"}
