"""Flower as a person sees it: real jobs of a real fleet, on its page in a real browser."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
from celery import Celery
from playwright.sync_api import Page, expect

from fleet.control import status
from fleet.record import FlowerAddress
from producer.client import Client
from producer.settings import ProducerSettings
from tests.acceptance.browser import browsing
from tests.acceptance.fleet_process import FleetProcess, running, state_folder, wait_until

pytestmark = pytest.mark.timeout(300)

APPLE = "a red apple on a blue background"
LARGE_APPLE = "a large red apple on a blue background"
PENGUIN = "a penguin in the snow"
SECRET = "https://example.com/hooks/secret-path"
LONG = 200  # steps: some seconds
# Where to leave a picture of the page; read before the tests clear the variables.
SCREENSHOT = os.environ.get("NIRVANA_SCREENSHOT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A fleet, its client and its page."""

    fleet: FleetProcess
    client: Client
    flower: FlowerAddress
    page: Page

    def row(self, job_id: str) -> dict[str, str]:
        """What the page of tasks says of a job, by column; empty while it has no row."""
        self.page.goto(f"{self.flower.url}/tasks")
        expect(self.page.locator("#tasks-table tbody tr").first).to_be_visible()
        row = self.page.locator(f"[id='{job_id}'] td")
        columns = self.page.locator(".dataTables_scrollHead th[data-column]")
        names = [th.get_attribute("data-column") or "" for th in columns.all()]
        return dict(zip(names, row.all_inner_texts(), strict=False))

    def row_in(self, state: str, job_id: str) -> dict[str, str]:
        found: dict[str, str] = {}

        def is_in_state() -> bool:
            found.clear()
            found.update(self.row(job_id))
            return found.get("state") == state

        wait_until(is_in_state, 30)
        return found


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    with state_folder() as home, running(home) as fleet:
        record = status(home).record
        assert record is not None
        flower = record.flower
        broker_url = fleet.connection()["NIRVANA_BROKER_URL"]
        settings = ProducerSettings(broker_url=broker_url, client_name="shop")
        with (
            Client(settings) as client,
            browsing(user=flower.user, password=flower.password) as browser,
        ):
            yield Watched(fleet=fleet, client=client, flower=flower, page=browser.new_page())


@pytest.fixture(scope="module")
def missed(watched: Watched) -> str:
    """A job that started from noise, and has ended."""
    handle = watched.client.submit(
        APPLE, user="ada", seed=7, webhook={"url": SECRET}, metadata={"order": "private"}
    )
    handle.wait(timeout_s=60)
    return handle.job_id


def test_a_job_that_succeeded_says_what_was_asked_and_what_came_of_it(
    watched: Watched, missed: str
) -> None:
    row = watched.row_in("SUCCESS", missed)
    assert row["name"] == "nirvana.generate"
    assert row["args"] == f'"{APPLE}" user=ada seed=7'
    assert row["result"] == "miss, ran 50 of 50 steps"
    assert row["worker"].startswith("gpu-small@")
    number, unit = row["runtime"].split()
    assert float(number) > 0
    assert unit in {"s", "ms"}


def test_a_hit_says_what_it_skipped(watched: Watched, missed: str) -> None:
    def is_stored() -> bool:
        return '"num_states": 0' not in watched.fleet.nirvana("cache", "stats", "--json").stdout

    wait_until(is_stored, 20)  # behind the job's back
    handle = watched.client.submit(LARGE_APPLE, user="ada", seed=8)
    result = handle.wait(timeout_s=60)
    assert result.cache is not None
    row = watched.row_in("SUCCESS", handle.job_id)
    k = result.cache.k
    assert row["result"].startswith(f"hit, from step {k}, similarity 0.9")
    assert row["result"].endswith(f"ran {50 - k} of 50 steps")


def test_a_refused_job_says_why_and_no_message_shows_its_webhook(watched: Watched) -> None:
    job_id = str(uuid.uuid4())
    foreign = Celery(broker=watched.fleet.connection()["NIRVANA_BROKER_URL"], set_as_current=False)
    job = {"prompt": PENGUIN, "width": 3, "user": "mira", "webhook": {"url": SECRET}}
    with foreign:
        foreign.send_task("nirvana.generate", [job], task_id=job_id, queue="generate.small")
    row = watched.row_in("FAILURE", job_id)
    assert row["args"] == f'"{PENGUIN}" user=mira'
    assert row["result"].startswith("invalid_job: width: must be 8 to ")
    watched.page.goto(f"{watched.flower.url}/task/{job_id}")
    assert "must be 8 to" in watched.page.inner_text("body")
    assert "secret-path" not in watched.page.content()


def test_a_running_job_shows_its_progress_and_a_cancelled_one_its_end(watched: Watched) -> None:
    handles = watched.client.submit(PENGUIN, seeds=[1, 2, 3], num_inference_steps=LONG, user="tom")
    row = watched.row_in("PROGRESS", handles[0].job_id)
    assert row["result"].startswith("step ")
    assert row["result"].endswith(f" of {LONG}")
    watched.client.cancel(handles[0].job_id)
    row = watched.row_in("REVOKED", handles[0].job_id)
    assert row["result"] == "cancelled"
    if SCREENSHOT:
        watched.row_in("PROGRESS", handles[1].job_id)
        watched.page.screenshot(path=SCREENSHOT)
    watched.client.cancel(handles[1].job_id)
    watched.client.cancel(handles[2].job_id)
    watched.row_in("REVOKED", handles[2].job_id)


def test_the_page_of_a_job_names_its_sender(watched: Watched, missed: str) -> None:
    watched.page.goto(f"{watched.flower.url}/task/{missed}")
    text = watched.page.inner_text("#task-page")
    assert "shop@" in text
    assert "private" not in text
    assert "secret-path" not in watched.page.content()


def test_the_jobs_are_there_after_a_restart(watched: Watched, missed: str) -> None:
    before = watched.row_in("SUCCESS", missed)
    pid = watched.fleet.pid("flower")
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: watched.fleet.is_ready() and watched.fleet.pid("flower") != pid, 60)
    assert watched.row_in("SUCCESS", missed) == before


@pytest.mark.parametrize("path", ["/tasks", "/workers", "/api/tasks", "/api/workers", "/metrics"])
def test_nothing_is_shown_without_the_password(watched: Watched, path: str) -> None:
    url, account = watched.flower.url + path, (watched.flower.user, watched.flower.password)
    assert httpx.get(url, trust_env=False).status_code == 401
    wrong = httpx.get(url, auth=(watched.flower.user, "guessed"), trust_env=False)
    assert wrong.status_code == 401
    assert httpx.get(url, auth=account, trust_env=False).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/api/worker/shutdown/io@x", "/api/task/revoke/x", "/api/task/send-task/nirvana.cancel"],
)
def test_whoever_may_watch_changes_nothing(watched: Watched, path: str) -> None:
    account = (watched.flower.user, watched.flower.password)
    answer = httpx.post(watched.flower.url + path, auth=account, trust_env=False)
    assert answer.status_code == 403
    assert "Read only" in answer.text
