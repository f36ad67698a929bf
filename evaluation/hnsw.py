"""Nearest earlier neighbours of large groups by HNSW, as pgvector finds them in a namespace.

A group is taken in blocks. Each is searched in the graph of the rows before it, and exactly among
itself, then added: so no row finds a later one, and time grows as n log n, memory as n.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import PackageMissing
from evaluation.neighbours import Edges, Neighbours, edges_within, joined, nearest_of
from evaluation.vectors import HalfVectors, Progress

BLOCK: Final = 4_096  # rows searched and added at a time
LINKS: Final = 16  # of a row in the graph (HNSW's M), as pgvector's default
EF_CONSTRUCTION: Final = 80
EF_SEARCH: Final = 128


def hnsw_edges(
    vectors: HalfVectors,
    members: NDArray[np.int32],
    *,
    floor: float,
    num_max: int,
    progress: Progress = lambda _: None,
) -> Iterator[Edges]:
    """The edges among one group's rows (`members`, rising), a block at a time."""
    index = _empty_index(vectors.shape[1])
    for start in range(0, len(members), BLOCK):
        block = members[start : start + BLOCK]
        queries = vectors[block].astype(np.float32)
        found = [edges_within(queries, vectors, block, block, floor=floor)]
        if start:
            found.append(_searched(index, queries, block, members, floor, num_max))
        index.add(queries)
        yield nearest_of(joined(found), num_max)
        progress(len(block))


def _empty_index(dimension: int) -> Any:
    try:
        faiss = import_module("faiss")
    except ModuleNotFoundError:
        raise PackageMissing("faiss-cpu", needed_for="a log of this length") from None
    index = faiss.IndexHNSWSQ(
        dimension, faiss.ScalarQuantizer.QT_fp16, LINKS, faiss.METRIC_INNER_PRODUCT
    )
    index.hnsw.efConstruction = EF_CONSTRUCTION
    index.hnsw.efSearch = EF_SEARCH
    return index


def _searched(
    index: Any,
    queries: NDArray[np.float32],
    block: NDArray[np.int32],
    members: NDArray[np.int32],
    floor: float,
    num_max: int,
) -> Edges:
    similarities, positions = index.search(queries, num_max)
    at, column = np.nonzero((positions >= 0) & (similarities > floor))
    return Edges(
        sources=block[at],
        rows=members[positions[at, column]],
        similarities=similarities[at, column].astype(np.float32),
    )


def recall(
    found: Neighbours,
    vectors: HalfVectors,
    groups: NDArray[np.int32],
    *,
    num_sampled: int,
    rng: np.random.Generator,
) -> float:
    """Share of the true neighbours of some rows that the lists hold, by exact search.

    Counted within the first `num_max` of each row; 1.0 where no sampled row has neighbours.
    """
    sampled = np.sort(rng.choice(len(found), min(num_sampled, len(found)), replace=False))
    wanted = held = 0
    for row in sampled.astype(np.int32):
        earlier = np.flatnonzero(groups[: row + 1] == groups[row])[:-1].astype(np.int32)
        true = _true_neighbours(vectors, row, earlier, found)
        wanted += len(true)
        held += len(np.intersect1d(true, found.rows[found.starts[row] : found.starts[row + 1]]))
    return held / wanted if wanted else 1.0


def _true_neighbours(
    vectors: HalfVectors, row: np.int32, earlier: NDArray[np.int32], found: Neighbours
) -> NDArray[np.int32]:
    similarities = np.concatenate(
        [np.empty(0, np.float32)]
        + [
            vectors[earlier[at : at + 65_536]].astype(np.float32) @ vectors[row].astype(np.float32)
            for at in range(0, len(earlier), 65_536)
        ]
    )
    near = np.flatnonzero(similarities > found.floor)
    order = np.lexsort((-near, -similarities[near]))[: found.num_max]
    return earlier[near[order]]
