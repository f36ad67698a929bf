from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from fleet.addresses import Addresses
from fleet.errors import AlreadyRunningError, HomeError, NotRunningError
from fleet.home import LOG_BYTES_MAX, Home, connection_environment
from fleet.record import ChildRecord, FleetRecord, FlowerAddress, ProcessIdentity

RECORD = FleetRecord(
    supervisor=ProcessIdentity(pid=1, created_at=2.5),
    addresses=Addresses(database_url="postgresql://d", broker_url="redis://b", s3_url="http://s"),
    flower=FlowerAddress(
        url="http://127.0.0.1:5555", user="nirvana", password="secret", state_path="state"
    ),
    children=(
        ChildRecord(
            name="gpu",
            state="ready",
            process=ProcessIdentity(pid=3, created_at=4.5),
            restarts=0,
            log_path="gpu.log",
            leaves=("/tmp/socket",),
        ),
        ChildRecord(name="io", state="restarting", process=None, restarts=2, log_path=""),
    ),
)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create()
    return home


def test_secrets_are_generated_once_and_private(home: Home) -> None:
    secrets = home.secrets()
    assert home.secrets() == secrets
    assert secrets.webhook_secret.startswith("whsec_")
    assert (home.folder / "secrets.json").stat().st_mode & 0o777 == 0o600
    assert secrets.valkey_password not in repr(secrets)


def test_a_secret_that_an_older_folder_lacks_is_added(home: Home) -> None:
    (home.folder / "secrets.json").write_text('{"valkey_password": "kept"}')
    assert home.secrets().valkey_password == "kept"
    assert home.secrets().flower_password == home.secrets().flower_password


def test_the_record_survives_and_a_torn_one_counts_as_none(home: Home) -> None:
    assert home.record() is None
    home.write_record(RECORD)
    read = home.record()
    assert read == RECORD
    assert (home.folder / "fleet.json").stat().st_mode & 0o777 == 0o600
    (home.folder / "fleet.json").write_text('{"supervisor": ')
    assert home.record() is None


def test_clients_find_only_a_fleet_that_is_supervised(home: Home) -> None:
    home.write_record(RECORD)
    with pytest.raises(NotRunningError, match="nirvana up"):
        connection_environment(home.folder)
    with home.locked():
        assert connection_environment(home.folder) == {
            "NIRVANA_DATABASE_URL": "postgresql://d",
            "NIRVANA_BROKER_URL": "redis://b",
            "NIRVANA_S3_URL": "http://s",
        }
    with pytest.raises(NotRunningError):
        connection_environment(home.folder / "nowhere")


def test_the_lock_is_held_by_one_and_names_it(home: Home) -> None:
    assert not home.is_supervised()
    with home.locked():
        assert home.is_supervised()
        with pytest.raises(AlreadyRunningError, match=f"process {os.getpid()}"), home.locked():
            pass
    with home.locked():
        pass


def test_a_full_disk_is_named(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(home.folder)._replace(free=3 * 1024**2)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(HomeError, match=r"has 3 MiB free and needs 256 MiB.*NIRVANA_HOME"):
        home.create()


def test_a_write_that_fails_is_named_and_leaves_the_old_file(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.write_record(RECORD)

    def fail(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", fail)
        with pytest.raises(HomeError, match="No space left on device"):
            home.write_record(RECORD)
    assert home.record() == RECORD


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HomeError, match="Not a directory; set NIRVANA_HOME"):
        Home(tmp_path / "file" / "home").create()


def test_ports_are_remembered(home: Home) -> None:
    assert home.ports() == {}
    home.remember_ports({"s3": 12345})
    assert Home(home.folder).ports() == {"s3": 12345}


def test_a_long_log_is_set_aside(home: Home) -> None:
    path = home.log_path("gpu")
    path.touch()
    os.truncate(path, LOG_BYTES_MAX + 1)
    assert home.log_path("gpu") == path
    assert not path.exists()
    assert path.with_suffix(".log.1").stat().st_size == LOG_BYTES_MAX + 1
