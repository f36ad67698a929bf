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
    rng: np.random.Generator,
    edges: Sequence[float] = EDGES,
) -> list[Pair]:
    """Draw about `count` pairs of a prompt and the nearest that its owner sent before.

    So that a similarity stands for what the log's users change at it, as many are drawn between
    any two edges. `vectors` are the prompts' own [n, dim], of unit length; rows of the same number
    in `owners` [n] may start from each other's states. A prompt is in one pair only, so that pairs
    are independent, and repeats are none. Raises OptionInvalid where none are similar enough.
    """
    nearest = list(nearest_earlier(vectors, owners))
    share = -(-count // (len(edges) - 1))
    used: set[str] = set()
    pairs: list[Pair] = []
    # From the most alike down: those must not lose their prompts to others.
    for low, high in reversed(list(pairwise(edges))):
        between = [row for row in nearest if low <= row[2] < high]
        num_left = share
        for at in rng.permutation(len(between)):
            cached, asked, similarity = between[at]
            both = {prompts[cached], prompts[asked]}
            if num_left == 0:
                break
            if len(both) == 1 or both & used:
                continue
            used |= both
            num_left -= 1
            pairs.append(
                Pair(cached=prompts[cached], asked=prompts[asked], similarity=min(similarity, 1.0))
            )
    if not pairs:
        raise OptionInvalid(
            f"none of {len(prompts)} prompts is more alike than {edges[0]} to an earlier one "
            "of its owner"
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
