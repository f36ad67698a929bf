"""How users of a real log iterate, as tables of quantiles: what the generated log is drawn from.

`python -m benchmarks.savings.habits LOG` measures a log and writes habits.json beside this file.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from evaluation.structure import EDIT_MAX, PAUSE, WINDOW, Words, changed, words
from evaluation.trace import UNKNOWN, read_trace

FILE: Final = Path(__file__).parent / "habits.json"
POINTS: Final = np.linspace(0, 1, 201)

Quantiles = tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """Distributions as quantiles at POINTS, and shares."""

    source: str
    rows: int
    in_a_row: Quantiles  #: requests in a session
    gap: Quantiles  #: rows from one request of a session to the next
    num_words: Quantiles  #: of a prompt, articles and prepositions not counted
    changed_in_session: Quantiles  #: share of words changed since the request before
    changed_between: Quantiles  #: the same for the first request of a later session
    return_share: float  #: of sessions whose user had one before, in the same window
    #: Of requests that are no edit of the one before: those that edit an older one of the user's.
    back_share: float
    back_unchanged_share: float  #: of these, those that change nothing

    @classmethod
    def read(cls, path: Path = FILE) -> Self:
        """Read the file."""
        given: dict[str, Any] = json.loads(path.read_text("utf-8"))
        named: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in given.items()
        }
        return cls(**named)


def measure(prompts: Sequence[str], users: Sequence[int], *, source: str) -> Habits:
    """Measure a log, in windows of WINDOW rows."""
    found = _Samples()
    for first in range(0, len(prompts) - WINDOW + 1, WINDOW):
        rows_of: dict[int, list[int]] = defaultdict(list)
        for row in range(first, first + WINDOW):
            rows_of[users[row]].append(row)
        for rows in rows_of.values():
            found.add([words(prompts[row]) for row in rows], rows)
    return Habits(
        source=source,
        rows=len(prompts),
        in_a_row=_quantiles(found.in_a_row),
        gap=_quantiles(found.gap),
        num_words=_quantiles([words(prompt).total() for prompt in prompts]),
        changed_in_session=_quantiles(found.changed_in_session),
        changed_between=_quantiles(found.changed_between),
        return_share=round(1 - found.num_users / len(found.in_a_row), 4),
        back_share=round(len(found.back) / max(1, found.num_leaps), 4),
        back_unchanged_share=round(float(np.mean([share == 0 for share in found.back])), 4),
    )


class _Samples:
    def __init__(self) -> None:
        self.in_a_row: list[float] = []
        self.gap: list[float] = []
        self.changed_in_session: list[float] = []
        self.changed_between: list[float] = []
        self.back: list[float] = []
        self.num_leaps = self.num_users = 0

    def add(self, prompts: Sequence[Words], rows: Sequence[int]) -> None:
        """Take in one user's requests of a window."""
        self.num_users += 1
        length = 1
        for at in range(1, len(rows)):
            gap, share = rows[at] - rows[at - 1], changed(prompts[at - 1], prompts[at])
            self._leap(prompts, at, share)
            if gap > PAUSE:
                self.in_a_row.append(length)
                self.changed_between.append(share)
                length = 1
            else:
                self.gap.append(gap)
                self.changed_in_session.append(share)
                length += 1
        self.in_a_row.append(length)

    def _leap(self, prompts: Sequence[Words], at: int, share: float) -> None:
        if share <= EDIT_MAX:
            return
        self.num_leaps += 1
        older = (changed(prompt, prompts[at]) for prompt in reversed(prompts[: at - 1]))
        nearest = next((share for share in older if share <= EDIT_MAX), None)
        if nearest is not None:
            self.back.append(nearest)


def _quantiles(samples: Sequence[float]) -> Quantiles:
    values: NDArray[np.float64] = np.quantile(samples, POINTS, method="inverted_cdf")
    return tuple(round(float(value), 4) for value in values)


def _known(path: Path) -> Iterator[tuple[str, int]]:
    trace = read_trace(path)
    assert trace.users is not None, f"{path} names no users"
    for prompt, user in zip(trace.prompts, trace.users, strict=True):
        if user != UNKNOWN:
            yield prompt, int(user)


def main(arguments: list[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description="Measure how the users of a log iterate.")
    parser.add_argument("log", type=Path)
    parser.add_argument("--out", type=Path, default=FILE)
    options = parser.parse_args(arguments)
    prompts, users = zip(*_known(options.log), strict=True)
    habits = measure(prompts, users, source=options.log.name.removesuffix(".jsonl.gz"))
    options.out.write_text(json.dumps(asdict(habits)) + "\n", "utf-8")


if __name__ == "__main__":
    main()
