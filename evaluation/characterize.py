"""The workload study of NIRVANA (NSDI'24), for any prompt log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cache.selector import PAPER
from evaluation.locality import Locality, locality
from evaluation.nearest import Nearest, nearest_earlier
from evaluation.popularity import Popularity, popularity
from evaluation.prepared import Prepared
from evaluation.sessions import Sessions, find_sessions
from evaluation.sharing import SharedBy

FLOORS: Final = tuple(floor for _, floor in PAPER.rows)
_BINS: Final = np.linspace(-0.2, 1.0, 61)
SEED: Final = 0  # of samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Similarity:
    """Cosine to the nearest earlier prompt of somebody."""

    among: str  #: whose
    num_rows: int  #: that were measured
    median: float
    #: (floor, share of rows above it).
    shares: tuple[tuple[float, float], ...]
    #: (cosine, share of rows at or above it), for a plot.
    curve: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Characterization:
    """What a log holds; None or absent where a column is missing, and said so in `caveats`."""

    trace: str
    num_rows: int
    num_users: int | None
    unknown_user_share: float
    has_times: bool
    embedder: str
    similarity: tuple[Similarity, ...]
    popularity: Popularity
    locality: tuple[Locality, ...]
    sessions: Sessions | None
    caveats: tuple[str, ...]


def characterize(prepared: Prepared) -> Characterization:
    """Study a log; raises EvaluationError."""
    trace = prepared.trace
    lists = prepared.lists(SharedBy.NAMESPACE, floor=FLOORS[0])
    rng = np.random.default_rng(SEED)
    with prepared.stages("similarity", len(trace)) as progress:
        nearest = nearest_earlier(prepared.vectors, trace.users, rng=rng, progress=progress)
        progress(len(trace) - len(nearest.rows))
    return Characterization(
        trace=trace.name,
        num_rows=len(trace),
        num_users=trace.num_users,
        unknown_user_share=trace.unknown_user_share,
        has_times=trace.times_s is not None,
        embedder=prepared.embedder_id,
        similarity=_similarities(nearest),
        popularity=popularity(trace.prompts),
        locality=locality(lists.neighbours, FLOORS),
        sessions=find_sessions(trace, prepared.vectors, rng=rng),
        caveats=(prepared.embedder_caveat, lists.caveat, *_missing(prepared, nearest)),
    )


def _similarities(nearest: Nearest) -> tuple[Similarity, ...]:
    whose: Sequence[tuple[str, NDArray[np.float32] | None]] = (
        ("any user", nearest.any_user),
        ("the same user", nearest.same_user),
        ("other users", nearest.other_users),
    )
    return tuple(_similarity(among, cosines) for among, cosines in whose if cosines is not None)


def _similarity(among: str, cosines: NDArray[np.float32]) -> Similarity:
    known = cosines[~np.isnan(cosines)]
    return Similarity(
        among=among,
        num_rows=len(known),
        median=float(np.median(known)),
        shares=tuple((floor, float(np.mean(known > floor))) for floor in FLOORS),
        curve=tuple((float(edge), float(np.mean(known >= edge))) for edge in _BINS),
    )


def _missing(prepared: Prepared, nearest: Nearest) -> list[str]:
    """What the log does not say, or was only sampled."""
    trace, said = prepared.trace, []
    if trace.users is None:
        said.append("the log names no users: nothing on own and others' prompts, or on sessions")
    elif trace.unknown_user_share:
        said.append(
            f"{trace.unknown_user_share:.1%} of rows name no user; they are in `any user` only"
        )
    if trace.times_s is None:
        said.append("the log has no times: distances are in rows, pauses too")
    if len(nearest.rows) < len(trace):
        said.append(f"similarity was measured on {len(nearest.rows):,} rows drawn at random")
    return said
