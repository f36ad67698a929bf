from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet import control
from fleet.errors import (
    NotRunningError,
)
from fleet.home import Home, connection_environment
from fleet.up import running_fleet
from tests.fleet_processes import (
    STOP_LIMIT_S,
    Events,
    children_of,
    everyone,
    fleet_home,
    fleet_process,
    is_over,
    leaders,
    pid_of,
    stub_fleet,
    stubs_process,
    wait_until,
)
from tests.fleet_stubs import forking_worker, no_migration, stub_settings
from tests.service_data import read_marks, write_marks


@pytest.fixture
def home() -> Iterator[Path]:
    with fleet_home() as folder:
        yield folder


def test_a_stop_and_a_start_keep_addresses_and_data(home: Path) -> None:
    with stub_fleet(home) as fleet:
        addresses = fleet.addresses
        write_marks(addresses)
        assert connection_environment(home) == addresses.environment()
        assert (home / "fleet.json").stat().st_mode & 0o777 == 0o600
        assert (home / "secrets.json").stat().st_mode & 0o777 == 0o600
        family = everyone(home)
        assert len(family) > 5
    assert all(is_over(process) for process in family)
    with pytest.raises(NotRunningError):
        connection_environment(home)
    with stub_fleet(home) as fleet:
        assert fleet.addresses.environment() == addresses.environment()
        read_marks(fleet.addresses)


def test_a_start_after_sigkill_of_the_supervisor_finds_no_orphan_and_all_data(home: Path) -> None:
    with fleet_process(home) as supervisor:
        record = Home(home).record()
        assert record is not None
        write_marks(record.addresses)
        orphans, services_and_worker = everyone(home), leaders(home)
        supervisor.kill()
        supervisor.wait()
    assert not any(is_over(process) for process in services_and_worker)
    found = control.status(home)
    assert not found.is_running
    assert set(found.leftovers) == {"postgres", "valkey", "seaweedfs", "gpu"}
    with stub_fleet(home) as fleet:
        assert all(is_over(process) for process in orphans)
        assert fleet.addresses.environment() == record.addresses.environment()
        read_marks(fleet.addresses)


def test_down_cleans_up_after_a_killed_supervisor(
    home: Path, database_url: str, s3_url: str
) -> None:
    with fleet_process(home, database_url=database_url, s3_url=s3_url) as supervisor:
        orphans = everyone(home)
        supervisor.kill()
        supervisor.wait()
    assert set(control.stop(home)) == {"valkey", "gpu"}
    assert all(is_over(process) for process in orphans)
    with pytest.raises(NotRunningError):
        control.stop(home)


def test_each_killed_service_comes_back_on_its_port_and_workers_stay(home: Path) -> None:
    events = Events()
    with running_fleet(
        stub_settings(home), on_event=events, workers=forking_worker, migrate=no_migration
    ) as fleet:
        write_marks(fleet.addresses)
        worker = pid_of(home, "gpu")
        for name in ("valkey", "postgres", "seaweedfs"):
            os.kill(pid_of(home, name), signal.SIGKILL)
            events.wait_for("died", name)
            assert events.wait_for("restarting", name) <= 0.5
            events.wait_for("ready", name)
            assert children_of(home)[name].restarts == 1
            assert children_of(home)[name].state == "ready"
        read_marks(fleet.addresses)
        assert pid_of(home, "gpu") == worker


def test_ctrl_c_and_down_stop_in_order_within_the_limit(
    home: Path, database_url: str, s3_url: str
) -> None:
    for stop in ("SIGINT", "down"):
        with fleet_process(home, database_url=database_url, s3_url=s3_url) as supervisor:
            family, started_at = everyone(home), time.monotonic()
            assert control.status(home).is_running
            if stop == "down":
                assert control.stop(home) == ["valkey", "gpu"]
            else:
                supervisor.send_signal(signal.SIGINT)
                # An impatient user: the second Ctrl-C changes nothing.
                supervisor.send_signal(signal.SIGINT)
            assert supervisor.communicate(timeout=STOP_LIMIT_S)[0] == "STOPPED\n"
            assert supervisor.returncode == 0
            assert time.monotonic() - started_at < STOP_LIMIT_S
            assert all(is_over(process) for process in family)


def test_ctrl_c_during_the_start_stops_what_was_started(
    home: Path, database_url: str, s3_url: str
) -> None:
    given = {"NIRVANA_DATABASE_URL": database_url, "NIRVANA_S3_URL": s3_url}
    with stubs_process(home, given) as starting:
        wait_until(lambda: (home / "fleet.json").exists() or starting.poll() is not None)
        starting.send_signal(signal.SIGINT)
        output = starting.communicate(timeout=STOP_LIMIT_S)[0]
        assert output.removeprefix("READY\n") == "STOPPED\n"
    assert Home(home).record() is None


def test_services_given_by_url_are_not_started(
    home: Path, database_url: str, broker_url: str, s3_url: str
) -> None:
    given = {"database_url": database_url, "broker_url": broker_url, "s3_url": s3_url}
    with stub_fleet(home, **given) as fleet:
        assert list(children_of(home)) == ["gpu"]
        write_marks(fleet.addresses)
        read_marks(fleet.addresses)
    assert not (home / "postgres").exists()
