"""What can go wrong with one machine's fleet; every message is one sentence for a user.

FleetError
├── SettingError                a setting is wrong; `variable` names it
│   ├── PortTakenError          an explicitly chosen port belongs to another program
│   └── ServiceUnreachableError a service given by URL does not answer
├── HomeError                   the state folder cannot be used
├── AlreadyRunningError         another supervisor holds the state folder
├── NotRunningError             no supervisor runs on the state folder
├── ProgramFailedError          a child ended, or did not become ready in time
└── NotReadyError               a probe's "not yet"; never reaches a user
"""

from __future__ import annotations

from pathlib import Path


class FleetError(Exception):
    """The fleet cannot go on."""


class SettingError(FleetError):
    """A setting is wrong; the message begins with the environment variable."""

    def __init__(self, variable: str, reason: str) -> None:
        super().__init__(f"{variable}: {reason}")
        self.variable = variable


class PortTakenError(SettingError):
    """An explicitly chosen port belongs to another program."""

    def __init__(self, variable: str, port: int) -> None:
        reason = f"port {port} is taken; choose a free port from 1024 to 65535, or 0 for any"
        super().__init__(variable, reason)
        self.port = port


class ServiceUnreachableError(SettingError):
    """A service given by URL does not answer."""


class HomeError(FleetError):
    """The state folder cannot be used."""

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(f"the state folder {folder} {reason}")
        self.folder = folder


class AlreadyRunningError(FleetError):
    """Another supervisor holds the state folder."""

    def __init__(self, folder: Path, pid: int | None) -> None:
        who = f"by process {pid}" if pid else "by another process"
        super().__init__(
            f"a fleet is already run {who} in {folder}; "
            "stop it with `nirvana down`, or set NIRVANA_HOME to another folder"
        )
        self.pid = pid


class NotRunningError(FleetError):
    """No supervisor runs on the state folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"no fleet is running in {folder}; start one with `nirvana up`")
        self.folder = folder


class ProgramFailedError(FleetError):
    """A child ended, or did not become ready in time."""

    def __init__(self, name: str, reason: str, log_path: Path) -> None:
        super().__init__(f"{name} {reason} (log: {log_path})")
        self.name = name
        self.log_path = log_path


class NotReadyError(FleetError):
    """A probe's "not yet": the program may still become ready."""
