"""Prompt pairs over the range of similarity: one is cached, the other is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import OptionInvalid

#: Lower edges of the similarities that get equally many pairs, and the end.
EDGES: Final = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
SAMPLE_MAX: Final = 4_000  # prompts held against each other; consecutive, so that edits stay in


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two different prompts; `asked` is finished from a state of `cached`."""

    cached: str
    asked: str
    similarity: float  #: cosine of their retrieval vectors


def distinct(prompts: Sequence[str]) -> list[str]:
    """The first SAMPLE_MAX different prompts, in order."""
    return list(dict.fromkeys(prompts))[:SAMPLE_MAX]


def draw_pairs(
    prompts: Sequence[str],
    vectors: NDArray[np.float32],
    *,
    count: int,
    rng: np.random.Generator,
    edges: Sequence[float] = EDGES,
) -> list[Pair]:
    """Draw about `count` pairs of an earlier and a later prompt, as many between any two edges.

    `vectors` are the prompts' own [n, dim], of unit length. A prompt is in one pair only, so that
    pairs are independent. Raises OptionInvalid where no two prompts are similar enough.
    """
    similarities = np.triu(vectors @ vectors.T, k=1)
    share = -(-count // (len(edges) - 1))
    used: set[int] = set()
    pairs: list[Pair] = []
    # From the most alike down: those are the rarest, and must not lose their prompts to others.
    for low, high in reversed(list(pairwise(edges))):
        cached, asked = np.nonzero((similarities >= low) & (similarities < high))
        num_left = share
        for at in rng.permutation(len(cached)):
            a, b = int(cached[at]), int(asked[at])
            if num_left == 0:
                break
            if a in used or b in used:
                continue
            used |= {a, b}
            num_left -= 1
            pairs.append(
                Pair(cached=prompts[a], asked=prompts[b], similarity=float(similarities[a, b]))
            )
    if not pairs:
        raise OptionInvalid(f"no two of {len(prompts)} prompts are more alike than {edges[0]}")
    return pairs
