"""What the three embedded services have in common."""

from __future__ import annotations

from dataclasses import dataclass

from fleet.program import Program

# Everything a server needs to know about its surroundings; passwords travel in 0600 files.
SERVICE_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TZ": "UTC"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A server to run, and the URL under which clients reach it."""

    program: Program
    url: str
