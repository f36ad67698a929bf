"""Prompts as vectors: users who iterate on their own prompts, as near to each other as real ones.

A user's first prompt is a direction of its own; each later one lies at a cosine, drawn from a real
log's, from one of the user's last prompts. The users and the order of their prompts are a real
log's, tiled until there are enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cache.entry import Sharing
from evaluation.trace import UNKNOWN, read_trace

Halves = NDArray[np.float16]

# Cosines to the nearest earlier prompt at 0, 5, ... 100 % of a log's prompts, as printed by
# python -m benchmarks.lookup.quantiles ../shared/traces/discord-dream-10.jsonl.gz --rows 17000
NEAREST_OF_ANYBODY: Final = (
    0.073, 0.450, 0.503, 0.542, 0.574, 0.605, 0.632, 0.662, 0.694, 0.729, 0.768,
    0.811, 0.851, 0.889, 0.921, 0.949, 0.970, 0.986, 1.000, 1.000, 1.000,
)  # fmt: skip
NEAREST_OF_OWN: Final = (
    -0.132, 0.191, 0.278, 0.356, 0.430, 0.511, 0.581, 0.651, 0.718, 0.772, 0.818,
    0.854, 0.890, 0.917, 0.942, 0.962, 0.978, 0.991, 1.000, 1.000, 1.000,
)  # fmt: skip
STRANGERS: Final = 0.6  # cosine to the nearest prompt of somebody else, at the median
SCOPE_SHARES: Final = (0.80, 0.15, 0.05)
REPEATED: Final = 0.9995  # from here on a prompt is the same one again
LAST: Final = 3  # prompts of a user from which the next starts
CHUNK: Final = 50_000
K_SET: Final = (5, 10, 15, 20, 25)  # of N = 50, the paper's
HOLES: Final = 0.1  # share of states that were evicted
SEED: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prompts:
    """Prompts in the order of arrival, each with its user and its scope (0, 1, ...)."""

    vectors: Halves = field(repr=False)  #: [n, dim], of unit length
    users: NDArray[np.int32]  #: [n]
    scopes: NDArray[np.int32]  #: [n]

    def __len__(self) -> int:
        return len(self.users)


def make_prompts(
    log: Path, *, num: int, num_queries: int, dimension: int
) -> tuple[Prompts, Prompts]:
    """Prompts to cache and, made in the same way after them, prompts to look up."""
    chance = np.random.default_rng(SEED)
    users = tiled(named_users(log), num)
    asked = chance.choice(users, num_queries)  # who asked often asks again
    walk = _Walk(dimension, num, chance)
    vectors = walk.vectors(users)
    scope_of_user = chance.choice(len(SCOPE_SHARES), users.max() + 1, p=SCOPE_SHARES)
    scope_of_user = scope_of_user.astype(np.int32)
    return (
        Prompts(vectors=vectors, users=users, scopes=scope_of_user[users]),
        Prompts(
            vectors=walk.next_of(vectors, users, asked), users=asked, scopes=scope_of_user[asked]
        ),
    )


def make_kept(num: int) -> NDArray[np.bool_]:
    """[num, len(K_SET)]: which states of each prompt exist; at least one does."""
    kept: NDArray[np.bool_] = np.random.default_rng(SEED).random((num, len(K_SET))) >= HOLES
    kept[~kept.any(1), 0] = True
    return kept


def log_quantiles(shares: NDArray[np.float64], sharing: Sharing) -> NDArray[np.float64]:
    """The log's cosines to the nearest earlier prompt, at shares of its prompts."""
    known = NEAREST_OF_OWN if sharing is Sharing.USER else NEAREST_OF_ANYBODY
    return np.interp(shares, np.linspace(0, 1, len(known)), known)


def named_users(log: Path) -> NDArray[np.int32]:
    """The users of a log's rows, in their order; rows that name none are left out."""
    users = read_trace(log).users
    assert users is not None, f"{log} names no users"
    named: NDArray[np.int32] = users[users != UNKNOWN]
    return named


def tiled(users: NDArray[np.int32], num: int) -> NDArray[np.int32]:
    """Repeat a log with other users each time, to `num` rows."""
    rows = np.arange(num)
    tile = (rows // len(users)).astype(np.int32)
    found: NDArray[np.int32] = users[rows % len(users)] + tile * (users.max() + 1)
    return found


class _Walk:
    """Draws vectors: directions from a subspace of as many dimensions as keep strangers apart."""

    def __init__(self, dimension: int, num: int, chance: np.random.Generator) -> None:
        self._chance = chance
        # On a sphere of d dimensions the nearest of n has cosine c where n (1-c^2)^((d-1)/2) = 1.
        rank = min(dimension, round(1 - 2 * np.log(num) / np.log(1 - STRANGERS**2)))
        basis = np.linalg.qr(chance.standard_normal((dimension, rank)))[0]
        self._basis = basis.T.astype(np.float32)  # [rank, dim]

    def vectors(self, users: NDArray[np.int32]) -> Halves:
        """[n, dim]: for each row the next prompt of its user."""
        order, starts = _by_user(users)
        ranks = np.arange(len(users)) - np.repeat(starts, np.diff(starts, append=len(users)))
        by_rank = np.argsort(ranks, kind="stable")  # positions in `order`
        found = np.empty((len(users), self._basis.shape[1]), dtype=np.float16)
        ends = np.cumsum(np.bincount(ranks))
        for rank, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            for positions in _chunks(by_rank[start:end]):
                back = self._back(np.full(len(positions), rank))
                parents = found[order[positions - back]]
                is_first = rank == 0
                rows = self._fresh(len(positions)) if is_first else self._edited(parents)
                found[order[positions]] = rows
        return found

    def next_of(
        self, vectors: Halves, users: NDArray[np.int32], asked: NDArray[np.int32]
    ) -> Halves:
        """[len(asked), dim]: one more prompt of each user, who has some already."""
        order, _ = _by_user(users)
        ordered = users[order]
        first, end = (np.searchsorted(ordered, asked, side=side) for side in ("left", "right"))
        return self._edited(vectors[order[end - self._back(end - first)]])

    def _back(self, num_before: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many prompts ago the one was that is changed; 0 where there is none."""
        last = np.minimum(num_before, LAST)
        back: NDArray[np.int64] = np.where(
            last > 0, 1 + (self._chance.random(len(last)) * last).astype(np.int64), 0
        )
        return back

    def _fresh(self, num: int) -> NDArray[np.float32]:
        drawn = self._chance.standard_normal((num, len(self._basis)), dtype=np.float32)
        return _unit(drawn @ self._basis)

    def _edited(self, parents: Halves) -> Halves:
        """[n, dim]: at a cosine of each parent that a real log has."""
        cosines = log_quantiles(self._chance.random(len(parents)), Sharing.NAMESPACE)[:, None]
        origin = _unit(parents.astype(np.float32))
        aside = self._fresh(len(parents))
        aside = _unit(aside - (aside * origin).sum(1, keepdims=True) * origin)
        moved = cosines * origin + np.sqrt(1 - cosines**2) * aside
        return np.where(cosines >= REPEATED, parents, moved.astype(np.float16))


def _by_user(users: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows with each user's together, in their order; and where in it each user begins."""
    order = np.argsort(users, kind="stable")
    return order, np.flatnonzero(np.diff(users[order], prepend=-1))


def _chunks(rows: NDArray[np.int64]) -> Sequence[NDArray[np.int64]]:
    return [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit
