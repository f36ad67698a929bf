"""Clients that know nothing of us but docs/wire.md: another language, and plain Celery."""

from __future__ import annotations

import base64
import json
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis
import standardwebhooks
from celery import Celery

from producer.verification import verify
from tests.acceptance.fleet_process import (
    FleetProcess,
    Receiver,
    receiving,
    running,
    state_folder,
    wait_until,
)

pytestmark = pytest.mark.timeout(300)

NODE = Path(__file__).parent / "node"
QUEUE = "generate.small"
SECRET = "whsec_" + base64.b64encode(b"f" * 32).decode()
JOB = {"prompt": "a red apple on a blue background", "num_inference_steps": 5, "seed": 7}


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as server:
        yield server


@pytest.fixture(scope="module")
def fleet() -> Iterator[FleetProcess]:
    settings = {
        "NIRVANA_WEBHOOK_ALLOW_PRIVATE_ADDRESSES": "true",
        "NIRVANA_WEBHOOK_SECRET": SECRET,
    }
    with state_folder() as home, running(home, **settings) as process:
        yield process


def node(script: str, *arguments: str, given: object) -> subprocess.CompletedProcess[str]:
    assert (NODE / "node_modules").exists(), "the JavaScript clients are missing: run `make node`"
    return subprocess.run(
        ["node", script, *arguments],
        cwd=NODE,
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def webhook_of(receiver: Receiver, job_id: str) -> tuple[dict[str, str], bytes]:
    """Headers and body of the one webhook of that job, awaited."""
    wait_until(lambda: bool(receiver.of(job_id)), 15)
    (number,) = (n for n, e in enumerate(receiver.events) if e["data"]["job_id"] == job_id)
    return receiver.requests[number]


def check_webhook(headers: dict[str, str], body: bytes, secret: str) -> dict[str, Any]:
    """Verify with both reference libraries and our own, and refuse what was changed."""
    event = standardwebhooks.Webhook(secret).verify(body, headers)
    given = {"secret": secret, "headers": headers, "body": body.decode()}
    in_node = node("verify.mjs", given=given)
    assert in_node.returncode == 0, in_node.stderr
    assert json.loads(in_node.stdout) == event
    assert verify(body, headers, secret=secret).data == event["data"]
    forged = node("verify.mjs", given={**given, "body": body.decode().replace("succeeded", "done")})
    assert (forged.returncode, "WebhookVerificationError" in forged.stderr) == (1, True)
    assert event["type"] == "job.succeeded"
    data: dict[str, Any] = event["data"]
    return data


def test_a_job_from_javascript_completes_and_its_webhook_verifies(
    fleet: FleetProcess, receiver: Receiver
) -> None:
    added = fleet.nirvana("webhooks", "endpoints", "add", "shop", "--url", receiver.url, "--json")
    assert added.returncode == 0, added.stderr
    secret = json.loads(added.stdout.splitlines()[-1])["secret"]
    job = {**JOB, "webhook": {"endpoint": "shop"}, "metadata": {"order": "größer"}}
    sent = node("send_job.mjs", fleet.connection()["NIRVANA_BROKER_URL"], QUEUE, given=job)
    assert sent.returncode == 0, sent.stderr
    answer = json.loads(sent.stdout.splitlines()[-1])
    assert (answer["result"]["status"], answer["result"]["seed"]) == ("succeeded", 7)
    data = check_webhook(*webhook_of(receiver, answer["id"]), secret)
    assert (data["job_id"], data["metadata"]) == (answer["id"], {"order": "größer"})
    assert data == answer["result"]


def test_a_job_from_plain_celery_completes_and_its_webhook_verifies(
    fleet: FleetProcess, receiver: Receiver
) -> None:
    url = fleet.connection()["NIRVANA_BROKER_URL"]
    with closing(Celery("somebody", broker=url, backend=url, set_as_current=False)) as app:
        job = {**JOB, "webhook": {"url": receiver.url}}
        result = app.send_task("nirvana.generate", args=[job], queue=QUEUE).get(timeout=60)
    assert result["status"] == "succeeded"
    assert check_webhook(*webhook_of(receiver, result["job_id"]), SECRET) == result


def test_what_is_no_message_is_kept_and_costs_no_worker(
    fleet: FleetProcess, receiver: Receiver
) -> None:
    url = fleet.connection()["NIRVANA_BROKER_URL"]
    pids = {name: fleet.pid(name) for name in ("io", "gpu")}
    queues = [QUEUE, f"{QUEUE}.0", "io", "maintenance"]
    with redis.Redis.from_url(url) as broker:
        for queue in queues:
            broker.lpush(queue, b"no message", b'{"task": "nirvana.generate"}', b"[1]")
        wait_until(lambda: not any(broker.llen(queue) for queue in queues), 20)
    with closing(Celery("somebody", broker=url, backend=url, set_as_current=False)) as app:
        result = app.send_task("nirvana.generate", args=[JOB], queue=QUEUE).get(timeout=60)
    assert result["status"] == "succeeded"
    assert {name: fleet.pid(name) for name in pids} == pids
    listed = json.loads(fleet.nirvana("dead", "list", "--json").stdout.splitlines()[-1])
    assert listed["kept"] == 3 * len(queues)
    assert {letter["queue"] for letter in listed["letters"]} == set(queues)
    dropped = fleet.nirvana("dead", "drop", "--all", "--json")
    assert len(json.loads(dropped.stdout.splitlines()[-1])["dropped"]) == 3 * len(queues)


def test_a_task_id_that_is_no_uuid_is_told_to_its_client(fleet: FleetProcess) -> None:
    url = fleet.connection()["NIRVANA_BROKER_URL"]
    task_id = f"order-{uuid.uuid4()}"
    with closing(Celery("somebody", broker=url, backend=url, set_as_current=False)) as app:
        handle = app.send_task("nirvana.generate", args=[JOB], queue=QUEUE, task_id=task_id)
        with pytest.raises(Exception, match="invalid_job: the task id must be a UUID"):
            handle.get(timeout=20)
