"""How near a real log's prompts are: `python -m benchmarks.lookup.quantiles LOG --rows N`.

Prints the quantiles of the cosine of each prompt to its nearest earlier one, of anybody and of the
same user, by the evaluation's embedder; `benchmarks.lookup.vectors` draws its own from them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from evaluation.embedders import load_embedder
from evaluation.prepared import default_cache_dir, prepare
from evaluation.trace import UNKNOWN, read_trace

SHARES: Final = tuple(range(0, 101, 5))  # percent
BLOCK: Final = 1_024  # rows compared at a time


def main() -> None:
    """Embed a log and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path)
    parser.add_argument("--rows", type=int, help="only so many, from the start")
    parser.add_argument("--embedder", default="minilm")
    parser.add_argument("--cache-dir", type=Path, default=default_cache_dir())
    arguments = parser.parse_args()
    log = prepare(
        read_trace(arguments.log, rows_max=arguments.rows),
        load_embedder(arguments.embedder),
        cache_dir=arguments.cache_dir,
    )
    anybody, own = nearest_earlier(np.asarray(log.vectors, dtype=np.float32), log.trace.users)
    found = {"rows": len(log.trace), "anybody": quantiles(anybody), "own": quantiles(own)}
    print(json.dumps(found))


def nearest_earlier(
    vectors: NDArray[np.float32], users: NDArray[np.int32] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Each row's cosine to the nearest earlier one, of anybody and of its own user; NaN for none.

    `vectors` [n, dim] of unit length.
    """
    owners = np.full(len(vectors), UNKNOWN) if users is None else users
    anybody = np.full(len(vectors), np.nan, dtype=np.float32)
    own = anybody.copy()
    for start in range(0, len(vectors), BLOCK):
        end = min(start + BLOCK, len(vectors))
        cosines = vectors[start:end] @ vectors[:end].T
        is_later = np.arange(end)[None, :] >= np.arange(start, end)[:, None]
        cosines[is_later] = -np.inf
        anybody[start:end] = cosines.max(1)
        same = (owners[start:end, None] == owners[None, :end]) & (owners[start:end, None] >= 0)
        own[start:end] = np.where(same, cosines, -np.inf).max(1)
    for found in (anybody, own):
        found[~np.isfinite(found)] = np.nan
    return anybody, own


def quantiles(cosines: NDArray[np.float32]) -> list[float]:
    """At `SHARES` percent of the rows that have a neighbour."""
    return [round(float(q), 3) for q in np.nanpercentile(cosines, SHARES)]


if __name__ == "__main__":
    main()
