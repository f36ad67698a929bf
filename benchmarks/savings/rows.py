"""What each arm did with each job: a line of JSON a job, appended as it ends, and its picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A job of the log, as one arm answered it."""

    row: int  #: of the log
    outcome: str  #: hit, miss or bypass
    steps_asked: int
    steps_run: int
    picture: str  #: path of the PNG in the run's folder
    seconds: float | None  #: from submission to the committed result; None where it was interrupted
    timings: dict[str, float] = field(default_factory=dict)  #: seconds by part of the job's life
    similarity: float | None = None  #: to the prompt that a hit started from
    source_row: int | None = None  #: that prompt's row
    reason: str | None = None  #: of a miss

    @property
    def is_hit(self) -> bool:
        return self.outcome == "hit"

    @property
    def k(self) -> int:
        """Steps skipped."""
        return self.steps_asked - self.steps_run


class Rows:
    """An arm's rows on disk, in the order in which they ended."""

    def __init__(self, folder: Path, arm: str) -> None:
        self.folder, self.arm = folder, arm
        self._path = folder / f"{arm}.jsonl"

    def read(self) -> list[Row]:
        """Those that are whole; what a killed run left of a line is cut off."""
        if not self._path.is_file():
            return []
        text = self._path.read_text("utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self._path.write_text(whole, "utf-8")
        return [Row(**json.loads(line)) for line in whole.splitlines()]

    def append(self, row: Row) -> None:
        """Write a line; its picture must be there."""
        with self._path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(asdict(row)) + "\n")

    def replace(self, rows: Sequence[Row]) -> None:
        """Write all lines anew."""
        self._path.unlink(missing_ok=True)
        for row in rows:
            self.append(row)

    def write_picture(self, row: int, png: bytes) -> str:
        """Write ARM/ROW.png; answers that path."""
        name = f"{self.arm}/{row}.png"
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png)
        return name
