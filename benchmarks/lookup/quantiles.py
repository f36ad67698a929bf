"""How near a real log's prompts are: `python -m benchmarks.lookup.quantiles LOG --rows N`.

Of users who asked before, prints the quantiles of the cosine of each prompt to the nearest earlier
one, of anybody with a name and of their own, by the evaluation's embedder; how often and how near
the nearest is somebody else's or their own; and how many of their prompts ago that was.
`benchmarks.lookup.vectors` draws its own from them.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.lookup.vectors import BACK_SHARES
from evaluation.calibration.pairs import nearest_earlier as nearest_own
from evaluation.embedders import load_embedder
from evaluation.nearest import NONE_EARLIER, nearest_earlier
from evaluation.prepared import default_cache_dir, prepare
from evaluation.trace import UNKNOWN, read_trace
from evaluation.vectors import HalfVectors

SHARES: Final = tuple(range(0, 101, 5))  # percent
SEED: Final = 0


def main() -> None:
    """Embed a log and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path, help="that names users")
    parser.add_argument("--rows", type=int, help="only so many, from the start")
    parser.add_argument("--embedder", default="minilm")
    parser.add_argument("--cache-dir", type=Path, default=default_cache_dir())
    arguments = parser.parse_args()
    log = prepare(
        read_trace(arguments.log, rows_max=arguments.rows),
        load_embedder(arguments.embedder),
        cache_dir=arguments.cache_dir,
    )
    users = log.trace.users
    if users is None:
        raise SystemExit(f"{arguments.log} names no users")
    print(json.dumps({"rows": len(log.trace), **figures(log.vectors, users)}))


def figures(vectors: HalfVectors, users: NDArray[np.int32]) -> dict[str, Any]:
    """The tables and the share that `benchmarks.lookup.vectors` draws from."""
    nearest = nearest_earlier(vectors, users, rng=np.random.default_rng(SEED))
    own, others = nearest.same_user, nearest.other_users
    assert own is not None
    assert others is not None
    has_own = own > NONE_EARLIER  # false for rows without a user, too
    is_others = has_own & (others > own)
    return {
        "anybody": quantiles(np.maximum(own, others)[has_own]),
        "own": quantiles(own[has_own]),
        "share_of_others": round(float(is_others.sum() / has_own.sum()), 3),
        "own_where_nearest": quantiles(own[has_own & ~is_others]),
        "others_where_nearest": quantiles(others[is_others]),
        "own_back": [math.ceil(q) for q in np.percentile(own_backs(vectors, users), BACK_SHARES)],
    }


def own_backs(vectors: HalfVectors, users: NDArray[np.int32]) -> list[int]:
    """How many of a user's prompts ago the nearest was; of equals the first."""
    named = np.flatnonzero(users != UNKNOWN)
    owners = users[named]
    order = np.argsort(owners, kind="stable")
    first = np.flatnonzero(np.diff(owners[order], prepend=UNKNOWN))
    places = np.empty(len(named), np.int64)
    places[order] = np.arange(len(named)) - np.repeat(first, np.diff(first, append=len(named)))
    pairs = nearest_own(vectors[named].astype(np.float32), owners)
    return [int(places[row] - places[earlier]) for earlier, row, _ in pairs]


def quantiles(cosines: NDArray[np.float32]) -> list[float]:
    """At `SHARES` percent."""
    return [round(float(q), 3) for q in np.percentile(cosines, SHARES)]


if __name__ == "__main__":
    main()
