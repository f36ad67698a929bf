"""What exact search would have answered, by numpy over the same half-precision vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.lookup.vectors import K_SET, Prompts
from cache.entry import Sharing
from cache.selector import Selector

NUM_STEPS: Final = 50
NEIGHBOURS: Final = 10  # as `cache_neighbours`
SAME: Final = 2e-6  # cosines that differ by less are equal in single precision
CANDIDATES: Final = 4 * NEIGHBOURS  # looked at closely: room for ties
ROWS: Final = 32_768  # compared at a time

_FLOORS: Final = np.array([a.floor for a in Selector().allowances(NUM_STEPS)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The decision for one prompt; where neighbours tie, any k from `k_min` to `k_max` is right."""

    similarity: float  #: of the nearest; -1 where there is none
    k_min: int
    k_max: int


def exact_answers(
    cached: Prompts, kept: NDArray[np.bool_], queries: Prompts, sharing: Sharing
) -> list[Answer]:
    """One a query. `kept` [n, len(K_SET)] says which states exist."""
    answers: list[Answer | None] = [None] * len(queries)
    for group, rows in _reaches(cached, queries, sharing):
        nearest, cosines = _nearest(cached, rows, queries.vectors[group])
        for at, found, similar in zip(group, nearest, cosines, strict=True):
            answers[at] = _decide(similar, kept[found])
    return [answer for answer in answers if answer is not None]


def _reaches(
    cached: Prompts, queries: Prompts, sharing: Sharing
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Queries with the rows that they may start from."""
    by = "scopes" if sharing is Sharing.NAMESPACE else "users"
    owners, askers = getattr(cached, by), getattr(queries, by)
    order = np.argsort(owners, kind="stable")
    ordered = owners[order]
    found = []
    for owner in np.unique(askers):
        first, last = np.searchsorted(ordered, [owner, owner + 1])
        found.append((np.flatnonzero(askers == owner), order[first:last]))
    return found


def _nearest(
    cached: Prompts, rows: NDArray[np.int64], wanted: NDArray[np.float16]
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.float64]]]:
    """Rows and cosines of all that may be among the nearest, ties included, for each query."""
    asked = wanted.astype(np.float32)
    best = np.empty((len(asked), 0), np.float32)
    where = np.empty((len(asked), 0), np.int64)
    for start in range(0, len(rows), ROWS):
        block = rows[start : start + ROWS]
        cosines = asked @ cached.vectors[block].astype(np.float32).T
        top = _largest(cosines)
        best = np.hstack([best, np.take_along_axis(cosines, top, 1)])
        where = np.hstack([where, block[top]])
        top = _largest(best)
        best, where = np.take_along_axis(best, top, 1), np.take_along_axis(where, top, 1)
    return list(where), [_cosines(q, cached.vectors[r]) for q, r in zip(wanted, where, strict=True)]


def _largest(cosines: NDArray[np.float32]) -> NDArray[np.int64]:
    """[n, up to CANDIDATES]: where the largest of each row are, in no order."""
    keep = min(CANDIDATES, cosines.shape[1])
    return np.argpartition(-cosines, keep - 1, axis=1)[:, :keep]


def _cosines(one: NDArray[np.float16], others: NDArray[np.float16]) -> NDArray[np.float64]:
    """[n], of vectors whose lengths half precision has moved off 1."""
    query, vectors = one.astype(np.float64), others.astype(np.float64)
    cosines: NDArray[np.float64] = (vectors @ query) / (
        np.linalg.norm(query) * np.linalg.norm(vectors, axis=1)
    )
    return cosines


def _decide(cosines: NDArray[np.float64], kept: NDArray[np.bool_]) -> Answer:
    order = np.argsort(-cosines, kind="stable")
    cosines, kept = cosines[order], kept[order]
    last = cosines[min(NEIGHBOURS, len(cosines)) - 1]
    ks = usable_ks(cosines, kept)
    surely = ks[cosines > last + SAME]
    tied = np.sort(ks[np.abs(cosines - last) <= SAME])
    num_tied = min(NEIGHBOURS, len(cosines)) - len(surely)
    best = int(surely.max(initial=0))
    return Answer(
        similarity=float(cosines[0]),
        k_min=max(best, int(tied[:num_tied].max(initial=0))),
        k_max=max(best, int(tied.max(initial=0))),
    )


def usable_ks(cosines: NDArray[np.float64], kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[n]: of each neighbour the largest k that its cosine allows and that exists, or 0."""
    is_usable = kept & (cosines[:, None] > _FLOORS)
    ks: NDArray[np.int64] = np.where(is_usable, K_SET, 0).max(1, initial=0)
    return ks
