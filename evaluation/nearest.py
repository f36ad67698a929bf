"""How similar a prompt's nearest earlier neighbour is: among all, its user's own, and others'."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from evaluation.neighbours import BLOCK, tiles
from evaluation.trace import UNKNOWN
from evaluation.vectors import HalfVectors, Progress

SAMPLE_MAX: Final = 20_000  # rows held against all before them: linear in the log
NONE_EARLIER: Final = -1.0  # cosine where there is nothing to compare with


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Nearest:
    """Cosine to the nearest earlier prompt, for some rows of a log."""

    rows: NDArray[np.int32] = field(repr=False)  #: [m], rising
    any_user: NDArray[np.float32] = field(repr=False)  #: [m]
    #: [m]; None without users. NaN for rows that name none.
    same_user: NDArray[np.float32] | None = field(repr=False)
    other_users: NDArray[np.float32] | None = field(repr=False)


def nearest_earlier(
    vectors: HalfVectors,
    users: NDArray[np.int32] | None,
    *,
    rng: np.random.Generator,
    sample_max: int = SAMPLE_MAX,
    progress: Progress = lambda _: None,
) -> Nearest:
    """Hold all rows, or a sample of a longer log, against all rows before them. Exact."""
    num_rows = len(vectors)
    rows = np.arange(num_rows, dtype=np.int32)
    if num_rows > sample_max:
        rows = np.sort(rng.choice(rows, sample_max, replace=False))
    blocks = []
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        blocks.append(_nearest_of_block(vectors, users, block))
        progress(len(block))
    best = np.concatenate(blocks, axis=1)
    if users is None:
        return Nearest(rows=rows, any_user=best[0], same_user=None, other_users=None)
    is_unknown = users[rows] == UNKNOWN
    same, other = (np.where(is_unknown, np.nan, each).astype(np.float32) for each in best[1:])
    return Nearest(rows=rows, any_user=best[0], same_user=same, other_users=other)


def _nearest_of_block(
    vectors: HalfVectors, users: NDArray[np.int32] | None, block: NDArray[np.int32]
) -> NDArray[np.float32]:
    """[3, block]: the best among all, the same user's, other users'; [1, block] without users."""
    queries = vectors[block].astype(np.float32)
    best = np.full((1 if users is None else 3, len(block)), NONE_EARLIER, dtype=np.float32)
    for tile in tiles(np.arange(block[-1], dtype=np.int32)):
        similarities = queries @ vectors[tile].astype(np.float32).T
        if tile[-1] >= block[0]:
            similarities[tile[None, :] >= block[:, None]] = NONE_EARLIER
        np.maximum(best[0], similarities.max(axis=1), out=best[0])
        if users is not None:
            is_same = users[block][:, None] == users[tile][None, :]
            same = np.where(is_same, similarities, NONE_EARLIER).max(axis=1)
            # A row without a user may well be the same person's, so it is no other user's.
            is_other = ~is_same & (users[tile] != UNKNOWN)
            other = np.where(is_other, similarities, NONE_EARLIER).max(axis=1)
            np.maximum(best[1], same, out=best[1])
            np.maximum(best[2], other, out=best[2])
    return best
