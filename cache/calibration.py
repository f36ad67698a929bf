"""A calibration: the thresholds measured for a model and an embedder, as a file and as rows.

The file, `thresholds.json`, may lie in the model's folder; a worker that loads the model installs
it. Of several installed for the same model and embedder the last one counts.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, text

from cache.entry import ScopeSpec, StateKind
from cache.errors import CalibrationInvalid
from cache.selector import PAPER, Thresholds

logger = logging.getLogger(__name__)

FILE_NAME: Final = "thresholds.json"

_INSTALL = text("""
    INSERT INTO calibrations (version, revision, embedder, state_kind, thresholds, measured)
    VALUES (:version, :revision, :embedder, :state_kind,
            CAST(:thresholds AS jsonb), CAST(:measured AS jsonb))
        ON CONFLICT (version, state_kind) DO NOTHING
    RETURNING version
""")

_NEWEST = text("""
    SELECT version, thresholds
      FROM calibrations
     WHERE revision = :revision
       AND embedder = :embedder
       AND state_kind = :state_kind
     ORDER BY installed_at DESC, version
     LIMIT 1
""")

_LIST = text("""
    SELECT version, state_kind, revision, embedder, thresholds, measured, installed_at
      FROM calibrations
     ORDER BY installed_at DESC, version, state_kind
""")

Rows = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Thresholds by the kind of state; raises CalibrationInvalid where they cannot be used."""

    #: Of the weights they were measured with.
    revision: str
    embedder: str
    #: (fraction of N, least similarity), both rising; a kind that is absent was not measured.
    tables: Mapping[StateKind, Rows]
    #: How: the rule, the number of pairs, when.
    measured: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind, rows in self.tables.items():
            fractions, floors = [row[0] for row in rows], [row[1] for row in rows]
            if not rows or fractions != sorted(set(fractions)) or floors != sorted(floors):
                raise CalibrationInvalid(f"{kind}: expected fractions and similarities that rise")
            are_shares = all(0 < fraction < 1 for fraction in fractions)
            if not (are_shares and all(-1 <= floor <= 1 for floor in floors)):
                raise CalibrationInvalid(
                    f"{kind}: expected fractions between 0 and 1, similarities from -1 to 1"
                )

    def is_for(self, spec: ScopeSpec) -> bool:
        """Whether it was measured with the scope's weights and embedder."""
        return (self.revision, self.embedder) == (spec.revision, spec.embedder)

    @property
    def version(self) -> str:
        """Names this very calibration."""
        digest = hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode())
        return f"calibrated-{digest.hexdigest()[:12]}"

    def to_json(self) -> dict[str, Any]:
        """As in the file."""
        return {
            "revision": self.revision,
            "embedder": self.embedder,
            "tables": {
                kind.value: [list(row) for row in rows] for kind, rows in self.tables.items()
            },
            "measured": dict(self.measured),
        }

    def write(self, path: Path) -> None:
        """Write the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """A row of the database."""

    version: str
    state_kind: str
    revision: str
    embedder: str
    thresholds: Sequence[tuple[float, float]]
    measured: Mapping[str, Any]
    installed_at: datetime


def read_calibration(path: Path) -> Calibration:
    """Read a file; raises CalibrationInvalid with the reason."""
    try:
        return _parse(json.loads(path.read_text("utf-8")))
    except KeyError as error:
        raise CalibrationInvalid(f"{path}: {error} is missing") from error
    except (OSError, ValueError, TypeError, AttributeError, CalibrationInvalid) as error:
        raise CalibrationInvalid(f"{path}: {error}") from error


def _parse(given: Any) -> Calibration:
    if not isinstance(given, dict):
        raise CalibrationInvalid("expected an object with revision, embedder and tables")
    return Calibration(
        revision=str(given["revision"]),
        embedder=str(given["embedder"]),
        tables={
            StateKind(kind): tuple((float(fraction), float(floor)) for fraction, floor in rows)
            for kind, rows in given["tables"].items()
        },
        measured=given.get("measured", {}),
    )


def read_shipped(folders: Iterable[str]) -> list[Calibration]:
    """Those that lie in models' folders; one that cannot be used is logged, and left out."""
    found = []
    for folder in folders:
        path = Path(folder) / FILE_NAME
        if path.is_file():
            try:
                found.append(read_calibration(path))
            except CalibrationInvalid as error:
                logger.warning("thresholds not used: %s", error)
    return found


def install(connection: Connection, calibration: Calibration) -> bool:
    """Make it count for scopes registered from now on; False if it is installed already."""
    is_new = False
    for kind, rows in calibration.tables.items():
        row = {
            "version": calibration.version,
            "revision": calibration.revision,
            "embedder": calibration.embedder,
            "state_kind": kind.value,
            "thresholds": json.dumps(rows),
            "measured": json.dumps(calibration.measured),
        }
        is_new |= connection.execute(_INSTALL, row).first() is not None
    return is_new


def list_installed(connection: Connection) -> list[Installed]:
    """All of them, the newest first."""
    return [Installed(**row) for row in connection.execute(_LIST).mappings()]


def thresholds_of(connection: Connection, spec: ScopeSpec, kind: StateKind) -> Thresholds:
    """The newest calibration of the scope's model, else the paper's table, marked so."""
    which = {"revision": spec.revision, "embedder": spec.embedder, "state_kind": kind.value}
    row = connection.execute(_NEWEST, which).one_or_none()
    if row is None:
        return PAPER
    return Thresholds(
        version=row.version,
        is_calibrated=True,
        rows=tuple((fraction, floor) for fraction, floor in row.thresholds),
    )
