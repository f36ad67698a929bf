"""Replays of logs small enough to work out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cache.entry import StateKind
from cache.selector import Selector
from cache.settings import Policy
from evaluation.admission import Admission
from evaluation.clairvoyant import clairvoyant_steps, find_choices
from evaluation.neighbours import Neighbours
from evaluation.planned import make_plan, planned_steps
from evaluation.replay import CacheOptions, Replayed, allowed_places, replay

NEAR, MIDDLE, FAR = 0.96, 0.87, 0.70  # allow k = 25, 15 and 5 of 50


def neighbours(*lists: dict[int, float]) -> Neighbours:
    """For each row its earlier neighbours and their cosines, nearest first."""
    return Neighbours(
        num_max=64,
        floor=0.65,
        starts=np.cumsum([0, *map(len, lists)]),
        rows=np.array([row for each in lists for row in each], dtype=np.int32),
        similarities=np.array([s for each in lists for s in each.values()], dtype=np.float32),
    )


def run(
    log: Neighbours,
    *,
    states: float | None = None,
    requests: NDArray[np.int32] | None = None,
    **changes: Any,
) -> Replayed:
    """Replay with room for so many states, or for all."""
    options: dict[str, Any] = {
        "policy": Policy.LRU,
        "capacity_share": 1.0,
        "state_bytes": 1,
        **changes,
    }
    if states is not None:
        options["capacity_share"] = states / (len(log) * 5)
    return replay(log, CacheOptions(**options), requests=requests)


def test_a_hit_skips_what_its_similarity_allows() -> None:
    log = neighbours({}, {0: NEAR}, {0: MIDDLE}, {0: FAR}, {})
    done = run(log)
    assert done.skipped.tolist() == [0, 25, 15, 5, 0]
    assert done.hits_by_k == {5: 1, 10: 0, 15: 1, 20: 0, 25: 1}
    assert (done.hit_share, done.steps_saved, done.savings) == (0.6, 45, 45 / 250)


def test_the_thresholds_must_be_exceeded() -> None:
    selector = Selector()
    options = CacheOptions(policy=Policy.LRU, capacity_share=1.0, selector=selector)
    cosines = np.array([0.65, 0.6500001, 0.75, 0.8501, 0.9501], dtype=np.float32)
    places = allowed_places(cosines, options)
    expected = [selector.k_max(float(cosine), 50) for cosine in cosines]
    assert [(0, *options.k_set)[place] for place in places] == expected


def test_a_hit_stores_only_the_steps_that_it_ran() -> None:
    log = neighbours({}, {0: MIDDLE}, {1: FAR})
    above = run(log)
    assert above.num_stored == 5 + 2 + 5  # row 1 skipped 15: it has 20 and 25, and no 5 for row 2
    assert above.skipped.tolist() == [0, 15, 0]
    full = run(log, admission=Admission(only_above=False))
    assert (full.num_stored, full.skipped.tolist()) == (15, [0, 15, 5])


def test_the_largest_k_among_the_nearest_wins_over_the_nearest() -> None:
    """Row 2 is nearest to row 1, which has no state of its k: row 0 has a larger one."""
    log = neighbours({}, {0: FAR}, {1: 0.74, 0: 0.70})
    assert run(log).skipped.tolist() == [0, 5, 5]  # row 1 keeps 10 and more, all too far
    assert run(log, neighbours=1).skipped.tolist() == [0, 5, 0]


def test_a_final_state_serves_every_k_and_takes_the_room_of_one() -> None:
    log = neighbours({}, {0: NEAR}, {0: MIDDLE}, {1: FAR, 0: FAR})
    done = run(log, state_kind=StateKind.FINAL)
    assert done.skipped.tolist() == [0, 25, 15, 5]
    assert (done.num_stored, done.bytes_max) == (4, 4)


# Two final states fit. Row 0 is used by jobs 1, 2 and 3, row 3 by job 4, and row 0 again by job 5.
TURNS: tuple[dict[int, float], ...] = ({}, {0: NEAR}, {0: FAR}, {0: MIDDLE}, {3: NEAR}, {0: NEAR})


@pytest.mark.parametrize(
    ("policy", "skipped"),
    [
        # Job 2's state pushes row 0's out, whose uses count for nothing.
        (Policy.FIFO, [0, 25, 5, 0, 25, 0]),
        # Row 0 stays while it is used; job 4 uses and stores later than row 0's last use.
        (Policy.LRU, [0, 25, 5, 15, 25, 0]),
        # What is new and unused goes before row 0 and row 3: job 4's own state, at once.
        (Policy.LFU, [0, 25, 5, 15, 25, 25]),
        (Policy.LCBFU, [0, 25, 5, 15, 25, 25]),
        # In uses: row 0 has 1 + 4, row 3 has 1 + 2, and job 4's state 1 + 1 (the first 1 is the
        # inflation, from evicting rows 1 and 2).
        (Policy.LCBFU_AGED, [0, 25, 5, 15, 25, 25]),
    ],
)
def test_each_policy_keeps_what_it_says(policy: Policy, skipped: list[int]) -> None:
    done = run(neighbours(*TURNS), states=2, policy=policy, state_kind=StateKind.FINAL)
    assert done.skipped.tolist() == skipped
    assert done.bytes_max == 2


def test_lcbfu_as_published_keeps_the_past_and_the_aged_form_does_not() -> None:
    """One popular prompt, then sessions of three that never see it again."""
    popular: list[dict[int, float]] = [{}, {0: NEAR}, {0: NEAR}, {0: NEAR}]
    sessions: list[dict[int, float]] = []
    for start in range(4, 40, 3):
        sessions += [{}, {start: NEAR}, {start + 1: NEAR}]
    log = neighbours(*popular, *sessions)
    saved = {
        policy: run(log, states=1, policy=policy, state_kind=StateKind.FINAL).steps_saved
        for policy in (Policy.LCBFU, Policy.LCBFU_AGED)
    }
    assert saved[Policy.LCBFU] == 3 * 25
    assert saved[Policy.LCBFU_AGED] > 3 * 25


def test_the_grace_time_lets_lcbfu_use_what_it_has_just_stored() -> None:
    log = neighbours({}, {0: NEAR}, {}, {2: NEAR})
    options: dict[str, Any] = {"policy": Policy.LCBFU, "state_kind": StateKind.FINAL, "states": 1}
    assert run(log, **options).skipped.tolist() == [0, 25, 0, 0]
    assert run(log, **options, grace_s=2.0).skipped.tolist() == [0, 25, 0, 25]


def test_a_repeat_replaces_what_was_cached_for_the_same_words() -> None:
    """Row 1 repeats row 0, in whose place it is found by row 2; row 3 is somebody else's."""
    log = neighbours({}, {0: NEAR}, {1: MIDDLE, 0: NEAR}, {})
    requests = np.array([0, 0, 1, 2], dtype=np.int32)
    options: dict[str, Any] = {"state_kind": StateKind.FINAL, "requests": requests}
    beside = run(log, **options)
    assert (beside.skipped.tolist(), beside.bytes_max) == ([0, 25, 25, 0], 4)
    instead = run(log, **options, admission=Admission(replaces_repeats=True))
    assert (instead.skipped.tolist(), instead.bytes_max) == ([0, 25, 15, 0], 3)


