"""Nearest earlier neighbours of every row, by exact blocked matrix products.

The search of a log of n rows is quadratic in the largest group; what it keeps is linear in n.
Larger groups go to `evaluation.hnsw`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from evaluation.vectors import HalfVectors, Progress

BLOCK: Final = 1_024  # rows searched at a time
TILE: Final = 8_192  # earlier rows they are held against: 32 MiB of similarities
NUM_MAX: Final = 64  # neighbours kept for a row


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Neighbours:
    """For each of n rows its nearest earlier rows above a floor, nearest first, then newest.

    Row i's are `rows[starts[i]:starts[i + 1]]`. A row with `num_max` of them may have more.
    """

    num_max: int
    floor: float
    starts: NDArray[np.int64] = field(repr=False)  #: [n + 1]
    rows: NDArray[np.int32] = field(repr=False)  #: [edges]
    similarities: NDArray[np.float32] = field(repr=False)  #: [edges]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def counts(self) -> NDArray[np.int64]:
        """[n]: how many neighbours each row has."""
        return np.diff(self.starts)

    @property
    def cut_share(self) -> float:
        """Share of rows whose list is full, so that it may lack neighbours."""
        return float(np.mean(self.counts >= self.num_max))

    def sources(self) -> NDArray[np.int32]:
        """[edges]: the row whose neighbour an edge leads to."""
        return np.repeat(np.arange(len(self), dtype=np.int32), self.counts)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Edges:
    """Pairs of a row and an earlier one, in any order."""

    sources: NDArray[np.int32]
    rows: NDArray[np.int32]
    similarities: NDArray[np.float32]


def gather(parts: list[Edges], *, num_rows: int, num_max: int, floor: float) -> Neighbours:
    """Sort edges into lists of at most `num_max`."""
    edges = nearest_of(joined(parts), num_max)
    starts = np.zeros(num_rows + 1, dtype=np.int64)
    np.cumsum(np.bincount(edges.sources, minlength=num_rows), out=starts[1:])
    return Neighbours(
        num_max=num_max,
        floor=floor,
        starts=starts,
        rows=edges.rows,
        similarities=edges.similarities,
    )


def nearest_of(edges: Edges, num_max: int) -> Edges:
    """Sort by row, then nearest first, then newest; keep `num_max` of each row."""
    order = np.lexsort((-edges.rows, -edges.similarities, edges.sources))
    sources = edges.sources[order]
    is_first = np.flatnonzero(np.diff(sources, prepend=-1))
    counts = np.diff(is_first, append=len(sources))
    rank = np.arange(len(sources)) - np.repeat(is_first, counts)
    kept = order[rank < num_max]
    return Edges(
        sources=edges.sources[kept],
        rows=edges.rows[kept],
        similarities=edges.similarities[kept],
    )


def search_exact(
    vectors: HalfVectors,
    groups: NDArray[np.int32],
    *,
    floor: float,
    num_max: int = NUM_MAX,
    progress: Progress = lambda _: None,
) -> Neighbours:
    """Find each row's nearest earlier rows of its own group, above `floor`."""
    parts = [
        part
        for members in group_members(groups)
        for part in exact_edges(vectors, members, floor=floor, num_max=num_max, progress=progress)
    ]
    return gather(parts, num_rows=len(vectors), num_max=num_max, floor=floor)


def exact_edges(
    vectors: HalfVectors,
    members: NDArray[np.int32],
    *,
    floor: float,
    num_max: int,
    progress: Progress = lambda _: None,
) -> Iterator[Edges]:
    """The edges among one group's rows (`members`, rising), a block at a time."""
    for start in range(0, len(members), BLOCK):
        block = members[start : start + BLOCK]
        queries = vectors[block].astype(np.float32)
        found: list[Edges] = []
        for tile in tiles(members[: start + len(block)]):
            found.append(edges_within(queries, vectors, block, tile, floor=floor))
            if sum(len(edges.rows) for edges in found) > 4 * BLOCK * num_max:
                found = [nearest_of(joined(found), num_max)]
        yield nearest_of(joined(found), num_max)
        progress(len(block))


def edges_within(
    queries: NDArray[np.float32],
    vectors: HalfVectors,
    block: NDArray[np.int32],
    tile: NDArray[np.int32],
    *,
    floor: float,
) -> Edges:
    """The pairs of a block's rows and the earlier rows of a tile that are above the floor."""
    similarities = queries @ vectors[tile].astype(np.float32).T
    is_near = similarities > floor
    if tile[-1] >= block[0]:
        is_near &= tile[None, :] < block[:, None]
    at, to = np.nonzero(is_near)
    return Edges(sources=block[at], rows=tile[to], similarities=similarities[at, to])


def tiles(members: NDArray[np.int32]) -> Iterator[NDArray[np.int32]]:
    """Rows in pieces that fit the memory."""
    return (members[start : start + TILE] for start in range(0, len(members), TILE))


def group_members(groups: NDArray[np.int32]) -> list[NDArray[np.int32]]:
    """The rows of each group, rising."""
    order = np.argsort(groups, kind="stable").astype(np.int32)
    borders = np.flatnonzero(np.diff(groups[order])) + 1
    return np.split(order, borders)


def joined(parts: list[Edges]) -> Edges:
    """All edges of the parts."""
    if not parts:
        parts = [_NO_EDGES]
    return Edges(
        sources=np.concatenate([part.sources for part in parts]),
        rows=np.concatenate([part.rows for part in parts]),
        similarities=np.concatenate([part.similarities for part in parts]),
    )


_NO_EDGES: Final = Edges(
    sources=np.empty(0, dtype=np.int32),
    rows=np.empty(0, dtype=np.int32),
    similarities=np.empty(0, dtype=np.float32),
)
