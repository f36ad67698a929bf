"""From a result's commit to its webhook's first attempt: `python -m benchmarks.webhooks --json`.

A fleet of its own (PostgreSQL, Valkey, io worker, beat) has jobs end at a steady rate, first with
receivers that all answer at once, then with one more that takes every request and never answers,
which gets half of all webhooks. Measured is what the others notice: the time from the commit to
the arrival of the request.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

from cache.database import connect
from fleet.addresses import Addresses
from fleet.home import Secrets
from fleet.program import Program
from fleet.record import FlowerAddress
from fleet.settings import load_settings
from fleet.up import running_fleet
from fleet.workers import worker_programs
from producer.contract import GenerationJob, Status, Webhook
from producer.result import JobResult
from producer.settings import ProducerSettings
from workers.app import Publisher, build_app
from workers.ledger import Ledger
from workers.settings import WorkerSettings

PROGRAMS: Final = {"io", "beat"}
NUM_QUICK: Final = 3
WARM_UP_EVENTS: Final = 10
ARRIVAL_PATIENCE_S: Final = 120.0

CAVEATS: Final = """\
Caveats: one machine for everything, receivers included; no GPU worker and no image: the time begins
with the commit. Receivers are on loopback, without TLS. The one that hangs holds each request until
NIRVANA_WEBHOOK_TIMEOUT_S (15 s) ends it."""


class Arrivals:
    """When each webhook's first request came."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._at_s: dict[str, float] = {}

    def note(self, webhook_id: str) -> None:
        with self._changed:
            self._at_s.setdefault(webhook_id, time.monotonic())
            self._changed.notify_all()

    def wait(self, webhook_id: str) -> float:
        """The moment of the first request, on the monotonic clock."""
        with self._changed:
            came = self._changed.wait_for(lambda: webhook_id in self._at_s, ARRIVAL_PATIENCE_S)
            if not came:
                raise TimeoutError(f"no request for {webhook_id} in {ARRIVAL_PATIENCE_S:g} s")
            return self._at_s[webhook_id]


class Fleet:
    """Ends jobs as a worker does: one transaction, then a nudge."""

    def __init__(self, ledger: Ledger, publisher: Publisher) -> None:
        self._ledger = ledger
        self._publisher = publisher

    def end_job(self, url: str) -> tuple[str, float]:
        """Returns the webhook's id, and when its row was committed."""
        job = GenerationJob(prompt="-", model="small", webhook=Webhook(url=url))
        result = JobResult(job_id=str(uuid.uuid4()), status=Status.CANCELLED, attempt=0)
        delivery_id = self._ledger.end_unclaimed(
            job, result, queue="generate.small", received_at=datetime.now(UTC)
        )
        committed_at_s = time.monotonic()
        assert delivery_id is not None
        self._publisher.nudge_delivery(delivery_id)
        return str(delivery_id), committed_at_s


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _parse(arguments)
    os.environ["NIRVANA_WEBHOOK_ALLOW_PRIVATE_ADDRESSES"] = "true"
    arrivals, is_over = Arrivals(), threading.Event()
    with ExitStack() as stack:
        stack.callback(is_over.set)
        quick = [stack.enter_context(_receiver(arrivals, None)) for _ in range(NUM_QUICK)]
        hanging = stack.enter_context(_receiver(arrivals, is_over))
        fleet = stack.enter_context(_fleet())
        print(f"{options.events} jobs end, {options.rate:g} a second, {os.cpu_count()} cores")
        measure(fleet, arrivals, quick, WARM_UP_EVENTS, options.rate)
        without = measure(fleet, arrivals, quick, options.events, options.rate)
        beside = [url for receiver in quick for url in (receiver, hanging)]
        with_hanging = measure(fleet, arrivals, beside, options.events, options.rate, hanging)
    print(_row("receivers", "p50 ms", "p99 ms", "max ms"))
    print(_row("all answer", *_figures(without)))
    print(_row("one hangs", *_figures(with_hanging)))
    print(CAVEATS)
    if options.json:
        print(json.dumps(_answer(without, with_hanging)))


def measure(
    fleet: Fleet,
    arrivals: Arrivals,
    urls: Sequence[str],
    num_events: int,
    rate: float,
    hanging: str | None = None,
) -> list[float]:
    """Seconds from commit to arrival at those of `urls`, in turn, that do not hang."""
    ended: list[tuple[str, float]] = []
    started_at_s = time.monotonic()
    for number in range(num_events):
        time.sleep(max(0.0, started_at_s + number / rate - time.monotonic()))
        url = urls[number % len(urls)]
        webhook = fleet.end_job(url)
        if url != hanging:
            ended.append(webhook)
    return [arrivals.wait(webhook_id) - at_s for webhook_id, at_s in ended]


@contextmanager
def _fleet() -> Iterator[Fleet]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nirvana-bench-")))
        folder.chmod(0o711)  # PostgreSQL under root runs as another user, who must pass
        settings = load_settings(
            home=folder / "home", flower_port=0, database_url=None, broker_url=None, s3_url=None
        )
        fleet = stack.enter_context(running_fleet(settings, workers=_workers))
        database = connect(fleet.addresses.database_url)
        stack.callback(database.dispose)
        producer = ProducerSettings(broker_url=fleet.addresses.broker_url)
        app = build_app(producer, WorkerSettings())
        stack.callback(app.close)
        ledger = Ledger(database, worker="benchmark", lease_s=8.0, attempts_max=3)
        yield Fleet(ledger, Publisher(app))


def _workers(addresses: Addresses, flower: FlowerAddress, secrets: Secrets) -> list[Program]:
    programs = worker_programs(addresses, flower, secrets)
    return [program for program in programs if program.name in PROGRAMS]


@contextmanager
def _receiver(arrivals: Arrivals, is_over: threading.Event | None) -> Iterator[str]:
    """Receive on a loopback port; with `is_over`, answer nothing before it is set."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            arrivals.note(self.headers["webhook-id"])
            if is_over is not None:
                is_over.wait()
                return
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 256

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _figures(seconds: Sequence[float]) -> tuple[str, str, str]:
    return f"{_p(seconds, 50):.0f}", f"{_p(seconds, 99):.0f}", f"{max(seconds) * 1_000:.0f}"


def _p(seconds: Sequence[float], percentile: int) -> float:
    """That percentile, in milliseconds."""
    return statistics.quantiles(seconds, n=100, method="inclusive")[percentile - 1] * 1_000


def _answer(without: Sequence[float], with_hanging: Sequence[float]) -> dict[str, float]:
    return {
        "first_attempt_ms_p50": round(_p(without, 50), 1),
        "first_attempt_ms_p99": round(_p(without, 99), 1),
        "first_attempt_beside_hanging_ms_p50": round(_p(with_hanging, 50), 1),
        "first_attempt_beside_hanging_ms_p99": round(_p(with_hanging, 99), 1),
    }


def _row(*cells: str) -> str:
    return f"{cells[0]:<12}" + "".join(f"{cell:>10}" for cell in cells[1:])


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.webhooks")
    parser.add_argument("--events", type=int, default=400, help="ends of jobs in each part")
    parser.add_argument("--rate", type=float, default=10.0, help="of them, a second")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