def test_a_repeat_that_leaves_nothing_replaces_nothing() -> None:
    log = neighbours({}, {0: NEAR}, {0: NEAR})
    requests = np.zeros(3, dtype=np.int32)
    done = run(log, requests=requests, admission=Admission(replaces_repeats=True))
    assert done.skipped.tolist() == [0, 25, 25]  # a hit at the largest k ran past no other


def test_what_is_not_novel_is_not_stored() -> None:
    log = neighbours({}, {0: NEAR}, {1: NEAR, 0: FAR})
    novel = Admission(novel_below=0.9)
    done = run(log, state_kind=StateKind.FINAL, admission=novel)
    assert (done.num_stored, done.skipped.tolist()) == (2, [0, 25, 5])


def test_chains_of_reuse_end_where_they_are_told_to() -> None:
    log = neighbours({}, {0: NEAR}, {1: NEAR}, {2: NEAR})
    for chain_max, num_stored, skipped in (
        (0, 2, [0, 25, 0, 25]),
        (1, 3, [0, 25, 25, 0]),
        (None, 4, [0, 25, 25, 25]),
    ):
        admission = Admission(chain_max=chain_max)
        done = run(log, state_kind=StateKind.FINAL, admission=admission)
        assert (done.num_stored, done.skipped.tolist()) == (num_stored, skipped), chain_max


def test_a_job_that_is_not_looked_up_starts_from_noise_and_stores_everything() -> None:
    log = neighbours({}, {0: NEAR})
    options = CacheOptions(policy=Policy.LRU, capacity_share=1.0)
    done = replay(log, options, is_asked=np.array([True, False]))
    assert (done.skipped.tolist(), done.num_stored) == ([0, 0], 10)


def test_pools_do_not_evict_each_other() -> None:
    log = neighbours({}, {}, {}, {0: NEAR})
    options = CacheOptions(
        policy=Policy.FIFO, capacity_share=0.2, state_kind=StateKind.FINAL, state_bytes=1
    )
    pools = np.array([0, 1, 1, 0], dtype=np.int32)
    assert replay(log, options, pools=pools).skipped.tolist() == [0, 0, 0, 25]
    crowded = CacheOptions(
        policy=Policy.FIFO, capacity_share=0.1, state_kind=StateKind.FINAL, state_bytes=1
    )
    assert replay(log, crowded).skipped.tolist() == [0, 0, 0, 0]


# --- the clairvoyant bound -----------------------------------------------------------------------


def bound(log: Neighbours, states: float, kind: StateKind = StateKind.FINAL) -> float:
    options = CacheOptions(policy=Policy.LRU, capacity_share=1.0, state_kind=kind)
    return clairvoyant_steps(find_choices(log, options), capacity_states=states)


def test_with_room_for_all_the_bound_is_every_jobs_best() -> None:
    log = neighbours({}, {0: NEAR}, {1: MIDDLE, 0: FAR}, {2: FAR})
    assert bound(log, 4) == pytest.approx(25 + 15 + 5)


def test_with_little_room_the_bound_buys_the_best_steps_by_time_kept() -> None:
    """Room for 4 jobs x 0.5 states = 2: row 1 costs 1 and row 3 costs 3, of which 1 is left."""
    log = neighbours({}, {0: NEAR}, {}, {0: MIDDLE})
    # Row 3's segment begins at row 0's last possible use, job 1: it costs 2, half of it fits.
    assert bound(log, 0.5) == pytest.approx(25 + 15 / 2)


@pytest.mark.parametrize("kind", StateKind)
@pytest.mark.parametrize("states", [2, 5, 12])
def test_no_policy_exceeds_the_bound(kind: StateKind, states: int) -> None:
    rng = np.random.default_rng(7)
    lists = []
    for row in range(120):
        rows: list[int] = rng.choice(row, min(row, 4), replace=False).tolist() if row else []
        cosines = -np.sort(-rng.uniform(0.66, 1.0, len(rows)))
        lists.append(dict(zip(rows, cosines.tolist(), strict=True)))
    log = neighbours(*lists)
    limit = bound(log, states, kind)
    options = CacheOptions(policy=Policy.LRU, capacity_share=1.0, state_kind=kind)
    assert planned_steps(make_plan(log, options), capacity_states=states) <= limit + 1e-6
    for policy in Policy:
        for only_above in (True, False):
            admission = Admission(only_above=only_above)
            done = run(log, states=states, policy=policy, state_kind=kind, admission=admission)
            assert done.steps_saved <= limit + 1e-6


def test_the_plan_keeps_only_what_will_be_used_and_lets_the_farthest_go() -> None:
    log = neighbours({}, {}, {}, {1: NEAR}, {0: NEAR}, {1: MIDDLE})
    options = CacheOptions(policy=Policy.LRU, capacity_share=1.0, state_kind=StateKind.FINAL)
    plan = make_plan(log, options)
    # Rows 0 and 1 have uses, row 2 has none. With room for one, row 0's use is the farther.
    assert planned_steps(plan, capacity_states=2) == 25 + 25 + 15
    assert planned_steps(plan, capacity_states=1) == 25 + 15


def test_the_plan_prefers_the_largest_k_and_then_the_latest_state() -> None:
    log = neighbours({}, {}, {0: NEAR, 1: FAR}, {0: FAR, 1: FAR})
    options = CacheOptions(policy=Policy.LRU, capacity_share=1.0, state_kind=StateKind.FINAL)
    plan = make_plan(log, options)
    assert (plan.stored_by.tolist(), plan.steps.tolist()) == ([0, 1], [25, 5])


def test_a_repeat_skips_no_more_than_it_may_from_whatever_state() -> None:
    log = neighbours({}, {0: NEAR}, {1: 0.99, 0: 0.98}, {1: 0.99})
    options = CacheOptions(
        policy=Policy.LRU, capacity_share=1.0, state_kind=StateKind.FINAL, k_again=12
    )
    # Row 2 repeats row 0, and would start from row 1 otherwise; row 3 is another request.
    requests = np.array([0, 1, 0, 2], dtype=np.int32)
    assert replay(log, options, requests=requests).skipped.tolist() == [0, 25, 12, 25]
    kept_by_k = replace(options, state_kind=StateKind.INTERMEDIATE)
    # Row 1 has left no state: it skipped all of the k set, and row 3 has no other neighbour.
    assert replay(log, kept_by_k, requests=requests).skipped.tolist() == [0, 25, 10, 0]
    from_noise = replace(options, k_again=0)
    assert replay(log, from_noise, requests=requests).skipped.tolist() == [0, 25, 0, 25]
    assert replay(log, options).skipped.tolist() == [0, 25, 25, 25]
    one_seen = replace(options, neighbours=1)  # the repeated one is not among the nearest
    assert replay(log, one_seen, requests=requests).skipped.tolist() == [0, 25, 25, 25]


def test_a_request_that_was_evicted_is_no_repeat() -> None:
    log = neighbours({}, {}, {1: NEAR, 0: NEAR})
    requests = np.array([0, 1, 0], dtype=np.int32)
    done = replay(
        log,
        CacheOptions(
            policy=Policy.FIFO,
            capacity_share=1 / 15,
            state_kind=StateKind.FINAL,
            state_bytes=1,
            k_again=0,
        ),
        requests=requests,
    )
    assert done.skipped.tolist() == [0, 0, 25]
