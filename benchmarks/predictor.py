"""Does the match predictor pay: `python -m benchmarks.predictor --json`.

What it saves, a lookup and no more, against what it wrongly skips: the steps of the hits that it
sends to noise. Lookups are measured on a PostgreSQL of the benchmark's own that holds a part of a
real log, with the index that beat builds; the product's predictor is fitted as that log goes on,
and asked before each job. Sharing is by namespace, since under user sharing there is none.

The break-even is how long a lookup would have to take for the predictor to pay, at the given
seconds per step.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.lookup.database import fill, register_scopes, running_database, settings_of
from benchmarks.lookup.measure import Measured, measure, queries_of
from benchmarks.lookup.vectors import Prompts, make_kept
from benchmarks.policies import TRACES, announced
from cache.entry import Sharing, StateKind
from cache.nearest_index import maintain
from cache.refit import Fitting, fit
from cache.settings import Policy
from evaluation.embedders import load_embedder
from evaluation.errors import EvaluationError
from evaluation.neighbours import Neighbours
from evaluation.predictor import PredictorOptions, predict_matches, predictor_quality
from evaluation.prepared import Prepared, default_cache_dir, prepare
from evaluation.replay import CacheOptions, Replayed, replay
from evaluation.sharing import SharedBy
from evaluation.trace import read_trace
from evaluation.vectors import HalfVectors
from migrations import migrate

LOGS: Final = ("discord-dream-10", "discord-dream-31")
#: nu and gamma; the first is the product's default.
FITTINGS: Final = ((0.2, 1.0), (0.1, 1.0), (0.05, 1.0), (0.02, 1.0), (0.1, 4.0))
NUM_QUERIES: Final = 1_000
NUM_ASKED: Final = 2_000  # times the predictor is asked, for its own seconds
OPTIONS: Final = CacheOptions(
    policy=Policy.LCBFU_AGED, capacity_share=1.0, state_kind=StateKind.FINAL
)

CAVEATS: Final = (
    "MiniLM similarities, with the paper's thresholds for CLIP; final states, none evicted.",
    "One client, one connection, everything cached in memory; on a loaded machine a lookup's time "
    "is longer, which favours the predictor: its server CPU is given beside it.",
    "Seconds per step are an assumption: with slower steps the predictor loses more.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """One predictor's gain and loss, over a log."""

    nu: float
    gamma: float
    lookups_avoided: float  #: share of jobs
    hits_lost: float  #: share of hits
    steps_lost: float  #: steps of a job, at the mean

    def break_even_s(self, *, predict_s: float, seconds_per_step: float) -> float:
        """Seconds of a lookup from which on it pays; infinite where it avoids none."""
        lost_s = predict_s + self.steps_lost * seconds_per_step
        return lost_s / self.lookups_avoided if self.lookups_avoided else float("inf")


def main() -> int:
    """Run each log; exit code 0 whatever the answer is."""
    arguments = _arguments()
    try:
        answers = [_run(log, arguments) for log in arguments.logs]
    except EvaluationError as error:
        print(f"benchmarks.predictor: {error}", file=sys.stderr)
        return 1
    for caveat in CAVEATS:
        print(f"note: {caveat}")
    if arguments.json:
        pays = any(answer["pays"] for answer in answers)
        print(json.dumps({"logs": answers, "pays": pays}))
    return 0


def _run(log: str, arguments: argparse.Namespace) -> dict[str, Any]:
    prepared = _prepared(log, arguments)
    balances = weigh(prepared)
    predict_s = asking_s(prepared.vectors)
    lookups = [_lookup(prepared.vectors, rows) for rows in arguments.cached]
    predictors = [_figures(each, predict_s, arguments) for each in balances]
    best = min(figures["break_even_lookup_ms"] for figures in predictors)
    answer = {
        "log": log,
        "jobs": len(prepared.trace),
        "predict_ms": round(1e3 * predict_s, 4),
        "lookups": lookups,
        "predictors": predictors,
        "break_even_lookup_ms": best,
        "pays": max(lookup["p50_ms"] for lookup in lookups) > best,
    }
    _print(answer, arguments)
    return answer


def weigh(prepared: Prepared) -> list[Balance]:
    """Replay the log with each predictor and without one."""
    floor = min(a.floor for a in OPTIONS.selector.allowances(OPTIONS.num_inference_steps))
    neighbours = prepared.lists(SharedBy.NAMESPACE, floor=floor).neighbours
    full = replay(neighbours, OPTIONS)
    return [_balance(prepared, neighbours, full, nu, gamma) for nu, gamma in FITTINGS]


def _balance(
    prepared: Prepared, neighbours: Neighbours, full: Replayed, nu: float, gamma: float
) -> Balance:
    asked = predict_matches(prepared.vectors, PredictorOptions(nu=nu, gamma=gamma))
    quality = predictor_quality(asked, full.skipped > 0)
    without = replay(neighbours, OPTIONS, is_asked=asked)
    return Balance(
        nu=nu,
        gamma=gamma,
        lookups_avoided=quality.lookups_avoided_share,
        hits_lost=1 - quality.recall,
        steps_lost=(full.steps_saved - without.steps_saved) / len(asked),
    )


