"""What a cache that knows the log can reach: a plan, so that the best possible lies between.

Each job is given in advance the state that lets it skip the most, of several the latest. A state is
stored only if a job will use it, kept to its last such use, and where there is no room the state
whose next use is farthest goes (Belady's rule). It is one possible run: the best possible saves at
least this, and at most the bound of `evaluation.clairvoyant`.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cache.entry import StateKind
from evaluation.neighbours import Neighbours
from evaluation.replay import CacheOptions, allowed_places

NEVER: Final = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """Who starts from what: m jobs that reuse a state, rising."""

    jobs: NDArray[np.int32] = field(repr=False)  #: [m]
    states: NDArray[np.int64] = field(repr=False)  #: [m]
    stored_by: NDArray[np.int32] = field(repr=False)  #: [m]: the row that stores the state
    steps: NDArray[np.int64] = field(repr=False)  #: [m]: skipped
    #: [m]: the job that uses the same state next; the end of time where none does.
    next_use: NDArray[np.int64] = field(repr=False)
    is_first_use: NDArray[np.bool_] = field(repr=False)  #: [m]: of its state


def make_plan(neighbours: Neighbours, options: CacheOptions) -> Plan:
    """Give each job its best state, the latest of equals."""
    sources, prompts = neighbours.sources(), neighbours.rows
    allowed = allowed_places(neighbours.similarities, options)
    order = np.lexsort((prompts, allowed, sources))
    is_last = np.diff(sources[order], append=-1) != 0
    best = order[is_last]
    best = best[allowed[best] > 0]
    places = np.ones_like(best) if options.state_kind is StateKind.FINAL else allowed[best]
    states = prompts[best].astype(np.int64) * (len(options.k_set) + 1) + places
    jobs = sources[best]
    next_use, is_first = _uses_of_states(jobs, states)
    return Plan(
        jobs=jobs,
        states=states,
        stored_by=prompts[best],
        steps=np.asarray((0, *options.k_set))[allowed[best]],
        next_use=next_use,
        is_first_use=is_first,
    )


def planned_steps(plan: Plan, *, capacity_states: int) -> int:
    """Steps that the plan saves with room for so many states."""
    kept: dict[int, int] = {}  # state: its next use
    farthest: list[tuple[int, int]] = []
    saved = 0

    def keep(state: int, next_use: int) -> None:
        kept[state] = next_use
        heapq.heappush(farthest, (-next_use, state))

    for at, events in _events(plan):
        for index in events:
            state = int(plan.states[index])
            if plan.jobs[index] != at:  # stored now, for its first use
                keep(state, int(plan.jobs[index]))
            elif state in kept:
                saved += int(plan.steps[index])
                if plan.next_use[index] == NEVER:
                    del kept[state]
                else:
                    keep(state, int(plan.next_use[index]))
        while len(kept) > capacity_states:
            next_use, state = heapq.heappop(farthest)
            if kept.get(state) == -next_use:
                del kept[state]
    return saved


def _events(plan: Plan) -> list[tuple[int, list[int]]]:
    """Uses and stores by the row at which they happen, uses first."""
    first = np.flatnonzero(plan.is_first_use)
    rows = np.concatenate([plan.jobs, plan.stored_by[first]])
    indices = np.concatenate([np.arange(len(plan.jobs)), first])
    order = np.argsort(rows, kind="stable")
    starts = np.flatnonzero(np.diff(rows[order], prepend=-1))
    groups = np.split(indices[order], starts[1:]) if len(rows) else []
    return [
        (int(row), group.tolist()) for row, group in zip(rows[order][starts], groups, strict=True)
    ]


def _uses_of_states(
    jobs: NDArray[np.int32], states: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Each use's next of the same state, and whether it is the first."""
    order = np.lexsort((jobs, states))
    of, at = states[order], jobs[order].astype(np.int64)
    is_last = np.diff(of, append=-1) != 0
    following = np.where(is_last, NEVER, np.roll(at, -1))
    next_use = np.empty_like(following)
    next_use[order] = following
    is_first = np.empty(len(of), dtype=bool)
    is_first[order] = np.diff(of, prepend=-1) != 0
    return next_use, is_first
