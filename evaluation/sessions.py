"""Users' sessions: runs of one user's prompts without a long pause."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from evaluation.trace import UNKNOWN, Trace
from evaluation.vectors import HalfVectors

PAUSE_ROWS: Final = 500  # of the log, where it has no times
PAUSE_S: Final = 1_800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sessions:
    """Sessions of the users that the log names."""

    pause: str  #: what ends a session
    num_sessions: int
    prompts_mean: float
    prompts_p50: float
    prompts_p90: float
    prompts_max: int
    #: Share of rows that are not the first of their session.
    continued_share: float
    #: Cosine of a prompt and the one before it in its session.
    step_similarity_p50: float
    step_similarity_p90: float
    #: The same for prompts of different sessions, drawn at random.
    random_similarity_p50: float
    #: (sessions of up to so many prompts, share of sessions).
    length_shares: tuple[tuple[int, float], ...]


def find_sessions(
    trace: Trace, vectors: HalfVectors, *, rng: np.random.Generator
) -> Sessions | None:
    """Split each user's prompts at long pauses; None where the log names no users."""
    if trace.users is None:
        return None
    rows = np.flatnonzero(trace.users != UNKNOWN)
    rows = rows[np.lexsort((rows, trace.users[rows]))]
    is_first = _begins(trace, rows)
    lengths = np.diff(np.flatnonzero(is_first), append=len(rows))
    following = np.flatnonzero(~is_first)
    steps = _cosines(vectors, rows[following], rows[following - 1])
    strangers = _cosines(vectors, rows, rng.permutation(rows))
    p50, p90 = np.percentile(lengths, (50, 90)).tolist()
    return Sessions(
        pause=f"{PAUSE_ROWS} rows of the log" if trace.times_s is None else f"{PAUSE_S:.0f} s",
        num_sessions=len(lengths),
        prompts_mean=float(lengths.mean()),
        prompts_p50=p50,
        prompts_p90=p90,
        prompts_max=int(lengths.max()),
        continued_share=float(np.mean(~is_first)),
        step_similarity_p50=_percentile(steps, 50),
        step_similarity_p90=_percentile(steps, 90),
        random_similarity_p50=_percentile(strangers, 50),
        length_shares=tuple(
            (limit, float(np.mean(lengths <= limit))) for limit in (1, 2, 3, 5, 10, 20, 50, 100)
        ),
    )


def _begins(trace: Trace, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each row, sorted by user and then by time, is the first of a session."""
    assert trace.users is not None
    users = trace.users[rows]
    begins: NDArray[np.bool_] = np.diff(users, prepend=UNKNOWN) != 0
    if trace.times_s is None:
        begins |= np.diff(rows, prepend=0) > PAUSE_ROWS
    else:
        begins |= np.diff(trace.times_s[rows], prepend=0.0) > PAUSE_S
    return begins


def _cosines(
    vectors: HalfVectors, rows: NDArray[np.int64], others: NDArray[np.int64]
) -> NDArray[np.float32]:
    """[m]: similarity of pairs of rows, a block at a time."""
    blocks = [
        np.einsum(
            "md,md->m",
            vectors[rows[at : at + 65_536]].astype(np.float32),
            vectors[others[at : at + 65_536]].astype(np.float32),
        )
        for at in range(0, len(rows), 65_536)
    ]
    return np.concatenate([np.empty(0, dtype=np.float32), *blocks])


def _percentile(values: NDArray[np.float32], percent: float) -> float:
    return float(np.percentile(values, percent)) if len(values) else float("nan")
