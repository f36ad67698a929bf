"""One terminal runs `nirvana up`, another submits: what a newcomer does first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fleet.control import status
from tests.acceptance.fleet_process import FleetProcess, running, state_folder, wait_until

pytestmark = pytest.mark.timeout(300)

APPLE = "a red apple on a blue background"
LARGE_APPLE = "a large red apple on a blue background"
GLOSSY_APPLE = "a large glossy red apple on a blue background"


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with state_folder() as folder:
        yield folder


def submit(fleet: FleetProcess, prompt: str, *options: str) -> dict[str, Any]:
    done = fleet.nirvana("submit", prompt, "--user", "ada", "--wait", "--json", *options)
    assert done.returncode == 0, done.stderr
    (job,) = json.loads(done.stdout.splitlines()[-1])["jobs"]
    assert isinstance(job, dict)
    return job


def wait_until_stored(fleet: FleetProcess) -> None:
    """States are stored behind the job's back."""

    def has_states() -> bool:
        done = fleet.nirvana("cache", "stats", "--json")
        return bool(json.loads(done.stdout.splitlines()[-1])["num_states"])

    wait_until(has_states, 20)


def test_a_second_terminal_finds_the_fleet_and_the_second_prompt_is_a_hit(
    home: Path, tmp_path: Path
) -> None:
    with running(home) as fleet:
        first = submit(fleet, APPLE, "--out", str(tmp_path / "apple.png"))
        assert (tmp_path / "apple.png").read_bytes().startswith(b"\x89PNG")
        assert (first["cache"]["outcome"], first["steps"]["run"]) == ("miss", 50)
        wait_until_stored(fleet)
        second = submit(fleet, LARGE_APPLE)
        assert second["cache"]["outcome"] == "hit"
        assert second["cache"]["source_job_id"] == first["job_id"]
        assert second["steps"]["run"] == 50 - second["cache"]["k"] < 50
        assert_flower_asks_for_its_password(fleet)
        assert fleet.interrupt() < 15
    assert status(home).record is None
    with running(home) as fleet:
        again = fleet.nirvana("status", first["job_id"], "--json")
        assert json.loads(again.stdout.splitlines()[-1])["status"] == "succeeded"
        assert submit(fleet, GLOSSY_APPLE)["cache"]["outcome"] == "hit"


def assert_flower_asks_for_its_password(fleet: FleetProcess) -> None:
    record = status(fleet.home).record
    assert record is not None
    flower = record.flower
    assert httpx.get(f"{flower.url}/tasks", trust_env=False).status_code == 401
    page = httpx.get(f"{flower.url}/tasks", auth=(flower.user, flower.password), trust_env=False)
    assert page.status_code == 200
