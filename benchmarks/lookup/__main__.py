"""How fast and how right a lookup is: `python -m benchmarks.lookup --rows 100000 --json`.

Fills a PostgreSQL of its own with prompts as near to each other as a real log's, in three scopes,
builds the indexes as beat does, and looks prompts up as a worker does. A folder with a finished
build is used again. `--sweep` tries other parameters of the index on the same rows.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.lookup.churn import TURNOVERS, make_churn, measured
from benchmarks.lookup.database import (
    Database,
    prewarm,
    register_scopes,
    running_database,
)
from benchmarks.lookup.exact import Answer
from benchmarks.lookup.folder import (
    Population,
    build_once,
    chosen_settings,
    fill_once,
    kept_answers,
    make_population,
)
from benchmarks.lookup.measure import figures, measure, measure_clients, queries_of
from benchmarks.lookup.small_scopes import beside_small_scopes
from benchmarks.lookup.sweep import sweep
from benchmarks.lookup.vectors import (
    SCOPE_SHARES,
    log_quantiles,
    make_prompts,
)
from cache.entry import Sharing

LOG: Final = Path(__file__).resolve().parents[3] / "shared" / "traces" / "discord-dream-10.jsonl.gz"
NUM_QUERIES: Final = 2_000
QUANTILES: Final = (5, 10, 25, 40, 50, 60, 75, 90, 95)
CAVEATS: Final = """Caveats: vectors are drawn, not embedded; latents are not fetched. Loaded with
foreign keys unchecked, then vacuumed and analyzed, and read into memory before the clock starts.
The client is on the same machine and takes its share of the cores."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Build what is missing, measure and print."""
    options = _parse(arguments)
    with tempfile.TemporaryDirectory(prefix="nirvana-lookup-") as temporary:
        options.folder = options.folder or Path(temporary)
        return run(options)


def run(options: argparse.Namespace) -> int:
    """The benchmark in a folder."""
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.churn:
        return run_churn(options)
    if options.small_scopes:
        return run_small_scopes(options)
    population = make_population(options)
    with running_database(options.folder, shared_buffers=options.shared_buffers) as database:
        fill_once(database, options, population)
        exact = kept_answers(options, population)
        _print_population(options, population, exact)
        if options.sweep:
            sweep(database, options, population, exact)
            return 0
        built = build_once(database, options)
        answer = {**report(database, options, population, exact), **built}
    _print_table(answer)
    print(CAVEATS)
    if options.json:
        print(json.dumps(answer))
    return 0


def run_churn(options: argparse.Namespace) -> int:
    """Turn a cache over, and print what became of its lookups."""
    num = options.rows * (1 + TURNOVERS) + options.queries
    prompts, _ = make_prompts(options.log, num=num, num_queries=1, dimension=options.dimensions)
    with _empty_database(options) as database:
        churn = make_churn(
            database,
            chosen_settings(database, options),
            prompts,
            size=options.rows,
            num_queries=options.queries,
        )
        return _print_rows(measured(churn), options)


def run_small_scopes(options: argparse.Namespace) -> int:
    """Put many small scopes beside a large one, and print what that does to its lookups."""
    population = make_population(options)
    with _empty_database(options) as database:
        settings = chosen_settings(database, options)
        cached, queries = population.cached, population.queries
        rows = beside_small_scopes(database, settings, cached, queries, num=options.small_scopes)
        return _print_rows(rows, options)


def _empty_database(options: argparse.Namespace) -> AbstractContextManager[Database]:
    if (options.folder / "postgres").exists():
        raise SystemExit(f"{options.folder} holds a database: this needs a folder without one")
    return running_database(options.folder, shared_buffers=options.shared_buffers)


def _print_rows(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> int:
    for row in rows:
        _print_table(row)
    if options.json:
        print(json.dumps({row["state"]: row for row in rows}))
    return 0


def report(
    database: Database,
    options: argparse.Namespace,
    population: Population,
    exact: Sequence[Answer],
    **changes: Any,
) -> dict[str, Any]:
    """All that is measured with one set of settings."""
    scopes = register_scopes(database, options.dimensions, options.sharing)
    queries = queries_of(population.queries, scopes)
    settings = chosen_settings(database, options, **changes)
    prewarm(database)
    found = {"rows": options.rows, "dimensions": options.dimensions, "sharing": options.sharing}
    of_one = figures(measure(settings, queries), exact)
    found |= {name: round(value, 5) for name, value in of_one.items()}
    at_once = measure_clients(settings, queries)
    return {**found, "p99_ms_8_clients": round(1e3 * float(np.percentile(at_once, 99)), 5)}


def _print_population(
    options: argparse.Namespace, population: Population, exact: Sequence[Answer]
) -> None:
    """What the numbers are about: scopes, users, how near the queries are, what they allow."""
    cached = population.cached
    sizes = np.bincount(cached.scopes, minlength=len(SCOPE_SHARES))
    by_user = np.sort(np.bincount(cached.users))[::-1]
    ks, counts = np.unique([answer.k_max for answer in exact], return_counts=True)
    quantiles = np.percentile([answer.similarity for answer in exact], QUANTILES)
    log = log_quantiles(np.array(QUANTILES) / 100, options.sharing)
    scopes = ", ".join(f"{size:,}" for size in sizes)
    print(
        f"{len(cached):,} prompts of {options.dimensions} numbers, "
        f"{population.kept.sum():,} states; scopes of {scopes} prompts; "
        f"{np.count_nonzero(by_user):,} users, the largest with {by_user[0]:,} prompts"
    )
    print(f"{len(exact):,} queries by {options.sharing}; cosine to the nearest, and the log's:")
    print("      %" + "".join(f"{share:>7}" for share in QUANTILES))
    print("  drawn" + "".join(f"{value:>7.3f}" for value in quantiles))
    print("    log" + "".join(f"{value:>7.3f}" for value in log))
    shares = ", ".join(f"{k}: {n / len(exact):.1%}" for k, n in zip(ks, counts, strict=True))
    print(f"k by exact search: {shares}")


def _print_table(answer: dict[str, Any]) -> None:
    for name, value in answer.items():
        print(f"{name:<24}{value if isinstance(value, str) else format(value, ',.5g'):>24}")
    print()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=100_000, help="cached prompts")
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--sharing", type=Sharing, choices=list(Sharing), default=Sharing.NAMESPACE)
    parser.add_argument("--queries", type=int, default=NUM_QUERIES)
    parser.add_argument("--folder", type=Path, help="keeps the database, to be used again")
    parser.add_argument("--log", type=Path, default=LOG, help="whose users are taken")
    parser.add_argument("--sweep", action="store_true", help="try other parameters of the index")
    parser.add_argument("--churn", action="store_true", help="replace all rows, several times")
    parser.add_argument("--ef-search", type=int, help="candidates that a search of the index keeps")
    parser.add_argument("--own-newest", type=int, help="prompts of one's own compared exactly")
    parser.add_argument("--small-scopes", type=int, default=0, help="put so many beside a large")
    parser.add_argument("--shared-buffers", default="4GB", help="memory of PostgreSQL")
    parser.add_argument("--memory-bytes", type=int, default=4 * 1024**3, help="for index builds")
    parser.add_argument("--workers", type=int, default=2, help="that help to build an index")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which stops the server, too
    sys.exit(main())
