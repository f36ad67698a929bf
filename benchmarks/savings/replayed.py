"""Caches of finished pictures, replayed over the uncached arm's: they draw nothing of their own.

An exact-match cache answers a prompt that came before, word for word; retrieval answers with the
picture of the nearest earlier prompt, as GPTCache does. Both keep the pictures that they let be
drawn, as many as a quarter of the log's jobs; the least recently used makes room.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.savings.rows import Row
from benchmarks.savings.workload import Request
from cache.entry import Sharing

SIMILARITY_MIN: Final = 0.95  # to be exceeded
EXACT, RETRIEVAL = "exact", "retrieval"
TITLES: Final = {EXACT: "exact match", RETRIEVAL: "retrieval of pictures"}

#: What a hit spares of the uncached job's time, as the worker measured its parts.
_SPARED: Final = {
    EXACT: ("encode_s", "denoise_s", "decode_s"),
    RETRIEVAL: ("denoise_s", "decode_s"),
}

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An earlier row whose picture is sent."""

    row: int
    similarity: float


class Matcher(Protocol):
    """Chooses among the earlier rows whose pictures are kept."""

    def match(self, row: int, kept: Sequence[int]) -> Answer | None:
        """The answer to a row; None has it drawn."""


class ExactMatcher:
    """The same prompt."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = requests

    def match(self, row: int, kept: Sequence[int]) -> Answer | None:
        prompt = self._requests[row].prompt
        same = (other for other in kept if self._requests[other].prompt == prompt)
        found = next(same, None)
        return None if found is None else Answer(row=found, similarity=1.0)


class NearestMatcher:
    """The nearest prompt, if it is near enough; vectors [n, dim] are of unit length."""

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors

    def match(self, row: int, kept: Sequence[int]) -> Answer | None:
        if not kept:
            return None
        similarities = self._vectors[list(kept)] @ self._vectors[row]
        nearest = int(similarities.argmax())
        similarity = float(similarities[nearest])
        is_near = similarity > SIMILARITY_MIN
        return Answer(row=kept[nearest], similarity=similarity) if is_near else None


def replay(
    name: str,
    uncached: Sequence[Row],
    requests: Sequence[Request],
    matcher: Matcher,
    *,
    sharing: Sharing,
    num_kept_max: int,
) -> list[Row]:
    """Answer each of the uncached arm's rows anew, in order."""
    kept: OrderedDict[int, None] = OrderedDict()  # rows, the least recently used first
    answered = []
    for row in uncached:
        in_reach = [
            other
            for other in kept
            if sharing is Sharing.NAMESPACE or requests[other].user == requests[row.row].user
        ]
        answer = matcher.match(row.row, in_reach)
        used = row.row if answer is None else answer.row
        kept[used] = None
        kept.move_to_end(used)
        if len(kept) > num_kept_max:
            kept.popitem(last=False)
        answered.append(_answered(name, row, answer, uncached))
    return answered


def _answered(name: str, row: Row, answer: Answer | None, uncached: Sequence[Row]) -> Row:
    if answer is None:
        return replace(row, outcome="miss")
    spared = sum(row.timings.get(part, 0.0) for part in _SPARED[name])
    return replace(
        row,
        outcome="hit",
        steps_run=0,
        picture=uncached[answer.row].picture,
        seconds=None if row.seconds is None else max(0.0, row.seconds - spared),
        timings={},
        similarity=answer.similarity,
        source_row=answer.row,
    )
