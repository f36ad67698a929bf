"""How far back the latest usable neighbour is: what a cache of the latest prompts would find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from evaluation.neighbours import Neighbours

NO_REUSE: Final = np.iinfo(np.int64).max
PARTS: Final = 10  # of the log, to see whether reuse grows with it


@dataclass(frozen=True, slots=True, kw_only=True)
class Locality:
    """Reuse above one similarity; distances are in rows of the log."""

    floor: float
    #: Share of rows with any earlier neighbour above the floor.
    reuse_share: float
    #: Of those rows: half have a neighbour as close as this.
    median_distance: int | None
    #: (last W prompts cached, share of rows with a neighbour among them).
    share_by_window: tuple[tuple[int, float], ...]
    #: Share of rows with a neighbour, in each tenth of the log.
    share_by_part: tuple[float, ...]


def latest_distances(neighbours: Neighbours, floor: float) -> NDArray[np.int64]:
    """[n]: rows back to the latest of the listed neighbours above the floor, or NO_REUSE.

    Of a row whose list is full only the listed ones count, so its distance is an upper bound.
    """
    is_near = neighbours.similarities > floor
    sources = neighbours.sources()[is_near].astype(np.int64)
    distances: NDArray[np.int64] = np.full(len(neighbours), NO_REUSE)
    np.minimum.at(distances, sources, sources - neighbours.rows[is_near])
    return distances


def locality(neighbours: Neighbours, floors: Sequence[float]) -> tuple[Locality, ...]:
    """For each floor how often, and how far back, a prompt finds something."""
    return tuple(_locality(latest_distances(neighbours, floor), floor) for floor in floors)


def windows(num_rows: int) -> list[int]:
    """1, 2, 5, 10, 20, 50 ... up to the whole log."""
    steps = [digit * 10**power for power in range(9) for digit in (1, 2, 5)]
    return [*(step for step in steps if step < num_rows), num_rows]


def _locality(distances: NDArray[np.int64], floor: float) -> Locality:
    found = distances[distances < NO_REUSE]
    return Locality(
        floor=floor,
        reuse_share=len(found) / len(distances),
        median_distance=int(np.median(found)) if len(found) else None,
        share_by_window=tuple(
            (window, float(np.mean(distances <= window))) for window in windows(len(distances))
        ),
        share_by_part=tuple(
            float(np.mean(part < NO_REUSE))
            for part in np.array_split(distances, PARTS)
            if len(part)
        ),
    )
