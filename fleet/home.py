"""The state folder of one machine's fleet.

    postgres/ valkey/ s3/   the services' data
    logs/                   one file per program
    secrets.json            generated passwords
    ports.json              ports chosen once
    fleet.json              what runs (absent after a clean stop)
    fleet.lock              held by the supervisor, with its pid

Passwords stand in files that only the owner can read. Standard library only: clients find the
fleet through this module.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from fleet.errors import AlreadyRunningError, HomeError, NotRunningError
from fleet.record import FleetRecord

# PostgreSQL's first write-ahead log and catalogue take 40 MB; the rest is room to work.
FREE_MIN_BYTES = 256 * 1024**2
LOG_BYTES_MAX = 16 * 1024**2
LOCK_PATIENCE_S = 0.2


def _password() -> str:
    return secrets.token_hex(16)


def _webhook_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Secrets:
    """Generated once per state folder."""

    postgres_superuser_password: str = field(default_factory=_password)
    postgres_password: str = field(default_factory=_password)
    valkey_password: str = field(default_factory=_password)
    s3_access_key: str = field(default_factory=_password)
    s3_secret_key: str = field(default_factory=_password)
    flower_password: str = field(default_factory=_password)
    # Standard Webhooks: signs callbacks to a URL that names no secret of its own.
    webhook_secret: str = field(default_factory=_webhook_secret)


class Home:
    """Reads and writes the state folder; every failure is a HomeError that names it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.postgres = folder / "postgres"
        self.valkey = folder / "valkey"
        self.s3 = folder / "s3"
        self.logs = folder / "logs"

    def create(self) -> None:
        """Make the folder ready; raises HomeError if it is full or cannot be written."""
        with self.named_errors():
            # Root's PostgreSQL runs under another account, which must be able to pass.
            mode = 0o711 if os.geteuid() == 0 else 0o700
            self.folder.mkdir(mode=mode, parents=True, exist_ok=True)
            if os.geteuid() == 0:
                self.folder.chmod(self.folder.stat().st_mode | 0o011)
            self.logs.mkdir(mode=0o700, exist_ok=True)
            free_bytes = shutil.disk_usage(self.folder).free
        if free_bytes < FREE_MIN_BYTES:
            free, needed = free_bytes // 1024**2, FREE_MIN_BYTES // 1024**2
            raise HomeError(
                self.folder,
                f"has {free} MiB free and needs {needed} MiB: "
                "free some space or set NIRVANA_HOME to another folder",
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder as its only supervisor; raises AlreadyRunningError."""
        with self.named_errors():
            lock = os.open(self.folder / "fleet.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if not _lock_within(lock, LOCK_PATIENCE_S):
                raise AlreadyRunningError(self.folder, self.supervisor_pid())
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(os.getpid()).encode(), 0)
            try:
                yield
            finally:
                # Nobody shall take a later process of this number for us.
                os.ftruncate(lock, 0)
        finally:
            os.close(lock)

    def is_supervised(self) -> bool:
        """Whether a supervisor holds the folder now."""
        try:
            lock = os.open(self.folder / "fleet.lock", os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def supervisor_pid(self) -> int | None:
        """Pid of who holds the folder, or held it last."""
        try:
            return int((self.folder / "fleet.lock").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def secrets(self) -> Secrets:
        """The folder's passwords; generated, or completed, on first use."""
        known = self._read_json("secrets.json")
        names = [secret.name for secret in fields(Secrets)]
        found = Secrets(**{name: known[name] for name in names if name in known})
        if asdict(found) != known:
            self._write("secrets.json", json.dumps(asdict(found), indent=1) + "\n")
        return found

    def ports(self) -> dict[str, int]:
        """Ports chosen in earlier runs, by service."""
        return {str(name): int(port) for name, port in self._read_json("ports.json").items()}

    def remember_ports(self, ports: dict[str, int]) -> None:
        """Keep the ports for the next run."""
        if ports != self.ports():
            self._write("ports.json", json.dumps(ports, indent=1) + "\n")

    def log_path(self, name: str) -> Path:
        """Where a program's output goes; a log over LOG_BYTES_MAX is set aside first."""
        path = self.logs / f"{name}.log"
        with suppress(FileNotFoundError):
            if path.stat().st_size > LOG_BYTES_MAX:
                path.replace(path.with_suffix(".log.1"))
        return path

    def record(self) -> FleetRecord | None:
        """What runs, or ran when its supervisor was killed; None after a clean stop."""
        try:
            return FleetRecord.from_json((self.folder / "fleet.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write_record(self, record: FleetRecord) -> None:
        """Replace what `record()` returns."""
        self._write("fleet.json", record.to_json())

    def remove_record(self) -> None:
        """Say that nothing runs."""
        (self.folder / "fleet.json").unlink(missing_ok=True)

    @contextmanager
    def named_errors(self) -> Iterator[None]:
        """Turn an OSError (no space, no permission) into a HomeError."""
        try:
            yield
        except OSError as error:
            reason = f"cannot be used: {error.strerror}; set NIRVANA_HOME to another folder"
            raise HomeError(self.folder, reason) from error

    def _read_json(self, name: str) -> dict[str, str]:
        try:
            content = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise HomeError(self.folder, f"holds an unreadable {name}: {error}") from error
        return dict(content)

    def _write(self, name: str, text: str) -> None:
        """Write whole or not at all, readable by the owner only."""
        partial = self.folder / f".{name}.partial"
        with self.named_errors():
            partial.unlink(missing_ok=True)
            partial.touch(mode=0o600)
            partial.write_text(text, encoding="utf-8")
            partial.replace(self.folder / name)


def _lock_within(lock: int, patience_s: float) -> bool:
    """Lock the file; False if another process keeps it.

    Whoever asks `is_supervised` holds it too, for microseconds.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)


def connection_environment(folder: Path) -> dict[str, str]:
    """The NIRVANA_ variables by which a client reaches the fleet that runs in `folder`.

    Raises NotRunningError.
    """
    home = Home(folder)
    record = home.record()
    if record is None or not home.is_supervised():
        raise NotRunningError(folder)
    return record.addresses.environment()
