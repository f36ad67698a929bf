"""What a benchmark's folder keeps: prompts, a filled and indexed database, the exact answers."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.lookup.database import (
    NEAREST_INDEXES,
    OWNER_INDEX,
    Database,
    drop_indexes,
    fill,
    index_bytes,
    register_scopes,
    settings_of,
)
from benchmarks.lookup.exact import NEIGHBOURS, Answer, exact_answers
from benchmarks.lookup.vectors import SEED, Prompts, make_kept, make_prompts
from cache.entry import Sharing
from cache.nearest_index import maintain
from cache.settings import CacheSettings
from migrations import migrate


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Population:
    """What is cached and what is asked."""

    cached: Prompts
    queries: Prompts
    kept: NDArray[np.bool_]  #: [n, len(K_SET)]: which states exist


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
    wanted = _parameters(chosen_settings(database, options))
    built = json.loads(marker.read_text(encoding="utf-8")) if marker.exists() else {}
    if not wanted.items() <= built.items():
        drop_indexes(database)
        built = {**wanted, **build_indexes(database, options)}
        marker.write_text(json.dumps(built), encoding="utf-8")
    return dict(built)


def _parameters(settings: CacheSettings) -> dict[str, int]:
    """Of the index."""
    return {
        "m": settings.cache_index_m,
        "ef_construction": settings.cache_index_ef_construction,
    }


def build_indexes(
    database: Database, options: argparse.Namespace, **changes: Any
) -> dict[str, float]:
    """What beat does; answers its seconds and the bytes of what it built."""
    started = time.monotonic()
    maintain(chosen_settings(database, options, **changes))
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


def chosen_settings(
    database: Database, options: argparse.Namespace, **changes: Any
) -> CacheSettings:
    """The cache's settings as the options have them, with changes."""
    chosen = {
        "cache_neighbours": NEIGHBOURS,
        "cache_index_memory_bytes": options.memory_bytes,
        "cache_index_workers": options.workers,
        "cache_index_ef_search": options.ef_search,
        "cache_own_newest": options.own_newest,
    }
    given = {name: value for name, value in chosen.items() if value is not None}
    return settings_of(database, **{**given, **changes})
