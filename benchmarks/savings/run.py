"""A run: its parameters, its arms one after the other, and what stands in its folder."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.savings.arms import (
    CAPACITY_SHARE,
    FLEET_ARMS,
    NONE,
    RESEEDED,
    Arm,
    Served,
    environment,
)
from benchmarks.savings.replayed import (
    EXACT,
    RETRIEVAL,
    TITLES,
    ExactMatcher,
    Matcher,
    NearestMatcher,
    Vectors,
    replay,
)
from benchmarks.savings.rows import Row, Rows
from benchmarks.savings.through_fleet import OnRow, run_arm
from benchmarks.savings.workload import Request
from cache.entry import Sharing
from evaluation.errors import OptionInvalid

ALL_ARMS: Final = (NONE.name, RESEEDED.name, EXACT, RETRIEVAL, *(a.name for a in FLEET_ARMS[2:]))
_OTHER_SEEDS: Final = 2**31  # above all seeds of the log


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """What a run's rows depend on: a folder holds rows of one set of parameters."""

    jobs: int
    log_seed: int
    revision: str  #: of the model
    sharing: Sharing
    num_threads: int
    num_reseeded: int

    def claim(self, folder: Path) -> None:
        """Write them beside the rows; raises OptionInvalid where others stand there."""
        _claim(folder / "run.json", asdict(self))


def claim_arm(folder: Path, arm: Arm, served: Served) -> None:
    """Write what an arm's rows depend on; raises OptionInvalid where something else stands.

    Of each arm its own: a new calibration leaves the rows of the published arms as they are.
    """
    own = {
        "thresholds": served.thresholds(arm).version,
        "reroll_fraction": arm.reroll_fraction,
    }
    _claim(folder / f"{arm.name}.json", own)


def _claim(path: Path, own: Mapping[str, Any]) -> None:
    known: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else dict(own)
    for name, value in own.items():
        if known.get(name) != value:
            raise OptionInvalid(
                f"--out {path.parent} holds {path.stem} with {name} {known.get(name)}, "
                f"not {value}: name another folder"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(own, indent=1) + "\n", "utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Serves the log in the ways asked for; a killed one goes on.

    Of a run that has not ended, the `first` jobs that the arms have served can be compared: an
    arm serves the log in its order.
    """

    folder: Path
    parameters: Parameters
    served: Served
    requests: Sequence[Request]
    first: int  #: jobs that are reported on, from the beginning of the log

    def through_fleet(self, arm: Arm) -> None:
        """Run an arm's fleet. Raises FleetError, ProducerError, OptionInvalid."""
        if arm.kind is not None:
            claim_arm(self.folder, arm, self.served)
        jobs = self._reseeded() if arm is RESEEDED else list(enumerate(self.requests))
        settings = environment(
            arm,
            self.served,
            num_jobs=len(self.requests),
            sharing=self.parameters.sharing,
            num_threads=self.parameters.num_threads,
        )
        known = Rows(self.folder, arm.name).read()
        with _told(arm.name, len(jobs), known) as on_row:
            run_arm(arm, jobs, folder=self.folder, settings=settings, on_row=on_row)

    def replayed(self, name: str, vectors: Vectors) -> None:
        """Answer from the uncached arm's pictures, once they are all there."""
        uncached = Rows(self.folder, NONE.name).read()
        if len(uncached) < len(self.requests):
            return
        matcher: Matcher = ExactMatcher(self.requests) if name == EXACT else NearestMatcher(vectors)
        answered = replay(
            name,
            uncached,
            self.requests,
            matcher,
            sharing=self.parameters.sharing,
            num_kept_max=max(1, int(CAPACITY_SHARE * len(self.requests))),
        )
        Rows(self.folder, name).replace(answered)

    def rows(self, name: str) -> list[Row]:
        """An arm's rows so far, of the first jobs."""
        return [row for row in Rows(self.folder, name).read() if row.row < self.first]

    def is_whole(self, name: str) -> bool:
        """Whether an arm has served all of the first jobs."""
        num_jobs = self.first
        if name == RESEEDED.name:
            num_jobs = sum(row < self.first for row, _ in self._reseeded())
        return len(self.rows(name)) == num_jobs

    def _reseeded(self) -> list[tuple[int, Request]]:
        """A sample of the log's jobs, evenly spread, with other seeds."""
        num, total = self.parameters.num_reseeded, len(self.requests)
        rows = [place * total // num for place in range(num)]
        return [
            (row, replace(self.requests[row], seed=self.requests[row].seed + _OTHER_SEEDS))
            for row in rows
        ]


def title_of(name: str) -> str:
    """An arm's name in tables."""
    titles = {arm.name: arm.title for arm in FLEET_ARMS} | TITLES
    return titles[name]


@contextmanager
def _told(name: str, total: int, known: Sequence[Row]) -> Iterator[OnRow]:
    """Say on stderr how far an arm is, and how long it will take."""
    started_at, num_new = time.monotonic(), 0

    def on_row(row: Row) -> None:
        nonlocal num_new
        num_new += 1
        num_left = total - len(known) - num_new
        left_s = (time.monotonic() - started_at) / num_new * num_left
        print(
            f"\r{name}: {total - num_left:,} of {total:,} jobs, {left_s / 60:.0f} min left  ",
            end="",
            file=sys.stderr,
        )

    yield on_row
    if num_new:
        print(file=sys.stderr)
