"""Which account a server runs as, and whether that account reaches the files it needs."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

from fleet.errors import FleetError
from fleet.program import User


def unprivileged_user() -> User | None:
    """Account for servers that refuse root: `nobody` if we are root, else None (ourselves).

    Raises FleetError where there is no such account.
    """
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError as error:
        raise FleetError(
            "PostgreSQL refuses root, and there is no user nobody to run it: "
            "run as an unprivileged user, or set NIRVANA_DATABASE_URL"
        ) from error
    return User(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid)


def first_unreachable(path: Path, user: User) -> Path | None:
    """The outermost part of `path` that `user` may not enter or read, by its mode bits."""
    resolved = path.resolve()
    for part in [*reversed(resolved.parents), resolved]:
        if not _may(part, user, stat.S_IXOTH):
            return part
    return None if _may(resolved, user, stat.S_IROTH | stat.S_IXOTH) else resolved


def _may(path: Path, user: User, bits: int) -> bool:
    status = path.stat()
    if status.st_uid == user.uid:
        bits <<= 6
    elif status.st_gid == user.gid:
        bits <<= 3
    return status.st_mode & bits == bits
