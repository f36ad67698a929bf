"""Replay a log through selector, admission and eviction, over precomputed neighbour lists.

A job at row i sees what the jobs before it left, and evicts after it has stored: the product evicts
on a clock, so its cache is a little fuller in between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cache.entry import StateKind
from cache.ranking import RankedState
from cache.selector import Selector
from cache.settings import Policy
from evaluation.admission import Admission
from evaluation.live_states import LiveStates
from evaluation.neighbours import Neighbours
from evaluation.vectors import Progress

PROGRESS_ROWS: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheOptions:
    """One cache to be tried."""

    policy: Policy
    #: Share of the bytes that the k set's intermediate states of every job would fill.
    capacity_share: float
    state_kind: StateKind = StateKind.INTERMEDIATE
    selector: Selector = field(default_factory=Selector)
    num_inference_steps: int = 50
    state_bytes: int = 32_768  # 4 x 64 x 64 halves: a 512 x 512 image of Stable Diffusion
    neighbours: int = 10  # as `cache_neighbours`
    admission: Admission = field(default_factory=Admission)
    grace_s: float = 0.0  # of policies that spare the young; 0 is LCBFU as published
    #: The most steps that a job skips whose words its owner has cached; None sets no limit.
    k_again: int | None = None

    @property
    def k_set(self) -> tuple[int, ...]:
        """The steps that a hit can skip, rising."""
        return tuple(a.k for a in self.selector.allowances(self.num_inference_steps))

    def capacity_bytes(self, num_jobs: int) -> int:
        """The capacity in a log of so many jobs."""
        return int(self.capacity_share * num_jobs * len(self.k_set) * self.state_bytes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Replayed:
    """What one cache did for a log of n jobs."""

    options: CacheOptions
    #: [n]: steps that each job skipped; 0 for a miss.
    skipped: NDArray[np.int16] = field(repr=False)
    num_stored: int
    num_evicted: int
    bytes_max: int  # held at once

    @property
    def hits_by_k(self) -> Mapping[int, int]:
        """How many jobs skipped k steps: those of the k set, and a repeat's limit."""
        counts = Counter(self.skipped[self.skipped > 0].tolist())
        return {k: counts[k] for k in sorted({*self.options.k_set, *counts})}

    @property
    def hit_share(self) -> float:
        """Hits by job."""
        return float(np.mean(self.skipped > 0))

    @property
    def steps_saved(self) -> int:
        """Steps skipped in all."""
        return int(self.skipped.sum(dtype=np.int64))

    @property
    def savings(self) -> float:
        """Steps skipped by steps asked for."""
        return self.savings_of_first(len(self.skipped))

    def savings_of_first(self, num_jobs: int) -> float:
        """The same of the log's first jobs."""
        steps = int(self.skipped[:num_jobs].sum(dtype=np.int64))
        return steps / (num_jobs * self.options.num_inference_steps)


def replay(
    neighbours: Neighbours,
    options: CacheOptions,
    *,
    pools: NDArray[np.int32] | None = None,
    times_s: NDArray[np.float64] | None = None,
    is_asked: NDArray[np.bool_] | None = None,
    requests: NDArray[np.int32] | None = None,
    progress: Progress = lambda _: None,
) -> Replayed:
    """Run every row of a log through one cache.

    `pools` [n] says whose capacity a row uses (one pool without), `times_s` [n] when it comes
    (row i at second i without), `is_asked` [n] whether it is looked up at all (all without), and
    rows of the same number in `requests` [n] are one owner's for the same words (none without).
    """
    num_jobs = len(neighbours)
    one_pool = np.zeros(num_jobs, dtype=np.int32)
    cache = _Replay(
        neighbours,
        options,
        one_pool if pools is None else pools,
        np.arange(num_jobs, dtype=np.int32) if requests is None else requests,
    )
    times = np.arange(num_jobs) if times_s is None else times_s
    asked = np.ones(num_jobs, dtype=bool) if is_asked is None else is_asked
    for row, (time, is_looked_up) in enumerate(zip(times.tolist(), asked.tolist(), strict=True)):
        cache.run_job(row, time, is_looked_up=is_looked_up)
        if (row + 1) % PROGRESS_ROWS == 0:
            progress(PROGRESS_ROWS)
    progress(num_jobs % PROGRESS_ROWS)
    return cache.result()


@dataclass(frozen=True, slots=True)
class Hit:
    """The state a job starts from, as a prompt's row and a place in the k set (from 1)."""

    prompt: int
    place: int  # of the state; 1 for a final one
    k_place: int  # of the largest k that its similarity allows


