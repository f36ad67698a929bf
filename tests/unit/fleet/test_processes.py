from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from fleet import ports
from fleet.errors import FleetError
from fleet.processes import end_children, identify, is_alive, own_identity
from fleet.program import User, describe_exit
from fleet.record import ChildRecord, ProcessIdentity
from fleet.services.accounts import first_unreachable
from fleet.supervised import BACKOFF_MAX_S, backoff_s

# Prints its child's pid, which stays in its session after its own end.
PARENT = "sleep 600 & echo $!; wait"
DEAF_PARENT = "trap '' TERM; echo $$; while :; do sleep 600; done"


def start(script: str) -> tuple[subprocess.Popen[str], ProcessIdentity, psutil.Process]:
    process = subprocess.Popen(
        ["/bin/sh", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    with closing(process.stdout) as output:
        child = psutil.Process(int(output.readline()))
    identity = identify(process.pid)
    assert identity is not None
    return process, identity, child


@pytest.fixture
def parent() -> Iterator[tuple[subprocess.Popen[str], ProcessIdentity, psutil.Process]]:
    process, identity, child = start(PARENT)
    yield process, identity, child
    process.kill()
    process.wait()


def record(identity: ProcessIdentity, *leaves: Path) -> ChildRecord:
    return ChildRecord(
        name="gpu",
        state="ready",
        process=identity,
        restarts=0,
        log_path="",
        leaves=tuple(map(str, leaves)),
    )


def is_over(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_process_is_known_by_pid_and_start_time() -> None:
    own = own_identity()
    assert is_alive(own)
    assert not is_alive(replace(own, created_at=own.created_at - 60))


def test_the_whole_family_is_ended_and_its_files_removed(
    parent: tuple[subprocess.Popen[str], ProcessIdentity, psutil.Process], tmp_path: Path
) -> None:
    _, identity, child = parent
    (tmp_path / "socket").touch()
    assert end_children([record(identity, tmp_path / "socket")]) == ["gpu"]
    assert not (tmp_path / "socket").exists()
    assert not is_alive(identity)
    assert is_over(child)


def test_members_of_a_dead_leaders_session_are_ended(
    parent: tuple[subprocess.Popen[str], ProcessIdentity, psutil.Process],
) -> None:
    process, identity, child = parent
    process.kill()
    process.wait()
    assert not is_over(child)
    assert end_children([record(identity)]) == ["gpu"]
    assert is_over(child)


def test_a_stranger_with_a_recycled_pid_is_left_alone(
    parent: tuple[subprocess.Popen[str], ProcessIdentity, psutil.Process],
) -> None:
    _, identity, child = parent
    earlier = replace(identity, created_at=identity.created_at - 3600)
    assert end_children([record(earlier)]) == []
    assert is_alive(identity)
    assert not is_over(child)
    end_children([record(identity)])


def test_who_ignores_the_stop_signal_is_killed() -> None:
    process, identity, _ = start(DEAF_PARENT)
    started_at = time.monotonic()
    assert end_children([record(identity)], grace_s=0.2) == ["gpu"]
    assert 0.15 < time.monotonic() - started_at < 2
    assert process.wait() == -signal.SIGKILL
    # Nor does what it started when the signal had gone round.
    assert end_children([record(identity)]) == []


def test_exits_are_described() -> None:
    assert describe_exit(3) == "exit code 3"
    assert describe_exit(-9) == "SIGKILL"


def test_restarts_are_fast_at_first_and_limited() -> None:
    delays = [backoff_s(failures) for failures in range(100)]
    assert delays[0] <= 0.5
    assert delays == sorted(delays)
    assert delays[-1] == BACKOFF_MAX_S


def test_a_block_of_ports_avoids_what_is_taken() -> None:
    port = ports.choose_port(offsets=(0, 1))
    assert ports.are_free(port, (0, 1))
    assert not ports.are_free(port, (0, 1), {port + 1})
    with pytest.raises(FleetError, match="no free ports"):
        ports.choose_port(taken=range(ports.PORT_MIN, ports.PORT_MAX + 1))


def test_the_folder_that_bars_an_account_is_found(tmp_path: Path) -> None:
    stranger = User(name="stranger", uid=99_999, gid=99_999)
    inner = tmp_path / "inner"
    inner.mkdir()
    for folder in (*reversed(tmp_path.parents), tmp_path):
        if not folder.stat().st_mode & 0o001:
            assert first_unreachable(inner, stranger) == folder
            break
    owner = User(name="owner", uid=inner.stat().st_uid, gid=inner.stat().st_gid)
    assert first_unreachable(inner, owner) is None
    inner.chmod(0o600)
    assert first_unreachable(inner, owner) == inner
