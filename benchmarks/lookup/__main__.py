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
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.lookup.churn import TURNOVERS, make_churn, measured
from benchmarks.lookup.database import (
    NEAREST_INDEXES,
    OWNER_INDEX,
    Database,
    drop_indexes,
    fill,
    index_bytes,
    prewarm,
    register_scopes,
    running_database,
    settings_of,
)
from benchmarks.lookup.exact import Answer, exact_answers
from benchmarks.lookup.measure import Query, figures, measure, measure_clients, queries_of
from benchmarks.lookup.small_scopes import beside_small_scopes
from benchmarks.lookup.vectors import (
    SCOPE_SHARES,
    SEED,
    Prompts,
    log_quantiles,
    make_kept,
    make_prompts,
)
from cache.entry import Sharing
from cache.nearest_index import maintain
from cache.settings import CacheSettings
from migrations import migrate

LOG: Final = Path(__file__).resolve().parents[3] / "shared" / "traces" / "discord-dream-10.jsonl.gz"
NUM_QUERIES: Final = 2_000
QUANTILES: Final = (5, 10, 25, 40, 50, 60, 75, 90, 95)
SWEEP: Final = ((16, 64), (24, 128))  # m, ef_construction
SAMPLE: Final = 50  # queries of a scope
SWEEP_SEARCH: Final = (40, 80, 160, 320)
SWEEP_HEAD: Final = (
    "  m  efc  efs  build_s  index_MB  p50_ms  p99_ms  server_cpu_ms  recall@1  k_agree  on_hits"
    "  regret_p99"
)
CAVEATS: Final = """Caveats: vectors are drawn, not embedded; latents are not fetched. Loaded with
foreign keys unchecked, then vacuumed and analyzed, and read into memory before the clock starts.
The client is on the same machine and takes its share of the cores."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Population:
    """What is cached and what is asked."""

    cached: Prompts
    queries: Prompts
    kept: NDArray[np.bool_]  #: [n, len(K_SET)]: which states exist


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
            _settings(database, options),
            prompts,
            size=options.rows,
            num_queries=options.queries,
        )
        return _print_rows(measured(churn), options)


def run_small_scopes(options: argparse.Namespace) -> int:
    """Put many small scopes beside a large one, and print what that does to its lookups."""
    population = make_population(options)
    with _empty_database(options) as database:
        settings = _settings(database, options)
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


def make_population(options: argparse.Namespace) -> Population:
    """Always the same for the same options; kept in the folder, since it takes a while."""
    file = options.folder / f"prompts-{options.rows}-{options.dimensions}-{options.queries}.npz"
    if not file.exists():
        cached, queries = make_prompts(
            options.log,
            num=options.rows,
            num_queries=options.queries,
            dimension=options.dimensions,
        )
        partial = file.with_suffix(".partial.npz")
        np.savez(partial, *_columns(cached), *_columns(queries))
        partial.rename(file)
    with np.load(file) as columns:
        cached, queries = _prompts(columns, 0), _prompts(columns, 3)
    return Population(cached=cached, queries=queries, kept=make_kept(options.rows))


def _columns(prompts: Prompts) -> tuple[NDArray[Any], ...]:
    return prompts.vectors, prompts.users, prompts.scopes


def _prompts(columns: Any, first: int) -> Prompts:
    vectors, users, scopes = (columns[f"arr_{number}"] for number in range(first, first + 3))
    return Prompts(vectors=vectors, users=users, scopes=scopes)


def fill_once(database: Database, options: argparse.Namespace, population: Population) -> None:
    """Fill the folder's database, unless that was finished before."""
    migrate.upgrade(database.url)  # a folder may be of an older version
    marker = options.folder / "filled.json"
    of = {"rows": options.rows, "dimensions": options.dimensions, "seed": SEED}
    if marker.exists():
        known = json.loads(marker.read_text(encoding="utf-8"))
        if known != of:
            raise SystemExit(f"{options.folder} holds {known}, not {of}: give another folder")
        return
    scopes = register_scopes(database, options.dimensions, Sharing.NAMESPACE)
    load_s = fill(database, population.cached, population.kept, [scope.id for scope in scopes])
    print(f"filled in {load_s:.0f} s", file=sys.stderr)
    marker.write_text(json.dumps(of), encoding="utf-8")


def build_once(database: Database, options: argparse.Namespace) -> dict[str, float]:
    """Index, unless that was finished before; answers the figures of the build.

    Among a user's own rows a lookup needs no index but the table's.
    """
    if options.sharing is Sharing.USER:
        return {"index_bytes": index_bytes(database, OWNER_INDEX), "build_s": 0.0}
    marker = options.folder / "build.json"
    if not marker.exists():
        built = build_indexes(database, options)
        marker.write_text(json.dumps(built), encoding="utf-8")
    return dict(json.loads(marker.read_text(encoding="utf-8")))


