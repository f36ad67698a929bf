"""The same rows with other parameters of the index, and of its search."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.lookup.database import Database, drop_indexes, register_scopes
from benchmarks.lookup.exact import Answer
from benchmarks.lookup.folder import Population, build_indexes, chosen_settings
from benchmarks.lookup.measure import Query, figures, measure, queries_of
from benchmarks.lookup.vectors import SCOPE_SHARES
from cache.settings import CacheSettings

SWEEP: Final = ((16, 64), (16, 128), (24, 128))  # m, ef_construction
SAMPLE: Final = 50  # queries of a scope
SWEEP_SEARCH: Final = (10, 20, 40, 80, 160)
SWEEP_HEAD: Final = (
    "  m  efc  efs  build_s  index_MB  p50_ms  p99_ms  server_cpu_ms  recall@1  k_agree  on_hits"
    "  regret_p99"
)


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
    _print_by_scope(chosen_settings(database, options), "exact", sizes, queries)
    for m, ef_construction in SWEEP:
        changes = {"cache_index_m": m, "cache_index_ef_construction": ef_construction}
        drop_indexes(database)
        built = build_indexes(database, options, **changes)
        _print_by_scope(
            chosen_settings(database, options),
            f"m = {m}, ef_construction = {ef_construction}",
            sizes,
            queries,
        )
        print(SWEEP_HEAD)
        for ef_search in SWEEP_SEARCH:
            settings = chosen_settings(database, options, cache_index_ef_search=ef_search)
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
