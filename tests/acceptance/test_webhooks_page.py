"""The receivers of docs/webhooks.md, as they stand there, and what the page says of retries."""

from __future__ import annotations

import base64
import os
import re
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from producer.contract import EventType, Status
from producer.result import JobResult
from workers.delivery.body import event_body
from workers.delivery.network import Network
from workers.delivery.retry import RETRY_DELAYS_S
from workers.delivery.webhooks import Attempt, Message, send

PROJECT = Path(__file__).resolve().parents[2]
PAGE = (PROJECT / "docs" / "webhooks.md").read_text()
NODE_MODULES = Path(__file__).parent / "node" / "node_modules"
SECRET = "whsec_" + base64.b64encode(b"p" * 32).decode()
OTHER_SECRET = "whsec_" + base64.b64encode(b"o" * 32).decode()


@pytest.mark.parametrize("language", ["python", "javascript"])
def test_the_pages_receiver_takes_our_webhooks_once_and_no_others(
    language: str, tmp_path: Path
) -> None:
    job_id = str(uuid.uuid4())
    with page_receiver(language, tmp_path) as (url, process):
        webhook_id = str(uuid.uuid4())
        forged = sent(url, job_id, webhook_id, OTHER_SECRET)
        first = sent(url, job_id, webhook_id, SECRET)
        again = sent(url, job_id, webhook_id, OTHER_SECRET, SECRET)
        process.terminate()
        printed, _ = process.communicate(timeout=10)
    assert [attempt.status_code for attempt in (forged, first, again)] == [400, 204, 204]
    assert printed.split() == ["job.succeeded", job_id, "succeeded"]


def test_the_page_tells_the_retry_table() -> None:
    units_s = {"s": 1, "min": 60, "h": 3_600}
    (table,) = re.findall(r"^`(0 s, .*)`$", PAGE, re.MULTILINE)
    delays = [delay.split() for delay in table.split(", ")]
    assert tuple(int(n) * units_s[unit] for n, unit in delays) == RETRY_DELAYS_S


def sent(url: str, job_id: str, webhook_id: str, *secrets: str) -> Attempt:
    now = datetime.now(UTC)
    result = JobResult(job_id=job_id, status=Status.SUCCEEDED, attempt=1)
    body = event_body(EventType.SUCCEEDED, result, now=now)
    message = Message(webhook_id=webhook_id, url=url, secrets=secrets, body=body)
    return send(message, network=Network(allow_private_addresses=True), timeout_s=10, now=now)


@contextmanager
def page_receiver(language: str, folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run the page's block of that language on a free port."""
    (code,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    script = folder / ("receive.mjs" if language == "javascript" else "receive.py")
    script.write_text(code)
    assert NODE_MODULES.exists(), "the JavaScript clients are missing: run `make node`"
    (folder / "node_modules").symlink_to(NODE_MODULES)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    env = {"PORT": str(port), "WEBHOOK_SECRET": SECRET, "PYTHONPATH": str(PROJECT)}
    program = "node" if language == "javascript" else sys.executable
    with subprocess.Popen(
        [program, str(script)],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            wait_until_listening(port, process)
            yield f"http://127.0.0.1:{port}/hooks/nirvana", process
        finally:
            process.kill()


def wait_until_listening(port: int, process: subprocess.Popen[str]) -> None:
    """Poll the port: a program of another language tells nobody."""
    give_up_at = time.monotonic() + 20
    while time.monotonic() < give_up_at and process.poll() is None:
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise AssertionError("the receiver does not listen")