def asking_s(vectors: HalfVectors) -> float:
    """Seconds of one question, at the median, as a worker asks it."""
    floats = vectors[:NUM_ASKED].astype(np.float32)
    predictor = fit(floats, fingerprint="", fitting=Fitting())
    seconds = []
    for vector in floats:
        started = time.perf_counter()
        predictor.expects_match(vector)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


def _lookup(vectors: HalfVectors, num_cached: int) -> dict[str, Any]:
    """Look the log's last prompts up among so many before them, or all where there are fewer."""
    cached = vectors[:-NUM_QUERIES][-num_cached:]
    with tempfile.TemporaryDirectory(prefix="nirvana-predictor-") as folder:
        measured = measure_lookups(Path(folder), cached, vectors[-NUM_QUERIES:])
    return {
        "cached": len(cached),
        "p50_ms": round(1e3 * float(np.median(measured.seconds)), 3),
        "mean_ms": round(1e3 * float(measured.seconds.mean()), 3),
        "server_cpu_ms": round(1e3 * measured.server_cpu_s, 3),
    }


def measure_lookups(folder: Path, cached: HalfVectors, asked: HalfVectors) -> Measured:
    """Lookups in one shared scope, with the index that beat builds."""
    with running_database(folder, shared_buffers="512MB") as database:
        migrate.upgrade(database.url)
        scopes = register_scopes(database, cached.shape[1], Sharing.NAMESPACE, num=1)
        fill(database, _prompts(cached), make_kept(len(cached)), [scope.id for scope in scopes])
        settings = settings_of(database, cache_sharing="namespace", cache_index_workers=0)
        maintain(settings)
        return measure(settings, queries_of(_prompts(asked), scopes))


def _prompts(vectors: HalfVectors) -> Prompts:
    nobody = np.zeros(len(vectors), dtype=np.int32)
    return Prompts(vectors=vectors, users=nobody, scopes=nobody)


def _figures(balance: Balance, predict_s: float, arguments: argparse.Namespace) -> dict[str, float]:
    seconds = balance.break_even_s(predict_s=predict_s, seconds_per_step=arguments.seconds_per_step)
    return {
        "nu": balance.nu,
        "gamma": balance.gamma,
        "lookups_avoided": round(balance.lookups_avoided, 4),
        "hits_lost": round(balance.hits_lost, 4),
        "steps_lost_per_job": round(balance.steps_lost, 4),
        "break_even_lookup_ms": round(1e3 * seconds, 3),
    }


def _print(answer: dict[str, Any], arguments: argparse.Namespace) -> None:
    print(f"\n{answer['log']}: {answer['jobs']:,} jobs shared by namespace")
    for lookup in answer["lookups"]:
        print(
            f"a lookup among {lookup['cached']:,} prompts: {lookup['p50_ms']:.2f} ms at the median,"
            f" {lookup['mean_ms']:.2f} ms at the mean, {lookup['server_cpu_ms']:.2f} ms of the"
            " server's CPU"
        )
    print(f"asking the predictor: {answer['predict_ms']:.3f} ms")
    print(
        "  nu  gamma  lookups avoided  hits lost  steps lost / job"
        f"  pays where a lookup takes (at {1e3 * arguments.seconds_per_step:g} ms a step)"
    )
    for row in answer["predictors"]:
        print(
            f"{row['nu']:>4g} {row['gamma']:>6g} {row['lookups_avoided']:>16.1%}"
            f" {row['hits_lost']:>10.1%} {row['steps_lost_per_job']:>17.3f}"
            f" {row['break_even_lookup_ms']:>12,.1f} ms",
            flush=True,
        )


def _prepared(log: str, arguments: argparse.Namespace) -> Prepared:
    prepared = prepare(
        read_trace(arguments.traces / f"{log}.jsonl.gz", rows_max=arguments.rows),
        load_embedder(arguments.embedder),
        cache_dir=arguments.cache_dir,
        stages=announced,
    )
    if len(prepared.trace) > NUM_QUERIES:
        return prepared
    raise EvaluationError(f"{log}: {len(prepared.trace):,} rows, more than {NUM_QUERIES:,} needed")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--traces", type=Path, default=TRACES, help="a folder of prompt logs")
    parser.add_argument("--logs", nargs="+", default=list(LOGS))
    parser.add_argument("--rows", type=int, help="only so many of each log, from the start")
    parser.add_argument("--cached", type=int, nargs="+", default=[10_000, 40_000])
    parser.add_argument("--seconds-per-step", type=float, default=0.02)
    parser.add_argument("--cache-dir", type=Path, default=default_cache_dir())
    parser.add_argument("--embedder", default="minilm")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
