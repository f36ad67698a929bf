"""Read a prompt log: JSONL, gzipped JSONL or parquet, in the order of arrival."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import PackageMissing, TraceInvalid

UNKNOWN: Final = -1  # the user of a row that names none

_PARQUET_ROWS: Final = 65_536  # read at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """What the columns of a log are called; all but the prompt may be missing."""

    prompt: str = "prompt"
    user: str = "user"
    namespace: str = "namespace"
    #: Seconds as a number, or RFC 3339; a parquet timestamp.
    time: str = "submitted_at"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """A prompt log of n rows; users and namespaces are numbers in the order of first sight."""

    name: str
    prompts: Sequence[str] = field(repr=False)
    users: NDArray[np.int32] | None = None  #: [n], UNKNOWN where a row names none
    namespaces: NDArray[np.int32] | None = None  #: [n]
    times_s: NDArray[np.float64] | None = None  #: [n], not falling

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def num_users(self) -> int | None:
        """Users that are named; None where the log has no such column."""
        return None if self.users is None else int(self.users.max(initial=UNKNOWN)) + 1

    @property
    def unknown_user_share(self) -> float:
        """Share of rows that name no user."""
        return 1.0 if self.users is None else float(np.mean(self.users == UNKNOWN))

    def fingerprint(self) -> str:
        """SHA-256 of prompts and owners: what neighbour lists depend on."""
        digest = hashlib.sha256()
        for prompt in self.prompts:
            digest.update(prompt.encode("utf-8", "surrogatepass"))
            digest.update(b"\0")
        for numbers in (self.users, self.namespaces):
            digest.update(b"-" if numbers is None else numbers.tobytes())
        return digest.hexdigest()


def read_trace(path: Path, fields: Fields | None = None, *, rows_max: int | None = None) -> Trace:
    """Read a log; raises TraceInvalid, naming the row."""
    named = fields or Fields()
    rows = _parquet_rows(path, named) if path.suffix == ".parquet" else _json_rows(path)
    columns = _Columns(path, named)
    try:
        for number, row in enumerate(rows, start=1):
            if rows_max is not None and number > rows_max:
                break
            columns.add(number, row)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise TraceInvalid(path, _reason(error)) from error
    return columns.trace()


def _reason(error: Exception) -> str:
    match error:
        case OSError():
            return (error.strerror or str(error)).lower()
        case EOFError():
            return "is cut short"
        case _:
            return "not UTF-8 text"


class _Columns:
    """Gathers rows into columns, a number for each user."""

    def __init__(self, path: Path, fields: Fields) -> None:
        self._path, self._fields = path, fields
        self._prompts: list[str] = []
        self._users, self._namespaces = _Numbers(), _Numbers()
        self._times: list[float | None] = []

    def add(self, number: int, row: Mapping[str, Any]) -> None:
        prompt = row.get(self._fields.prompt)
        if not isinstance(prompt, str) or not prompt:
            raise TraceInvalid(self._path, f"no text in `{self._fields.prompt}`", line=number)
        self._prompts.append(prompt)
        self._users.add(row.get(self._fields.user))
        self._namespaces.add(row.get(self._fields.namespace))
        self._times.append(self._seconds(number, row.get(self._fields.time)))

    def trace(self) -> Trace:
        if not self._prompts:
            raise TraceInvalid(self._path, "has no rows")
        return Trace(
            name=self._path.name.split(".")[0],
            prompts=self._prompts,
            users=self._users.column(),
            namespaces=self._namespaces.column(),
            times_s=self._times_column(),
        )

    def _seconds(self, number: int, value: object) -> float | None:
        match value:
            case None:
                return None
            case bool():
                pass
            case int() | float():
                return float(value)
            case datetime():
                return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
            case str():
                return self._parsed(number, value)
        raise TraceInvalid(self._path, f"`{self._fields.time}` is no time: {value!r}", line=number)

    def _parsed(self, number: int, value: str) -> float:
        try:
            parsed = datetime.fromisoformat(value)
        except ValueError:
            reason = f"`{self._fields.time}` is no RFC 3339 time: {value!r}"
            raise TraceInvalid(self._path, reason, line=number) from None
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()

    def _times_column(self) -> NDArray[np.float64] | None:
        known = [time for time in self._times if time is not None]
        if len(known) < len(self._times):
            return None
        column = np.asarray(known, dtype=np.float64)
        falls = np.flatnonzero(np.diff(column) < 0)
        if falls.size:
            reason = f"`{self._fields.time}` is earlier than the row before: sort the log by it"
            raise TraceInvalid(self._path, reason, line=int(falls[0]) + 2)
        return column


class _Numbers:
    """Names as numbers."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}
        self._column: list[int] = []

    def add(self, name: object) -> None:
        if name is None or name == "":
            self._column.append(UNKNOWN)
        else:
            self._column.append(self._known.setdefault(str(name), len(self._known)))

    def column(self) -> NDArray[np.int32] | None:
        return np.asarray(self._column, dtype=np.int32) if self._known else None


def _json_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        yield from _parsed_lines(path, lines)


def _parsed_lines(path: Path, lines: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            raise TraceInvalid(path, "not JSON", line=number) from None
        if not isinstance(row, dict):
            raise TraceInvalid(path, "not a JSON object", line=number)
        yield row


def _parquet_rows(path: Path, fields: Fields) -> Iterator[Mapping[str, Any]]:
    try:
        parquet = import_module("pyarrow.parquet")
        arrow = import_module("pyarrow")
    except ModuleNotFoundError:
        raise PackageMissing("pyarrow", needed_for="a parquet log") from None
    wanted = {fields.prompt, fields.user, fields.namespace, fields.time}
    try:
        with parquet.ParquetFile(path) as file:
            present = sorted(wanted & set(file.schema_arrow.names))
            for batch in file.iter_batches(_PARQUET_ROWS, columns=present):
                yield from batch.to_pylist()
    except arrow.ArrowInvalid:
        raise TraceInvalid(path, "not a parquet file") from None
