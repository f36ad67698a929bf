"""Every submitted job ends, once, whatever is killed meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from producer.client import Client
from producer.contract import Status
from producer.handle import JobHandle
from producer.settings import ProducerSettings
from tests.acceptance.fleet_process import (
    PROJECT,
    FleetProcess,
    Receiver,
    receiving,
    running,
    state_folder,
    wait_until,
)

pytestmark = pytest.mark.timeout(300)

LONG = 200  # steps: a few seconds of the small model
LEASE_S = 4.0


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as server:
        yield server


@pytest.fixture(scope="module")
def fleet() -> Iterator[FleetProcess]:
    settings = {
        "NIRVANA_WEBHOOK_ALLOW_PRIVATE_ADDRESSES": "true",
        "NIRVANA_LEASE_S": str(LEASE_S),
        "NIRVANA_RESEND_GRACE_S": "3",
    }
    with state_folder() as home, running(home, **settings) as process:
        yield process


@pytest.fixture
def client(fleet: FleetProcess) -> Iterator[Client]:
    url = fleet.connection()["NIRVANA_BROKER_URL"]
    with Client(ProducerSettings(broker_url=url)) as connected:
        yield connected


def submit_long(client: Client, receiver: Receiver, number: int = 0) -> JobHandle:
    return client.submit(
        "a fox in the snow",
        num_inference_steps=LONG,
        seed=number,
        cache="bypass",
        webhook={"url": receiver.url},
    )


def wait_until_in_the_middle(client: Client, handle: JobHandle) -> None:
    def has_begun() -> bool:
        progress = client.status(handle.job_id).progress
        return progress is not None and progress.steps_done > 0

    wait_until(has_begun, 30)


def test_a_killed_gpu_worker_costs_a_job_seconds(
    fleet: FleetProcess, client: Client, receiver: Receiver
) -> None:
    handle = submit_long(client, receiver)
    wait_until_in_the_middle(client, handle)
    fleet.kill("gpu")
    killed_at = time.monotonic()
    result = handle.wait(60)
    assert time.monotonic() - killed_at < 30
    assert (result.status, result.attempt) == (Status.SUCCEEDED, 2)
    wait_until(lambda: len(receiver.of(handle.job_id)) == 1, 15)
    # The broker still holds the killed worker's message; the restarted worker finds the job done.
    wait_until(fleet.is_ready, 60)
    assert [event["type"] for event in receiver.of(handle.job_id)] == ["job.succeeded"]


def test_a_frozen_worker_changes_nothing_when_it_wakes(
    fleet: FleetProcess, client: Client, receiver: Receiver
) -> None:
    handle = submit_long(client, receiver)
    wait_until_in_the_middle(client, handle)
    frozen = fleet.pid("gpu")
    os.kill(frozen, signal.SIGSTOP)
    try:
        with second_gpu_worker(fleet):
            result = handle.wait(90)
            assert (result.status, result.attempt) == (Status.SUCCEEDED, 2)
            wait_until(lambda: len(receiver.of(handle.job_id)) == 1, 15)
            os.kill(frozen, signal.SIGCONT)
            # It is awake when it has done a job of its own again.
            others = [submit_long(client, receiver, number) for number in range(1, 5)]
            assert {other.wait(120).status for other in others} == {Status.SUCCEEDED}
    finally:
        os.kill(frozen, signal.SIGCONT)
    assert client.result(handle.job_id) == result
    assert len(receiver.of(handle.job_id)) == 1


@pytest.mark.parametrize("service", ["valkey", "postgres", "seaweedfs"])
def test_a_killed_service_is_restarted_and_every_job_ends(
    fleet: FleetProcess, client: Client, receiver: Receiver, service: str
) -> None:
    handles = [submit_long(client, receiver, number) for number in range(4)]
    wait_until_in_the_middle(client, handles[0])
    fleet.kill(service)
    for handle in handles:
        assert handle.wait(120).status is Status.SUCCEEDED
    wait_until(lambda: all(len(receiver.of(h.job_id)) == 1 for h in handles), 30)
    wait_until(fleet.is_ready, 60)


class second_gpu_worker:  # noqa: N801 - read as a phrase
    """Another GPU worker of the same fleet."""

    def __init__(self, fleet: FleetProcess) -> None:
        path = str(PROJECT / "models" / "small")
        env = {**fleet.env, **fleet.connection(), "NIRVANA_MODEL_PATH": path}
        self._log = (Path(fleet.home).parent / "second-gpu.log").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fleet.cli", "worker", "gpu"],
            env=env,
            cwd=PROJECT,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