class _Replay:
    """State ids are row x width + place, so they rise as the database's do."""

    def __init__(
        self,
        neighbours: Neighbours,
        options: CacheOptions,
        pools: NDArray[np.int32],
        requests: NDArray[np.int32],
    ) -> None:
        self._options = options
        self._ks = options.k_set
        self._is_final = options.state_kind is StateKind.FINAL
        self._width = len(self._ks) + 1
        self._starts = neighbours.starts.tolist()
        self._rows = neighbours.rows
        self._similarities = neighbours.similarities
        self._allowed = allowed_places(neighbours.similarities, options)
        sources = neighbours.sources()
        self._is_again = requests[sources] == requests[neighbours.rows]
        self._may_repeat = np.zeros(len(neighbours), dtype=bool)
        self._may_repeat[sources[self._is_again]] = True
        self._requests = requests.tolist()
        self._last_stored: dict[int, int] = {}
        self._pool_of = pools.tolist()
        self._pools = _make_pools(options, pools)
        #: [n]: bit p - 1 is set where the row's state of place p is cached.
        self._cached = [0] * len(neighbours)
        self._chains: NDArray[np.int32] = np.zeros(len(neighbours), dtype=np.int32)
        self._skipped: NDArray[np.int16] = np.zeros(len(neighbours), dtype=np.int16)
        self._num_stored = self._num_evicted = 0

    def run_job(self, row: int, now: float, *, is_looked_up: bool) -> None:
        """Look up, count the use, store, evict."""
        hit, nearest = self._find(row)
        pool = self._pools[self._pool_of[row]]
        if hit is not None and is_looked_up:
            k = min(self._ks[hit.k_place - 1], self._k_most(row))
            pool.use(hit.prompt * self._width + hit.place, k, at=now)
            self._skipped[row] = k
            self._chains[row] = self._chains[hit.prompt] + 1
        elif not is_looked_up:
            hit = None
        if self._options.admission.admits(nearest=nearest, chain=int(self._chains[row])):
            self._store(row, hit, pool, now)
            if self._options.admission.replaces_repeats:
                self._replace_last(row, pool)
        for state_id in pool.evict(now=now):
            prompt, place = divmod(state_id, self._width)
            self._cached[prompt] &= ~(1 << (place - 1))
            self._num_evicted += 1

    def result(self) -> Replayed:
        return Replayed(
            options=self._options,
            skipped=self._skipped,
            num_stored=self._num_stored,
            num_evicted=self._num_evicted,
            bytes_max=sum(pool.num_bytes_max for pool in self._pools),
        )

    def _find(self, row: int) -> tuple[Hit | None, float]:
        """The state that skips the most among the nearest cached prompts, as `cache.index.find`.

        Ties go to the nearer prompt, then to the newer. Also the nearest one's similarity.
        """
        start, end = self._starts[row], self._starts[row + 1]
        best, best_place, nearest, num_seen = None, 0, -1.0, 0
        places_max = self._places_most(row)
        prompts = self._rows[start:end].tolist()
        for at, (prompt, allowed) in enumerate(
            zip(prompts, self._allowed[start:end].tolist(), strict=True)
        ):
            cached = self._cached[prompt]
            if not cached:
                continue
            if not num_seen:
                nearest = float(self._similarities[start + at])
            allowed = min(allowed, places_max)
            if allowed <= best_place:
                break  # the rest are no nearer
            usable = allowed if self._is_final else (cached & ((1 << allowed) - 1)).bit_length()
            if usable > best_place:
                place = 1 if self._is_final else usable
                best, best_place = Hit(prompt, place, usable), usable
            num_seen += 1
            if num_seen == self._options.neighbours:
                break
        return best, nearest

    def _places_most(self, row: int) -> int:
        """How many of the k set, from the smallest, a job's states may come from."""
        most = self._k_most(row)
        if self._is_final and most:
            return self._width - 1  # one state serves any k
        return sum(k <= most for k in self._ks)

    def _k_most(self, row: int) -> int:
        limit = self._options.k_again
        return self._ks[-1] if limit is None or not self._is_repeated(row) else limit

    def _is_repeated(self, row: int) -> bool:
        """Whether the same request is among the nearest cached ones."""
        if not self._may_repeat[row]:
            return False
        start, end = self._starts[row], self._starts[row + 1]
        cached = [at for at in range(start, end) if self._cached[self._rows[at]]]
        return bool(self._is_again[cached[: self._options.neighbours]].any())

    def _replace_last(self, row: int, pool: LiveStates) -> None:
        """Drop what was cached for the same request, unless this row left nothing."""
        request = self._requests[row]
        last = self._last_stored.get(request)
        if not self._cached[row]:
            return
        if last is not None:
            for place in range(1, self._width):
                if self._cached[last] & (1 << (place - 1)):
                    pool.discard(last * self._width + place)
            self._cached[last] = 0
        self._last_stored[request] = row

    def _store(self, row: int, hit: Hit | None, pool: LiveStates, now: float) -> None:
        is_skipping = hit is not None and self._options.admission.only_above
        above = hit.k_place if hit is not None and is_skipping else 0
        places = (1,) if self._is_final else range(above + 1, self._width)
        for place in places:
            state = RankedState(
                id=row * self._width + place,
                num_bytes=self._options.state_bytes,
                seconds_per_step=1.0,
                num_inference_steps=self._options.num_inference_steps,
                created_at=now,
                last_used_at=now,
                inflation=0.0,
            )
            pool.store(state)
            self._cached[row] |= 1 << (place - 1)
            self._num_stored += 1


def allowed_places(similarities: NDArray[np.float32], options: CacheOptions) -> NDArray[np.int8]:
    """How many of the k set, from the smallest, a similarity allows: floors must be exceeded."""
    allowances = options.selector.allowances(options.num_inference_steps)
    floors = np.asarray([allowance.floor for allowance in allowances])
    return np.searchsorted(floors, similarities.astype(np.float64), side="left").astype(np.int8)


def _make_pools(options: CacheOptions, pools: NDArray[np.int32]) -> list[LiveStates]:
    return [
        LiveStates(
            options.policy,
            capacity_bytes=options.capacity_bytes(num_jobs),
            grace_s=options.grace_s,
        )
        for num_jobs in np.bincount(pools).tolist()
    ]
