"""Try caches on a log: a grid of policies and capacities, with what each would have saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from cache.entry import StateKind
from cache.settings import Policy
from evaluation.clairvoyant import clairvoyant_steps, find_choices
from evaluation.costs import Prices
from evaluation.lists import NeighbourLists
from evaluation.planned import make_plan, planned_steps
from evaluation.predictor import (
    PredictorOptions,
    PredictorQuality,
    predict_matches,
    predictor_quality,
)
from evaluation.prepared import Prepared
from evaluation.queueing import Latency, Seconds, ServiceTimes, latency
from evaluation.replay import CacheOptions, Replayed, replay
from evaluation.results import Bound, Run, Simulation
from evaluation.sharing import SharedBy, capacity_pools, same_requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What to try: every policy at every capacity with every kind of state."""

    policies: tuple[Policy, ...] = tuple(Policy)
    capacity_shares: tuple[float, ...] = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
    state_kinds: tuple[StateKind, ...] = tuple(StateKind)
    base: CacheOptions = field(
        default_factory=lambda: CacheOptions(policy=Policy.LCBFU_AGED, capacity_share=1.0)
    )

    def options(self) -> list[CacheOptions]:
        """Each cache to be tried, in the order of tables."""
        return [
            replace(self.base, policy=policy, capacity_share=share, state_kind=kind)
            for kind in self.state_kinds
            for policy in self.policies
            for share in self.capacity_shares
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Jobs as they come to a number of GPUs."""

    arrivals_s: Seconds = field(repr=False)  #: [n]
    service: ServiceTimes
    num_gpus: int


def simulate(
    prepared: Prepared,
    grid: Grid,
    *,
    shared_by: SharedBy,
    prices: Prices | None = None,
    load: Load | None = None,
    predictor: PredictorOptions | None = None,
) -> Simulation:
    """Run the grid; raises EvaluationError."""
    floor = min(a.floor for a in grid.base.selector.allowances(grid.base.num_inference_steps))
    lists = prepared.lists(shared_by, floor=floor)
    log = _Log(prepared, lists, shared_by, load)
    asked, quality = log.predicted(grid, predictor)
    replays = log.replays(grid.options(), asked)
    unbounded = {
        kind: log.replay(replace(grid.base, state_kind=kind, capacity_share=1.0), None).steps_saved
        for kind in grid.state_kinds
    }
    trace, base = prepared.trace, grid.base
    return Simulation(
        trace=trace.name,
        num_jobs=len(trace),
        num_users=trace.num_users,
        unknown_user_share=trace.unknown_user_share,
        embedder=prepared.embedder_id,
        shared_by=shared_by,
        admission=base.admission.label,
        num_inference_steps=base.num_inference_steps,
        k_set=base.k_set,
        prices=prices,
        num_gpus=None if load is None else load.num_gpus,
        uncached_latency=log.uncached_latency(base.num_inference_steps),
        predictor=quality,
        runs=tuple(
            log.run(each, unbounded[each.options.state_kind], prices, asked) for each in replays
        ),
        bounds=log.bounds(grid),
        caveats=_caveats(prepared, lists, shared_by, load),
    )


class _Log:
    """A log ready to be replayed."""

    def __init__(
        self, prepared: Prepared, lists: NeighbourLists, shared_by: SharedBy, load: Load | None
    ) -> None:
        self._prepared, self._load = prepared, load
        self._neighbours = lists.neighbours
        self._pools = capacity_pools(prepared.trace, shared_by)
        self._requests = same_requests(prepared.trace)
        self._times_s = prepared.trace.times_s if load is None else load.arrivals_s

    def replay(self, options: CacheOptions, asked: NDArray[np.bool_] | None) -> Replayed:
        return replay(
            self._neighbours,
            options,
            pools=self._pools,
            times_s=self._times_s,
            is_asked=asked,
            requests=self._requests,
        )

    def replays(
        self, options: Sequence[CacheOptions], asked: NDArray[np.bool_] | None
    ) -> list[Replayed]:
        with self._prepared.stages("replaying", len(options)) as progress:
            done = []
            for each in options:
                done.append(self.replay(each, asked))
                progress(1)
        return done

    def predicted(
        self, grid: Grid, options: PredictorOptions | None
    ) -> tuple[NDArray[np.bool_] | None, PredictorQuality | None]:
        """Which jobs are looked up, and how good that choice is; None without a predictor."""
        if options is None:
            return None, None
        vectors = self._prepared.vectors
        with self._prepared.stages("predicting", len(vectors)) as progress:
            asked = predict_matches(vectors, options, progress=progress)
        full = self.replay(replace(grid.base, capacity_share=1.0), None)
        return asked, predictor_quality(asked, full.skipped > 0)

    def bounds(self, grid: Grid) -> tuple[Bound, ...]:
        """The clairvoyant bound of each kind at each capacity."""
        found = []
        with self._prepared.stages("clairvoyant bound", len(grid.state_kinds)) as progress:
            for kind in grid.state_kinds:
                options = replace(grid.base, state_kind=kind)
                choices = find_choices(self._neighbours, options)
                asked_for = choices.num_jobs * options.num_inference_steps
                states = choices.num_jobs * len(options.k_set)
                plan = make_plan(self._neighbours, options)
                for share in grid.capacity_shares:
                    room = share * states
                    steps = clairvoyant_steps(choices, capacity_states=room)
                    reached = planned_steps(plan, capacity_states=int(room))
                    bound = Bound(
                        state_kind=kind,
                        capacity_share=share,
                        savings=steps / asked_for,
                        planned=reached / asked_for,
                    )
                    found.append(bound)
                progress(1)
        return tuple(found)

    def run(
        self,
        done: Replayed,
        unbounded_steps: int,
        prices: Prices | None,
        asked: NDArray[np.bool_] | None,
    ) -> Run:
        options = done.options
        return Run(
            policy=options.policy,
            state_kind=options.state_kind,
            capacity_share=options.capacity_share,
            capacity_bytes=options.capacity_bytes(len(done.skipped)),
            bytes_max=done.bytes_max,
            hit_share=done.hit_share,
            hits_by_k=dict(done.hits_by_k),
            steps_saved=done.steps_saved,
            savings=done.savings,
            share_of_unbounded=done.steps_saved / unbounded_steps if unbounded_steps else 1.0,
            num_stored=done.num_stored,
            num_evicted=done.num_evicted,
            gpu_hours_saved=None if prices is None else prices.gpu_hours(done.steps_saved),
            money_saved=None if prices is None else prices.money(done.steps_saved),
            latency=self._latency(done, asked),
        )

    def uncached_latency(self, num_steps: int) -> Latency | None:
        if self._load is None:
            return None
        service = self._load.service.without_cache(len(self._neighbours), num_steps)
        return latency(self._load.arrivals_s, service, num_gpus=self._load.num_gpus)

    def _latency(self, done: Replayed, asked: NDArray[np.bool_] | None) -> Latency | None:
        if self._load is None:
            return None
        is_asked = np.ones(len(done.skipped), dtype=bool) if asked is None else asked
        service = self._load.service.with_cache(
            done.skipped, done.options.num_inference_steps, is_asked=is_asked
        )
        return latency(self._load.arrivals_s, service, num_gpus=self._load.num_gpus)


def _caveats(
    prepared: Prepared, lists: NeighbourLists, shared_by: SharedBy, load: Load | None
) -> tuple[str, ...]:
    """What a reader of the numbers must know."""
    said = [prepared.embedder_caveat, lists.caveat]
    trace = prepared.trace
    if shared_by is SharedBy.USER and trace.unknown_user_share:
        said.append(
            f"{trace.unknown_user_share:.1%} of rows name no user; as in the product, "
            "they share with each other"
        )
    if load is None and trace.times_s is None:
        said.append("the log has no times: a job a second, in the order of the log")
    if load is not None:
        said.append("latency: each GPU runs one job at a time, first come, first served")
    return tuple(said)