def build_indexes(
    database: Database, options: argparse.Namespace, **changes: Any
) -> dict[str, float]:
    """What beat does; answers its seconds and the size of what it built."""
    started = time.monotonic()
    maintain(_settings(database, options, **changes))
    return {
        "index_bytes": index_bytes(database, NEAREST_INDEXES),
        "build_s": round(time.monotonic() - started, 1),
    }


def kept_answers(options: argparse.Namespace, population: Population) -> list[Answer]:
    """The exact answers, computed once a folder and sharing."""
    file = options.folder / f"exact-{options.sharing}-{options.queries}.json"
    if not file.exists():
        found = exact_answers(
            population.cached, population.kept, population.queries, options.sharing
        )
        rows = [(answer.similarity, answer.k_min, answer.k_max) for answer in found]
        file.write_text(json.dumps(rows), encoding="utf-8")
    rows = json.loads(file.read_text(encoding="utf-8"))
    return [Answer(similarity=similarity, k_min=low, k_max=high) for similarity, low, high in rows]


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
    settings = _settings(database, options, **changes)
    prewarm(database)
    found = {"rows": options.rows, "dimensions": options.dimensions, "sharing": options.sharing}
    of_one = figures(measure(settings, queries), exact)
    found |= {name: round(value, 5) for name, value in of_one.items()}
    at_once = measure_clients(settings, queries)
    return {**found, "p99_ms_8_clients": round(1e3 * float(np.percentile(at_once, 99)), 5)}


def sweep(
    database: Database,
    options: argparse.Namespace,
    population: Population,
    exact: Sequence[Answer],
) -> None:
    """Print a row for each way to build the index and to search it; leaves no index."""
    scopes = register_scopes(database, options.dimensions, options.sharing)
    queries = queries_of(population.queries, scopes)
    sizes = np.bincount(population.cached.scopes, minlength=len(SCOPE_SHARES))
    drop_indexes(database)
    (options.folder / "build.json").unlink(missing_ok=True)
    _print_by_scope(_settings(database, options), "exact", sizes, queries)
    for m, ef_construction in SWEEP:
        changes = {"cache_index_m": m, "cache_index_ef_construction": ef_construction}
        drop_indexes(database)
        built = build_indexes(database, options, **changes)
        _print_by_scope(_settings(database, options), f"m = {m}", sizes, queries)
        print(SWEEP_HEAD)
        for ef_search in SWEEP_SEARCH:
            settings = _settings(database, options, cache_index_ef_search=ef_search)
            found = figures(measure(settings, queries), exact)
            _print_swept(m, ef_construction, ef_search, {**built, **found})
    drop_indexes(database)


def _print_by_scope(
    settings: CacheSettings, how: str, sizes: NDArray[np.int64], queries: Sequence[Query]
) -> None:
    """What a lookup takes by the size of its scope: from which on does an index pay."""
    by_id: dict[int, list[Query]] = {}
    for query in queries:
        by_id.setdefault(query.scope.id, []).append(query)
    for size, (_, asked) in zip(sizes, sorted(by_id.items()), strict=True):
        found = measure(settings, asked[:SAMPLE])
        print(
            f"{how}: {size:,} rows: server_cpu_ms {1e3 * found.server_cpu_s:.2f}, "
            f"p50_ms {1e3 * np.median(found.seconds):.2f}",
            flush=True,
        )


def _print_swept(m: int, ef_construction: int, ef_search: int, found: dict[str, float]) -> None:
    print(
        f"{m:>3}{ef_construction:>5}{ef_search:>5}{found['build_s']:>9.1f}"
        f"{found['index_bytes'] / 1e6:>10.0f}{found['p50_ms']:>8.2f}{found['p99_ms']:>8.2f}"
        f"{found['server_cpu_ms']:>15.2f}{found['recall_at_1']:>10.4f}"
        f"{found['k_agreement']:>9.4f}{found['k_agreement_on_hits']:>9.4f}"
        f"{found['similarity_regret_p99']:>12.5f}",
        flush=True,
    )


def _settings(database: Database, options: argparse.Namespace, **changes: Any) -> CacheSettings:
    chosen = {
        "cache_index_memory_bytes": options.memory_bytes,
        "cache_index_workers": options.workers,
        "cache_index_ef_search": options.ef_search,
        "cache_own_newest": options.own_newest,
    }
    given = {name: value for name, value in chosen.items() if value is not None}
    return settings_of(database, **{**given, **changes})


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
