"""Which states are worth storing: `python -m benchmarks.admission --json`.

Replays real logs, shared by user as in the product, under rules of admission that differ in what a
job leaves behind, with states of both kinds at several capacities, under the default policy. The
product's own rule is `as the worker does`: every job stores what it has, a hit with intermediate
states only the steps that it ran itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from benchmarks.policies import TRACES, announced
from cache.entry import StateKind
from cache.settings import CacheSettings, Policy
from evaluation.admission import Admission
from evaluation.embedders import load_embedder
from evaluation.errors import EvaluationError
from evaluation.neighbours import Neighbours
from evaluation.prepared import Prepared, default_cache_dir, prepare
from evaluation.replay import CacheOptions, Replayed, replay
from evaluation.sharing import SharedBy, capacity_pools, same_requests
from evaluation.trace import read_trace

LOGS: Final = ("discord-dream-10", "discord-dream-31")
CAPACITIES: Final = (0.01, 0.1, 0.25)
AS_THE_WORKER: Final = "as the worker does"
RULES: Final = {
    AS_THE_WORKER: Admission(),
    "all k, as if copied": Admission(only_above=False),
    "in place of repeats": Admission(replaces_repeats=True),
    "novel below 0.99": Admission(novel_below=0.99),
    "novel below 0.95": Admission(novel_below=0.95),
    "novel below 0.90": Admission(novel_below=0.9),
    "chain of 3 at most": Admission(chain_max=3),
    "chain of 1 at most": Admission(chain_max=1),
}
POLICY: Final = Policy(CacheSettings.model_fields["cache_policy"].default)
CAVEATS: Final = (
    "MiniLM similarities, with the paper's thresholds for CLIP: neither is calibrated here.",
    "Savings alone: whether a picture suffers along a chain of reuses no replay can tell.",
    "`all k, as if copied` is a bound: a worker has no latents of steps that its job skipped.",
)

Savings = dict[str, dict[str, dict[str, float]]]  # by kind, rule, and capacity in percent


def main() -> int:
    """Run each log and compare the worker's rule with the best."""
    arguments = _arguments()
    try:
        found = {log: savings(_prepared(log, arguments)) for log in arguments.logs}
    except EvaluationError as error:
        print(f"benchmarks.admission: {error}", file=sys.stderr)
        return 1
    for log, of_log in found.items():
        _print(log, of_log)
    for caveat in CAVEATS:
        print(f"note: {caveat}")
    answer = {"savings_by_log_kind_rule_and_capacity": found, **summary(found)}
    if arguments.json:
        print(json.dumps(answer))
    return 0


def savings(prepared: Prepared) -> Savings:
    """Share of all steps that each rule saves."""
    base = CacheOptions(policy=POLICY, capacity_share=1.0)
    floor = min(a.floor for a in base.selector.allowances(base.num_inference_steps))
    neighbours = prepared.lists(SharedBy.USER, floor=floor).neighbours
    found: Savings = {}
    for options, rule in _caches():
        done = _replay(prepared, neighbours, options)
        row = found.setdefault(options.state_kind.value, {}).setdefault(rule, {})
        row[f"{100 * options.capacity_share:g}"] = round(done.savings, 5)
    return found


def _caches() -> Iterator[tuple[CacheOptions, str]]:
    for kind in StateKind:
        for rule, admission in RULES.items():
            for share in CAPACITIES:
                options = CacheOptions(policy=POLICY, capacity_share=share, state_kind=kind)
                yield replace(options, admission=admission), rule


def _replay(prepared: Prepared, neighbours: Neighbours, options: CacheOptions) -> Replayed:
    trace = prepared.trace
    return replay(
        neighbours,
        options,
        pools=capacity_pools(trace, SharedBy.USER),
        times_s=trace.times_s,
        requests=same_requests(trace),
    )


def summary(found: dict[str, Savings]) -> dict[str, Any]:
    """How far the worker's rule is below the best that a worker could follow, relative to it."""
    gaps = {
        kind: max(
            1 - of_log[kind][AS_THE_WORKER][share] / best
            for of_log in found.values()
            for share in of_log[kind][AS_THE_WORKER]
            if (best := _best(of_log[kind], share)) > 0
        )
        for kind in next(iter(found.values()))
    }
    return {"worker_gap_to_best": {kind: round(gap, 5) for kind, gap in gaps.items()}}


def _best(rules: dict[str, dict[str, float]], share: str) -> float:
    return max(row[share] for rule, row in rules.items() if RULES[rule].only_above)


def _print(log: str, found: Savings) -> None:
    for kind, rules in found.items():
        print(f"\n{log} by user, {kind} states; % of steps saved under {POLICY}")
        print(f"{'stored':<22}" + "".join(f"{100 * share:>8g} %" for share in CAPACITIES))
        for rule, row in rules.items():
            print(f"{rule:<22}" + "".join(f"{100 * saved:>10.2f}" for saved in row.values()))


def _prepared(log: str, arguments: argparse.Namespace) -> Prepared:
    return prepare(
        read_trace(arguments.traces / f"{log}.jsonl.gz", rows_max=arguments.rows),
        load_embedder(arguments.embedder),
        cache_dir=arguments.cache_dir,
        stages=announced,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--traces", type=Path, default=TRACES, help="a folder of prompt logs")
    parser.add_argument("--logs", nargs="+", default=list(LOGS))
    parser.add_argument("--rows", type=int, help="only so many of each log, from the start")
    parser.add_argument("--cache-dir", type=Path, default=default_cache_dir())
    parser.add_argument("--embedder", default="minilm")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
