"""Prompts as vectors: users who iterate on prompts, as near to each other as real ones.

A user's first prompt is a direction of its own; each later one starts from another, the user's own
or, less often, somebody else's of the scope, at a cosine from it. Whose, how many prompts ago and
how near are drawn from a real log's. The users and the order of their prompts are that log's,
tiled until there are enough.
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

# Of users who asked before: cosines to the nearest earlier prompt at 0, 5, ... 100 % of theirs. By
# python -m benchmarks.lookup.quantiles ../shared/traces/discord-dream-10.jsonl.gz --rows 17000
NEAREST_OF_ANYBODY: Final = (
    0.157, 0.452, 0.514, 0.557, 0.598, 0.631, 0.669, 0.704, 0.746, 0.786, 0.825,
    0.859, 0.892, 0.919, 0.943, 0.963, 0.979, 0.992, 1.000, 1.000, 1.000,
)  # fmt: skip
NEAREST_OF_OWN: Final = (
    -0.132, 0.191, 0.278, 0.356, 0.430, 0.511, 0.581, 0.651, 0.718, 0.772, 0.818,
    0.854, 0.890, 0.917, 0.942, 0.962, 0.978, 0.991, 1.000, 1.000, 1.000,
)  # fmt: skip
# How often the nearest is somebody else's; how near it is when it is that, or when it is one's own;
# how many of one's prompts ago the nearest of one's own was.
SHARE_OF_OTHERS: Final = 0.321
OTHERS_WHERE_NEAREST: Final = (
    0.157, 0.382, 0.423, 0.454, 0.480, 0.502, 0.518, 0.533, 0.551, 0.567, 0.585,
    0.599, 0.614, 0.627, 0.646, 0.663, 0.682, 0.703, 0.739, 0.790, 1.000,
)  # fmt: skip
OWN_WHERE_NEAREST: Final = (
    0.301, 0.622, 0.691, 0.740, 0.777, 0.809, 0.836, 0.860, 0.883, 0.905, 0.922,
    0.940, 0.953, 0.967, 0.977, 0.986, 0.994, 1.000, 1.000, 1.000, 1.000,
)  # fmt: skip
BACK_SHARES: Final = (0.0, 50.0, 75.0, 90.0, 95.0, 98.0, 99.0, 99.7, 100.0)  # percent
OWN_BACK: Final = (1, 1, 4, 10, 21, 43, 72, 123, 285)
STRANGERS: Final = 0.6  # cosine to the nearest prompt of somebody else, at the median
SCOPE_SHARES: Final = (0.80, 0.15, 0.05)
REPEATED: Final = 0.9995  # from here on a prompt is the same one again
CHUNK: Final = 50_000
K_SET: Final = (5, 10, 15, 20, 25)  # of N = 50, the paper's
HOLES: Final = 0.1  # share of states that were evicted
SEED: Final = 5


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
    scope_of_user = chance.choice(len(SCOPE_SHARES), users.max() + 1, p=SCOPE_SHARES)
    scope_of_user = scope_of_user.astype(np.int32)
    walk = _Walk(users, scope_of_user[users], dimension, chance)
    cached = Prompts(vectors=walk.vectors(), users=users, scopes=scope_of_user[users])
    asked = chance.choice(users, num_queries)  # who asked often asks again
    queries = Prompts(
        vectors=walk.next_of(cached.vectors, asked), users=asked, scopes=scope_of_user[asked]
    )
    return cached, queries


def make_kept(num: int) -> NDArray[np.bool_]:
    """[num, len(K_SET)]: which states of each prompt exist; at least one does."""
    kept: NDArray[np.bool_] = np.random.default_rng(SEED).random((num, len(K_SET))) >= HOLES
    kept[~kept.any(1), 0] = True
    return kept


def log_quantiles(shares: NDArray[np.float64], sharing: Sharing) -> NDArray[np.float64]:
    """The log's cosines to the nearest earlier prompt; shares are of users' later prompts."""
    return _quantiles(NEAREST_OF_OWN if sharing is Sharing.USER else NEAREST_OF_ANYBODY, shares)


def _quantiles(known: Sequence[float], shares: NDArray[np.float64]) -> NDArray[np.float64]:
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

    def __init__(
        self,
        users: NDArray[np.int32],
        scopes: NDArray[np.int32],
        dimension: int,
        chance: np.random.Generator,
    ) -> None:
        self._chance = chance
        # On a sphere of d dimensions the nearest of n has cosine c where n (1-c^2)^((d-1)/2) = 1.
        rank = min(dimension, round(1 - 2 * np.log(len(users)) / np.log(1 - STRANGERS**2)))
        basis = np.linalg.qr(chance.standard_normal((dimension, rank)))[0]
        self._basis = basis.T.astype(np.float32)  # [rank, dim]
        self._scopes = scopes
        by_user = np.argsort(users, kind="stable")
        starts = np.flatnonzero(np.diff(users[by_user], prepend=-1))
        # Rows with each user's together, and where in it a row is.
        self._by_user, self._users_sorted = by_user, users[by_user]
        self._positions = np.argsort(by_user)
        # Which of its user's prompts a row is.
        num_of_user = np.diff(starts, append=len(users))
        self._places = self._positions - np.repeat(starts, num_of_user)[self._positions]
        # Rows as they are drawn: everybody's first, everybody's second, ...; also by scope.
        self._drawn = np.argsort(self._places, kind="stable")
        self._of_scope = [self._drawn[scopes[self._drawn] == s] for s in range(len(SCOPE_SHARES))]

    def vectors(self) -> Halves:
        """[n, dim]: one for each row."""
        found = np.empty((len(self._users_sorted), self._basis.shape[1]), dtype=np.float16)
        ends = np.cumsum(np.bincount(self._places))
        for place, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            for rows in _chunks(self._drawn[start:end]):
                if place == 0:
                    found[rows] = self._fresh(len(rows))
                else:
                    own = self._by_user[self._positions[rows] - self._backs(self._places[rows])]
                    found[rows] = self._started(found, own, place)
        return found

    def next_of(self, vectors: Halves, asked: NDArray[np.int32]) -> Halves:
        """[len(asked), dim]: one more prompt of each user, who has some already."""
        first = np.searchsorted(self._users_sorted, asked, side="left")
        end = np.searchsorted(self._users_sorted, asked, side="right")
        own = self._by_user[end - self._backs(end - first)]
        return self._started(vectors, own, len(vectors))

    def _backs(self, num_before: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many of the user's prompts ago the one was that the next starts from."""
        drawn = np.interp(100 * self._chance.random(len(num_before)), BACK_SHARES, OWN_BACK)
        backs: NDArray[np.int64] = np.minimum(np.ceil(drawn).astype(np.int64), num_before)
        return backs

    def _fresh(self, num: int) -> NDArray[np.float32]:
        drawn = self._chance.standard_normal((num, len(self._basis)), dtype=np.float32)
        return _unit(drawn @ self._basis)

    def _started(self, vectors: Halves, own: NDArray[np.int64], place: int) -> Halves:
        """[n, dim]: what starts from `own` rows or, some, from anybody's places before `place`."""
        is_others = self._chance.random(len(own)) < SHARE_OF_OTHERS
        parents = np.where(is_others, self._others(self._scopes[own], place), own)
        shares = self._chance.random(len(own))
        cosines = np.where(
            is_others,
            _quantiles(OTHERS_WHERE_NEAREST, shares),
            _quantiles(OWN_WHERE_NEAREST, shares),
        )
        return self._edited(vectors[parents], cosines[:, None])

    def _others(self, scopes: NDArray[np.int32], place: int) -> NDArray[np.int64]:
        """[n]: a row of each scope that is drawn already; it may arrive later than what follows."""
        found = np.empty(len(scopes), np.int64)
        for scope, rows in enumerate(self._of_scope):
            asked = scopes == scope
            num_drawn = int(np.searchsorted(self._places[rows], place))
            found[asked] = rows[self._chance.integers(num_drawn, size=asked.sum())]
        return found

    def _edited(self, parents: Halves, cosines: NDArray[np.float64]) -> Halves:
        """[n, dim]: at a cosine from each parent."""
        origin = _unit(parents.astype(np.float32))
        aside = self._fresh(len(parents))
        aside = _unit(aside - (aside * origin).sum(1, keepdims=True) * origin)
        moved = cosines * origin + np.sqrt(1 - cosines**2) * aside
        return np.where(cosines >= REPEATED, parents, moved.astype(np.float16))


def _chunks(rows: NDArray[np.int64]) -> Sequence[NDArray[np.int64]]:
    return [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit
