"""What the simulator says of an arm, to be held against what its fleet measured.

    python -m benchmarks.savings.simulated --jobs 2000 --reroll-fraction 0 0.74 0.76

prints the savings of our arms with other limits on a user's same words again, and draws nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.savings import arms
from benchmarks.savings.arms import CAPACITY_SHARE, Arm, Served
from benchmarks.savings.workload import NUM_JOBS, Request, generate, owners_of
from cache.entry import Sharing, StateKind
from cache.selector import ChoiceRules, Selector
from evaluation.neighbours import Neighbours, search_exact
from evaluation.replay import CacheOptions, Replayed, replay
from models import sampling

GRACE_S = 600.0  # NIRVANA_CACHE_EVICT_GRACE_S, as the fleet has it


def neighbours_of(
    requests: Sequence[Request], vectors: NDArray[np.float32], *, sharing: Sharing, floor: float
) -> Neighbours:
    """Each job's nearest earlier ones above `floor`, of those that it may start from."""
    is_own = sharing is Sharing.USER
    groups = owners_of(requests) if is_own else np.zeros(len(requests), dtype=np.int32)
    return search_exact(vectors.astype(np.float16), groups, floor=floor)


def repeats_of(requests: Sequence[Request]) -> NDArray[np.int32]:
    """[n]: rows of the same number are one user's for the same words."""
    asked = [(request.user, request.prompt) for request in requests]
    numbers = {pair: number for number, pair in enumerate(dict.fromkeys(asked))}
    return np.array([numbers[pair] for pair in asked], dtype=np.int32)


def options_of(arm: Arm, served: Served) -> CacheOptions:
    """The arm's cache as the simulator takes it."""
    assert arm.kind is not None
    selector = Selector.of(served.thresholds(arm))
    num_ks = len(selector.k_set(served.num_inference_steps))
    # The simulator's share is of all intermediate states, whichever kind is kept.
    share = CAPACITY_SHARE if arm.kind is StateKind.INTERMEDIATE else CAPACITY_SHARE / num_ks
    return CacheOptions(
        policy=arm.policy,
        capacity_share=share,
        state_kind=arm.kind,
        selector=selector,
        num_inference_steps=served.num_inference_steps,
        state_bytes=served.bytes_per_state,
        grace_s=GRACE_S,
        k_again=ChoiceRules(again_fraction=arm.reroll_fraction).k_again(served.num_inference_steps),
    )


def simulate_arm(
    arm: Arm,
    served: Served,
    requests: Sequence[Request],
    vectors: NDArray[np.float32],
    *,
    sharing: Sharing,
    times_s: NDArray[np.float64] | None = None,
) -> Replayed:
    """Replay the log through the arm's cache; `times_s` [n] says when each job came."""
    options = options_of(arm, served)
    floor = min(each.floor for each in options.selector.allowances(options.num_inference_steps))
    neighbours = neighbours_of(requests, vectors, sharing=sharing, floor=floor)
    return replay(neighbours, options, times_s=times_s, requests=repeats_of(requests))


def main() -> None:
    """Print the savings of each of our arms by its limit on repeats."""
    parser = argparse.ArgumentParser(description="Predict what our arms save.")
    parser.add_argument("--jobs", type=int, default=NUM_JOBS)
    parser.add_argument("--reroll-fraction", type=float, nargs="+", default=[arms.REROLL_FRACTION])
    options = parser.parse_args()
    family, served = arms.load(sampling.SMALL)
    requests = generate(options.jobs)
    vectors = family.embedding([request.prompt for request in requests])
    for arm in (arms.INTERMEDIATE, arms.FINAL):
        for fraction in options.reroll_fraction:
            limited = replace(arm, reroll_fraction=fraction)
            found = simulate_arm(limited, served, requests, vectors, sharing=Sharing.USER)
            print(f"{arm.title}, repeats skip at most {fraction:.0%}: {found.savings:.2%} saved")


if __name__ == "__main__":
    main()
