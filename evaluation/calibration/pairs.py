"""Prompt pairs as lookups make them: what was cached is the nearest earlier prompt of its owner."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import OptionInvalid

#: Lower edges of the similarities that get equally many pairs, and the end. Finer near 1: there are
#: most of the reuses, and there a word of style and a word that counts lie close together.
EDGES: Final = (0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 0.9999, 1.01)
NEAR: Final = 0.999  # the most alike
ROWS_MAX: Final = 8_000  # of a log; consecutive, so that what users do to their prompts stays in


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two different prompts; `asked` is finished from a state of `cached`."""

    cached: str
    asked: str
    similarity: float  #: cosine of their retrieval vectors


def draw_pairs(
    prompts: Sequence[str],
    vectors: NDArray[np.float32],
    owners: NDArray[np.int32],
    *,
    count: int,
    num_near: int = 0,
    rng: np.random.Generator,
    edges: Sequence[float] = EDGES,
) -> list[Pair]:
    """Draw about `count` pairs of a prompt and the nearest that its owner sent before.

    So that a similarity stands for what the log's users change at it, as many are drawn between
    any two edges; `num_near` more are of the most alike. `vectors` are the prompts' own [n, dim],
    of unit length; rows of the same number in `owners` [n] may start from each other's states. A
    prompt is in one pair only, so that pairs are independent, and repeats are none. Raises
    OptionInvalid where none are similar enough.
    """
    chooser = _Chooser(prompts, list(nearest_earlier(vectors, owners)), rng)
    share = -(-count // (len(edges) - 1))
    # From the most alike down: those must not lose their prompts to others.
    pairs = [
        pair for low, high in reversed(list(pairwise(edges))) for pair in chooser(low, high, share)
    ]
    pairs += chooser(NEAR, edges[-1], num_near)
    if not pairs:
        raise OptionInvalid(
            f"none of {len(prompts)} prompts is more alike than {edges[0]} to an earlier one "
            "of its owner"
        )
    return pairs


class _Chooser:
    """Draws pairs between two similarities, each prompt once."""

    def __init__(
        self,
        prompts: Sequence[str],
        nearest: Sequence[tuple[int, int, float]],
        rng: np.random.Generator,
    ) -> None:
        self._prompts, self._nearest, self._rng = prompts, nearest, rng
        self._used: set[str] = set()

    def __call__(self, low: float, high: float, count: int) -> list[Pair]:
        between = [row for row in self._nearest if low <= row[2] < high]
        pairs: list[Pair] = []
        for at in self._rng.permutation(len(between)):
            cached, asked, similarity = between[at]
            both = {self._prompts[cached], self._prompts[asked]}
            if len(pairs) == count:
                break
            if len(both) == 2 and not both & self._used:
                self._used |= both
                pairs.append(
                    Pair(
                        cached=self._prompts[cached],
                        asked=self._prompts[asked],
                        similarity=min(similarity, 1.0),
                    )
                )
        return pairs


def nearest_earlier(
    vectors: NDArray[np.float32], owners: NDArray[np.int32]
) -> Iterator[tuple[int, int, float]]:
    """(earlier row, row, similarity) for each row whose owner has an earlier one; exact.

    Of equals the first. `vectors` [n, dim] are of unit length.
    """
    for owner in np.unique(owners):
        rows = np.flatnonzero(owners == owner)
        similarities = np.tril(vectors[rows] @ vectors[rows].T + 2, k=-1)  # 0 where not earlier
        for place, at in enumerate(similarities[1:].argmax(axis=1), start=1):
            yield int(rows[at]), int(rows[place]), float(similarities[place, at] - 2)
