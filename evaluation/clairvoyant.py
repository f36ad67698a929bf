"""An upper bound on what any eviction policy can save, however well it knows the future.

The relaxation of PFOO-U (Berger, Beckmann, Harchol-Balter: Practical Bounds on Optimal Caching with
Variable Object Sizes, SIGMETRICS 2018), taken from exact to approximate reuse:

    state s:  stored ---- job a ------------ job b -- job c        (jobs that s could serve)
                  |<- 1 ->|<------ 2 ------->|<- 3 ->|             (segments, in bytes x jobs)

Whoever serves b from s has s in the cache all through segment 2, whatever else s does. Segments of
one state do not overlap, so the segments of all served jobs fit into capacity x jobs. The bound
lets each job choose at most one state, asks only for that sum, and allows fractions: every policy's
run is a solution of this, so none saves more. It also gives every job all its states to store,
so it bounds every admission; and it may choose any neighbour, not only among the nearest ten.

The linear program is solved by its Lagrangian dual: at every price of a byte kept for a job, the
best choices' value plus the price of the whole capacity is a bound, and the smallest is the LP's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cache.entry import StateKind
from evaluation.neighbours import Neighbours
from evaluation.replay import CacheOptions, allowed_places

_ROUNDS: Final = 50  # halvings of the price's interval


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choices:
    """What each job could be served with: m (job, state) pairs, by job."""

    num_jobs: int
    jobs: NDArray[np.int32] = field(repr=False)  #: [m], rising
    steps: NDArray[np.float64] = field(repr=False)  #: [m]: steps that it would skip
    lengths: NDArray[np.float64] = field(repr=False)  #: [m]: jobs that its segment lasts

    def first_of_jobs(self) -> NDArray[np.int64]:
        """Where each job's pairs begin, for jobs that have any."""
        return np.flatnonzero(np.diff(self.jobs, prepend=-1))


def clairvoyant_steps(choices: Choices, *, capacity_states: float) -> float:
    """No policy saves more steps in this log with room for so many states (PFOO-U's dual)."""
    if not len(choices.jobs):
        return 0.0
    firsts = choices.first_of_jobs()
    room = capacity_states * choices.num_jobs

    def dual(price: float) -> float:
        value = np.maximum(choices.steps - price * choices.lengths, 0.0)
        return float(np.maximum.reduceat(value, firsts).sum()) + price * room

    # Convex in the price; above the best steps by job nothing is chosen any more.
    low, high = 0.0, float(np.max(choices.steps / choices.lengths))
    for _ in range(_ROUNDS):
        third = (high - low) / 3
        if dual(low + third) <= dual(high - third):
            high -= third
        else:
            low += third
    return min(dual(0.0), dual(low), dual(high))


def find_choices(neighbours: Neighbours, options: CacheOptions) -> Choices:
    """All pairs that the selector allows, each with the segment that it costs."""
    sources, prompts = neighbours.sources(), neighbours.rows
    allowed = allowed_places(neighbours.similarities, options)
    # Edges by prompt, then by time: each one's segment begins where the one before ended.
    order = np.lexsort((sources, prompts))
    sources, prompts, allowed = sources[order], prompts[order], allowed[order]
    if options.state_kind is StateKind.FINAL:
        parts = [_of_state(sources, prompts, allowed, place=1, ks=_ks_used(allowed, options))]
    else:
        parts = [
            _of_state(sources, prompts, allowed, place=place, ks=np.full(len(allowed), k))
            for place, k in enumerate(options.k_set, start=1)
        ]
    return _by_job(parts, num_jobs=len(neighbours))


def _ks_used(allowed: NDArray[np.int8], options: CacheOptions) -> NDArray[np.int64]:
    """The k that a final state would be noised to; 0 where none is allowed."""
    return np.asarray((0, *options.k_set))[allowed]


def _of_state(
    sources: NDArray[np.int32],
    prompts: NDArray[np.int32],
    allowed: NDArray[np.int8],
    *,
    place: int,
    ks: NDArray[np.int64],
) -> Choices:
    """The pairs of every prompt's state at one place of the k set."""
    fits = allowed >= place
    jobs, of = sources[fits], prompts[fits]
    before = np.where(np.diff(of, prepend=-1) != 0, of, np.roll(jobs, 1))
    return Choices(
        num_jobs=0,
        jobs=jobs,
        steps=ks[fits].astype(np.float64),
        lengths=(jobs - before).astype(np.float64),
    )


def _by_job(parts: list[Choices], *, num_jobs: int) -> Choices:
    jobs = np.concatenate([part.jobs for part in parts])
    order = np.argsort(jobs, kind="stable")
    return Choices(
        num_jobs=num_jobs,
        jobs=jobs[order],
        steps=np.concatenate([part.steps for part in parts])[order],
        lengths=np.concatenate([part.lengths for part in parts])[order],
    )
