"""What runs, as the supervisor writes it to `fleet.json` for `ps`, `down` and the next `up`."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fleet.addresses import Addresses

State = Literal["starting", "ready", "restarting", "stopping"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIdentity:
    """A process that a recycled pid cannot be mistaken for."""

    pid: int
    # Seconds since the epoch, as psutil reports them.
    created_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildRecord:
    """One program of the fleet; `process` is None between two lives."""

    name: str
    state: State
    process: ProcessIdentity | None
    restarts: int
    stop_signal: int = signal.SIGTERM
    log_path: str
    # Files elsewhere that go with the process.
    leaves: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class FlowerAddress:
    """Flower's page and the account for it."""

    url: str
    user: str
    password: str
    #: Of the file in which it keeps what it showed; records of older versions have none.
    state_path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetRecord:
    """A running fleet; also what a killed supervisor leaves behind."""

    supervisor: ProcessIdentity
    addresses: Addresses
    flower: FlowerAddress
    children: tuple[ChildRecord, ...] = ()

    def to_json(self) -> str:
        """Render as the text of `fleet.json`."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> FleetRecord:
        """Read `fleet.json`; raises ValueError, TypeError or KeyError on anything else."""
        record = json.loads(text)
        return cls(
            supervisor=ProcessIdentity(**record["supervisor"]),
            addresses=Addresses(**record["addresses"]),
            flower=FlowerAddress(**record["flower"]),
            children=tuple(_child(child) for child in record["children"]),
        )


def _child(child: dict[str, Any]) -> ChildRecord:
    process, leaves = child.pop("process"), child.pop("leaves", ())
    identity = ProcessIdentity(**process) if process is not None else None
    return ChildRecord(process=identity, leaves=tuple(leaves), **child)
