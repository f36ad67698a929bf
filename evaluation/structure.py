"""How a log's users iterate, told without an embedder: four distributions, and how far two differ.

A word is a run of letters and digits in lower case; articles and prepositions do not count, since
every sentence shares them. Of two prompts, the share of words changed is 1 - common / longer.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import OptionInvalid
from evaluation.trace import UNKNOWN

WINDOW: Final = 2_000  # rows looked at together; what came before them is not known
PAUSE: Final = 100  # rows without a user end that user's session
EDIT_MAX: Final = 0.5  # of the words changed: beyond it is another prompt
HISTORY: Final = 50  # of a user's prompts that are looked back upon
NEVER: Final = np.inf  # no earlier prompt to reuse

_WORD: Final = re.compile(r"[^\W_]+")
# fmt: off
_STOP: Final = frozenset((
    "a", "an", "and", "as", "at", "by", "for", "from", "in", "into", "is", "of", "on", "or",
    "over", "the", "to", "under", "with",
))
# fmt: on

Floats = NDArray[np.float64]
Words = Counter[str]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Structure:
    """Samples of each distribution, pooled over the windows of a log."""

    #: Requests of a user with pauses of less than PAUSE rows, one for each session.
    in_a_row: Floats
    #: Share of words changed since the same user's request before, one for each that has one.
    words_changed: Floats
    #: Rows since the user's last prompt that is at most an edit away, else NEVER; one for each row.
    reuse_distance: Floats
    #: Times that anybody asked for the same prompt before, word for word; one for each row.
    repeats: Floats

    def distances(self, other: Structure) -> dict[str, float]:
        """Kolmogorov-Smirnov distance of each distribution."""
        return {
            name: ks_distance(getattr(self, name), getattr(other, name))
            for name in ("in_a_row", "words_changed", "reuse_distance", "repeats")
        }


def structure(
    prompts: Sequence[str], users: NDArray[np.int32] | Sequence[int], *, window: int = WINDOW
) -> Structure:
    """Study a log, rows without a user left out; raises OptionInvalid below one window."""
    known = [(p, int(u)) for p, u in zip(prompts, users, strict=True) if u != UNKNOWN]
    if len(known) < window:
        raise OptionInvalid(f"{len(known):,} rows name a user; {window:,} are needed")
    parts = [
        _Window(known[first : first + window])
        for first in range(0, len(known) - window + 1, window)
    ]
    return Structure(
        in_a_row=np.array([x for part in parts for x in part.sessions()], dtype=np.float64),
        words_changed=np.array([x for part in parts for x in part.changes()], dtype=np.float64),
        reuse_distance=np.array([x for part in parts for x in part.distances()], dtype=np.float64),
        repeats=np.array([x for part in parts for x in part.repeats()], dtype=np.float64),
    )


def words(prompt: str) -> Words:
    """The words that count."""
    return Counter(word for word in _WORD.findall(prompt.lower()) if word not in _STOP)


def changed(one: Words, other: Words) -> float:
    """Share of words changed, 0 to 1."""
    longer = max(one.total(), other.total())
    return 1 - (one & other).total() / longer if longer else 0.0


def ks_distance(one: Floats, other: Floats) -> float:
    """Largest gap of the two cumulative distributions (Kolmogorov-Smirnov)."""
    points = np.unique(np.concatenate([one, other]))
    below = [np.searchsorted(np.sort(x), points, side="right") / len(x) for x in (one, other)]
    return float(np.abs(below[0] - below[1]).max())


class _Window:
    """Rows that follow each other."""

    def __init__(self, rows: Sequence[tuple[str, int]]) -> None:
        self._prompts = [prompt for prompt, _ in rows]
        self._words = [words(prompt) for prompt in self._prompts]
        self._rows_of: dict[int, list[int]] = defaultdict(list)
        for row, (_, user) in enumerate(rows):
            self._rows_of[user].append(row)

    def sessions(self) -> list[int]:
        """How many requests each session has."""
        found = []
        for rows in self._rows_of.values():
            ends = np.flatnonzero(np.diff(rows) > PAUSE) + 1
            found += np.diff([0, *ends.tolist(), len(rows)]).tolist()
        return found

    def changes(self) -> list[float]:
        """Against the same user's request before."""
        return [
            changed(self._words[before], self._words[row])
            for rows in self._rows_of.values()
            for before, row in pairwise(rows)
        ]

    def distances(self) -> list[float]:
        """Rows back to the last prompt that was no more than an edit away."""
        return [
            self._distance(rows, at) for rows in self._rows_of.values() for at in range(len(rows))
        ]

    def _distance(self, rows: list[int], at: int) -> float:
        for before in reversed(rows[max(0, at - HISTORY) : at]):
            if changed(self._words[before], self._words[rows[at]]) <= EDIT_MAX:
                return rows[at] - before
        return NEVER

    def repeats(self) -> list[int]:
        """How often each row's prompt came before."""
        seen: Counter[str] = Counter()
        found = []
        for prompt in self._prompts:
            found.append(seen[prompt])
            seen[prompt] += 1
        return found
