"""The neighbour lists of a log, made once for each embedder and sharing and kept on disk."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from evaluation.hnsw import EF_SEARCH, hnsw_edges, recall
from evaluation.neighbours import (
    NUM_MAX,
    Edges,
    Neighbours,
    exact_edges,
    gather,
    group_members,
)
from evaluation.vectors import HalfVectors, Progress

EXACT_MAX: Final = 65_536  # rows of a group; exact search of so many takes half a minute
RECALL_SAMPLE: Final = 200  # rows


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NeighbourLists:
    """A log's neighbours, and how far they can be trusted."""

    neighbours: Neighbours = field(repr=False)
    #: Share of the true neighbours that the lists hold; None where the search was exact.
    recall: float | None

    @property
    def caveat(self) -> str:
        """What a reader must know."""
        how = "exact" if self.recall is None else f"HNSW, recall {self.recall:.4f} on a sample"
        cut = self.neighbours.cut_share
        return f"neighbours: {how}; {cut:.1%} of rows have {self.neighbours.num_max} or more"


def neighbour_lists(
    vectors: HalfVectors,
    groups: NDArray[np.int32],
    *,
    key: str,
    floor: float,
    cache_dir: Path,
    num_max: int = NUM_MAX,
    exact_max: int = EXACT_MAX,
    progress: Progress = lambda _: None,
) -> NeighbourLists:
    """Each row's nearest earlier rows of its group above `floor`.

    `key` names the log and the embedder. Groups of more than `exact_max` rows are searched by HNSW.
    """
    path = cache_dir / "neighbours" / f"{_key(key, groups, floor, num_max, exact_max)}.npz"
    if path.is_file():
        progress(len(groups))
        return _load(path, num_max=num_max, floor=floor)
    lists = _search(vectors, groups, floor, num_max, exact_max, progress)
    _save(path, lists)
    return lists


def _search(
    vectors: HalfVectors,
    groups: NDArray[np.int32],
    floor: float,
    num_max: int,
    exact_max: int,
    progress: Progress,
) -> NeighbourLists:
    parts: list[Edges] = []
    is_exact = True
    for members in group_members(groups):
        search = exact_edges if len(members) <= exact_max else hnsw_edges
        is_exact &= search is exact_edges
        parts += search(vectors, members, floor=floor, num_max=num_max, progress=progress)
    neighbours = gather(parts, num_rows=len(groups), num_max=num_max, floor=floor)
    measured = None if is_exact else _recall(neighbours, vectors, groups)
    return NeighbourLists(neighbours=neighbours, recall=measured)


def _recall(neighbours: Neighbours, vectors: HalfVectors, groups: NDArray[np.int32]) -> float:
    rng = np.random.default_rng(0)
    return recall(neighbours, vectors, groups, num_sampled=RECALL_SAMPLE, rng=rng)


def _load(path: Path, *, num_max: int, floor: float) -> NeighbourLists:
    with np.load(path) as saved:
        measured = float(saved["recall"])
        return NeighbourLists(
            neighbours=Neighbours(
                num_max=num_max,
                floor=floor,
                starts=saved["starts"],
                rows=saved["rows"],
                similarities=saved["similarities"],
            ),
            recall=None if np.isnan(measured) else measured,
        )


def _save(path: Path, lists: NeighbourLists) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.partial")
    with unfinished.open("wb") as file:
        np.savez(
            file,
            starts=lists.neighbours.starts,
            rows=lists.neighbours.rows,
            similarities=lists.neighbours.similarities,
            recall=np.float64(np.nan if lists.recall is None else lists.recall),
        )
    unfinished.rename(path)


def _key(key: str, groups: NDArray[np.int32], floor: float, num_max: int, exact_max: int) -> str:
    options = f"{key} {floor!r} {num_max} {exact_max} {EF_SEARCH}".encode()
    return hashlib.sha256(options + groups.tobytes()).hexdigest()[:40]
